//! Steps that went wrong: a loss or gradient that is no number, or a loss far above the last ones.
//!
//! Such a step's gradient is never used. The run stops with a checkpoint of the state before it, or skips it: weights, optimiser
//! state and average stay as they are and the next samples come.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Fewer losses than this say nothing about a spike.
const ENOUGH: usize = 20;

/// What is done about a step that went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Stop or skip.
    pub action: Action,
    /// A loss of more than so many times the median of the last ones is a spike; 0 for never. Losses of single
    /// batches differ much by their noise levels, so this is far from 1.
    pub spike: f64,
    /// How many losses the median is taken over.
    pub window: usize,
    /// After so many skipped steps in a row the run stops.
    pub patience: usize,
}

/// Whether a step that went wrong ends the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It does, with a checkpoint.
    #[default]
    Stop,
    /// It is passed over.
    Skip,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            action: Action::Stop,
            spike: 100.0,
            window: 100,
            patience: 10,
        }
    }
}

impl Guard {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a step was judged to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// As it should be.
    Sound,
    /// Loss or gradient norm is no number.
    NoNumber {
        /// The loss.
        loss: f64,
        /// The gradient's norm.
        gradient_norm: f64,
    },
    /// The loss is a spike.
    Spike {
        /// The loss.
        loss: f64,
        /// The median of those before it.
        median: f64,
    },
}

impl Verdict {
    /// Words for what is wrong.
    pub fn why(self) -> Option<String> {
        match self {
            Self::Sound => None,
            Self::NoNumber {
                loss,
                gradient_norm,
            } => Some(format!(
                "loss {loss} and gradient norm {gradient_norm} are no numbers"
            )),
            Self::Spike { loss, median } => Some(format!(
                "loss {loss:.4} is {:.1} times the median {median:.4} of the steps before",
                loss / median
            )),
        }
    }
}

/// The losses of the last sound steps, and how many went wrong since; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recent {
    losses: VecDeque<f64>,
    /// Steps in a row that went wrong.
    pub in_a_row: usize,
}

impl Recent {
    /// Judges a step and remembers it.
    pub fn judge(&mut self, guard: &Guard, loss: f64, gradient_norm: f64) -> Verdict {
        let verdict = self.verdict(guard, loss, gradient_norm);
        if verdict == Verdict::Sound {
            self.in_a_row = 0;
            self.losses.push_back(loss);
            while self.losses.len() > guard.window {
                self.losses.pop_front();
            }
        } else {
            self.in_a_row += 1;
        }
        verdict
    }

    fn verdict(&self, guard: &Guard, loss: f64, gradient_norm: f64) -> Verdict {
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Verdict::NoNumber {
                loss,
                gradient_norm,
            };
        }
        if guard.spike == 0.0 || self.losses.len() < ENOUGH.min(guard.window) {
            return Verdict::Sound;
        }
        let mut sorted: Vec<f64> = self.losses.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[sorted.len() / 2];
        if loss > guard.spike * median {
            Verdict::Spike { loss, median }
        } else {
            Verdict::Sound
        }
    }

    /// As text, to the bit.
    pub(crate) fn to_text(&self) -> String {
        let bits = |loss: &f64| format!("{:x}", loss.to_bits());
        let losses: Vec<String> = self.losses.iter().map(bits).collect();
        format!("{}:{}", self.in_a_row, losses.join(","))
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let (in_a_row, losses) = text.split_once(':')?;
        let loss = |bits: &str| u64::from_str_radix(bits, 16).ok().map(f64::from_bits);
        let bits = losses.split(',').filter(|bits| !bits.is_empty());
        Some(Self {
            in_a_row: in_a_row.parse().ok()?,
            losses: bits.map(loss).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_median_of_enough_losses() {
        let guard = Guard {
            spike: 10.0,
            window: 30,
            ..Guard::default()
        };
        let mut recent = Recent::default();
        for i in 0..ENOUGH {
            // Too few to judge by, however large.
            let loss = if i == 5 { 1e6 } else { 1.0 };
            assert_eq!(recent.judge(&guard, loss, 1.0), Verdict::Sound, "{i}");
        }
        assert_eq!(recent.judge(&guard, 9.9, 1.0), Verdict::Sound);
        let spike = recent.judge(&guard, 10.1, 1.0);
        assert_eq!(
            spike,
            Verdict::Spike {
                loss: 10.1,
                median: 1.0
            }
        );
        assert!(spike.why().expect("a reason").contains("10.1 times"));
        let nan = recent.judge(&guard, f64::NAN, 1.0);
        assert!(nan.why().expect("a reason").contains("NaN"));
        assert_eq!(recent.in_a_row, 2);
        assert_eq!(recent.judge(&guard, 2.0, 1.0), Verdict::Sound);
        assert_eq!(recent.in_a_row, 0);
        for _ in 0..40 {
            recent.judge(&guard, 50.0_f64.min(9.0), f64::MAX);
        }
        assert_eq!(recent.losses.len(), 30, "the window moves on");
        assert_eq!(recent.judge(&guard, 80.0, 1.0), Verdict::Sound);
    }

    #[test]
    fn the_record_survives_its_text_to_the_bit() {
        let losses = [0.1 + 0.2, 1e-300, 3.0];
        let recent = Recent {
            losses: losses.into(),
            in_a_row: 4,
        };
        assert_eq!(Recent::from_text(&recent.to_text()), Some(recent));
        let empty = Recent::default();
        assert_eq!(Recent::from_text(&empty.to_text()), Some(empty));
        assert_eq!(Recent::from_text("3"), None);
        assert_eq!(Recent::from_text("3:xyz"), None);
    }
}
