//! The asymmetric generalized Gaussian: shape and widths of a sample, by moment matching (Lasmar et al. 2009).
//!
//! r(a) = G(2/a)^2 / (G(1/a) G(3/a)) is tabulated for a = 0.2, 0.201, .. 10; with the deviations l and r of the
//! negative and the positive samples and g = l/r, the shape is the a nearest to r(a) = (E|x|)^2 / E[x^2] (g^3 + 1)(g
//! + 1) / (g^2 + 1)^2.

use std::sync::LazyLock;

use libm::tgamma;

/// A fitted distribution.
pub(super) struct Aggd {
    /// Shape: 2 is a Gaussian, 1 a Laplacian.
    pub(super) alpha: f64,
    /// Width to the left; NaN when there is no negative sample.
    pub(super) left: f64,
    /// Width to the right; NaN when there is no positive sample.
    pub(super) right: f64,
}

/// (a, r(a)); the shapes are rounded to `f32`, as in the implementations we agree with.
static TABLE: LazyLock<Vec<(f64, f64)>> = LazyLock::new(|| {
    let shape = |i: u32| f64::from((0.2 + f64::from(i) * 0.001) as f32);
    let ratio = |a: f64| tgamma(2.0 / a).powi(2) / (tgamma(1.0 / a) * tgamma(3.0 / a));
    (0..=9800).map(|i| (shape(i), ratio(shape(i)))).collect()
});

impl Aggd {
    /// The fit to these samples.
    pub(super) fn fit(samples: impl Iterator<Item = f64>) -> Self {
        let (mut left, mut right) = ((0.0, 0.0), (0.0, 0.0)); // sum of squares, count
        let (mut magnitude, mut count) = (0.0, 0.0);
        for x in samples {
            if x < 0.0 {
                left = (left.0 + x * x, left.1 + 1.0);
            } else if x > 0.0 {
                right = (right.0 + x * x, right.1 + 1.0);
            }
            magnitude += x.abs();
            count += 1.0;
        }
        let (square, magnitude) = ((left.0 + right.0) / count, magnitude / count);
        let (left, right) = (f64::sqrt(left.0 / left.1), f64::sqrt(right.0 / right.1));
        let g = left / right;
        let wanted =
            magnitude * magnitude / square * (g.powi(3) + 1.0) * (g + 1.0) / (g * g + 1.0).powi(2);
        let mut alpha = TABLE[0].0; // what remains when `wanted` is no number
        let mut nearest = f64::INFINITY;
        for &(a, ratio) in TABLE.iter() {
            if (ratio - wanted).abs() < nearest {
                (alpha, nearest) = (a, (ratio - wanted).abs());
            }
        }
        let width = (tgamma(1.0 / alpha) / tgamma(3.0 / alpha)).sqrt();
        Self {
            alpha,
            left: left * width,
            right: right * width,
        }
    }

    /// The mean of the fitted distribution.
    pub(super) fn mean(&self) -> f64 {
        (self.right - self.left) * tgamma(2.0 / self.alpha) / tgamma(1.0 / self.alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;
    use rand_distr::{Distribution, StandardNormal};

    #[test]
    fn a_normal_sample_has_shape_two() {
        let normal: Vec<f64> = StandardNormal
            .sample_iter(stream(4, "aggd"))
            .take(100_000)
            .collect();
        let fit = Aggd::fit(normal.iter().copied());
        assert!((fit.alpha - 2.0).abs() < 0.05, "{}", fit.alpha);
        let skewed = Aggd::fit(normal.iter().map(|&x| if x < 0.0 { 3.0 * x } else { x }));
        assert!((skewed.left / skewed.right - 3.0).abs() < 0.05 && skewed.mean() < 0.0);
    }

    #[test]
    fn nothing_to_fit_is_no_number() {
        let flat = Aggd::fit([0.0; 9].into_iter());
        assert!(flat.left.is_nan() && flat.right.is_nan());
    }
}
