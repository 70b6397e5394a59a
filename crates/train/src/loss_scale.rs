//! A dynamic loss scale, for gradients in half precision, which vanish below 6e-8 and overflow beyond 65504.
//!
//! The loss is multiplied with `s` before its gradient is made and the gradient divided by `s` after. Where the gradient is no
//! number the step is skipped and `s` halved; after 2000 steps in a row without that it is doubled. `s` is a power of two, so
//! nothing is rounded by it.
//!
//! Source: Micikevicius et al., 1710.03740; constants and order of PyTorch's `torch.amp.GradScaler`.

use crate::{config::Precision, optimise::Named};

/// The first scale.
const FIRST: f32 = 65_536.0;
/// Steps in a row after which the scale grows.
const GROWTH_INTERVAL: usize = 2000;
/// What it is multiplied with.
const GROWTH: f32 = 2.0;
/// What it is multiplied with after an overflow.
const BACKOFF: f32 = 0.5;
/// A gradient that is no number at this scale is so for another reason.
const LEAST: f32 = 1.0;
/// The scale of a run; part of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct LossScale {
    /// What losses are multiplied with.
    scale: f32,
    /// Steps since it changed or overflowed; none where it never changes.
    steps: Option<usize>,
}

impl LossScale {
    /// The scale a run begins with: dynamic where products are of half precision, else 1.
    pub fn new(precision: Precision) -> Self {
        match precision {
            Precision::F16 => Self {
                scale: FIRST,
                steps: Some(0),
            },
            Precision::F32 | Precision::Bf16 => Self {
                scale: 1.0,
                steps: None,
            },
        }
    }

    /// What losses are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Divides a gradient of the scaled loss by the scale.
    pub fn unscale(&self, gradients: &mut Named) {
        if self.scale == 1.0 {
            return;
        }
        let factor = self.scale.recip();
        let divide = |gradient: &mut Vec<f32>| gradient.iter_mut().for_each(|g| *g *= factor);
        gradients.values_mut().for_each(divide);
    }

    /// Learns whether a gradient was a number; says what is done where it was not and a smaller scale may help.
    pub fn update(&mut self, finite: bool) -> Option<String> {
        let steps = self.steps.as_mut()?;
        if finite {
            *steps += 1;
            if *steps == GROWTH_INTERVAL {
                *steps = 0;
                self.scale = Some(self.scale * GROWTH)
                    .filter(|grown| grown.is_finite())
                    .unwrap_or(self.scale);
            }
            return None;
        }
        *steps = 0;
        if self.scale <= LEAST {
            return None;
        }
        let before = self.scale;
        self.scale *= BACKOFF;
        Some(format!(
            "the gradient overflowed at loss scale {before}, which is now {}",
            self.scale
        ))
    }

    /// As text; none where it never changes.
    pub(crate) fn to_text(&self) -> Option<String> {
        Some(format!("{}:{}", self.scale, self.steps?))
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let (scale, steps) = text.split_once(':')?;
        let scale: f32 = scale.parse().ok()?;
        Some(Self {
            scale,
            steps: Some(steps.parse().ok()?),
        })
        .filter(|_| scale.is_finite() && scale > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_an_overflow_and_doubles_after_two_thousand_steps() {
        let mut scale = LossScale::new(Precision::F16);
        assert_eq!(scale.scale(), 65_536.0);
        let why = scale.update(false).expect("an overflow");
        assert!(why.contains("65536, which is now 32768"), "{why}");
        for step in 1..=1999 {
            assert_eq!(scale.update(true), None);
            assert_eq!(scale.scale(), 32_768.0, "{step}");
        }
        let mut overflowed = scale.clone();
        scale.update(true);
        assert_eq!(scale.scale(), 65_536.0);
        // An overflow begins the count anew.
        overflowed.update(false);
        for _ in 0..1999 {
            overflowed.update(true);
        }
        assert_eq!(overflowed.scale(), 16_384.0);
        overflowed.update(true);
        assert_eq!(overflowed.scale(), 32_768.0);
    }

    #[test]
    fn below_one_it_is_not_the_scales_fault() {
        let mut scale = LossScale::new(Precision::F16);
        let halved = std::iter::from_fn(|| scale.update(false)).count();
        assert_eq!((halved, scale.scale()), (16, 1.0));
        for _ in 0..4000 {
            scale.update(true);
        }
        assert_eq!(scale.scale(), 4.0);
        // As large as f32 holds.
        scale.scale = 2.0_f32.powi(127);
        (0..2000).for_each(|_| drop(scale.update(true)));
        assert_eq!(scale.scale(), 2.0_f32.powi(127));
    }

    #[test]
    fn only_half_precision_has_one() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut scale = LossScale::new(precision);
            assert_eq!((scale.update(false), scale.scale()), (None, 1.0));
            assert_eq!(scale.to_text(), None);
        }
        let mut scale = LossScale::new(Precision::F16);
        scale.update(false);
        scale.update(true);
        let text = scale.to_text().expect("dynamic");
        assert_eq!(text, "32768:1");
        assert_eq!(LossScale::from_text(&text), Some(scale.clone()));
        for wrong in ["", "3", "x:1", "1:y", "inf:1", "-1:1", "NaN:0"] {
            assert_eq!(LossScale::from_text(wrong), None, "{wrong}");
        }
        let mut gradients = Named::from([("a".to_owned(), vec![32_768.0, 1e-20])]);
        scale.unscale(&mut gradients);
        assert_eq!(gradients["a"], [1.0, 1e-20 / 32_768.0]);
    }
}
