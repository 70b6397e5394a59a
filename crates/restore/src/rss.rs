//! The Restoration Sampling Strategy: between two steps the state is pulled towards the low-quality
//! latent (the paper, eq. 1 and 2).
//!
//! ```text
//! z = z' + w g(t, T; a) (c_lq - z')        g = (t/T - a) / (1 - a) where t/T > a, else 0
//! ```
//!
//! `t` counts down: after step `i` of `T` it is `T - 1 - i`, so the pull is strongest at the noisy
//! start. The published `w` is for `T = 100` and is scaled by `100 / T`. The paper's numbers make sense
//! in sigma space, where the signal has weight 1; elsewhere the target is scaled by the signal's weight.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::schedule::Space;

/// What the state is pulled towards, and by how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RssMode {
    /// `z' + k (c - z')`, as printed.
    Literal,
    /// `z' + k (alpha c - z')`: the target at the signal's weight.
    Scaled,
    /// `z' + k alpha (c - D)`: shifts the clean part, keeps the noise on its schedule.
    NoisePreserving,
}

/// Restoration guidance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rss {
    /// `w` for a hundred steps; the paper's is 0.05.
    pub weight: f64,
    /// `a`, the part of the run, counted from its end, in which nothing is pulled; the paper's is 0.8.
    pub threshold: f64,
    /// The mode, or the space's own where none is given.
    pub mode: Option<RssMode>,
}

impl Rss {
    /// The mode used in `space`: literal in sigma space, scaled elsewhere, unless one was chosen.
    pub fn mode_in(&self, space: Space) -> RssMode {
        self.mode.unwrap_or(match space {
            Space::Sigma => RssMode::Literal,
            Space::Vp | Space::Flow => RssMode::Scaled,
        })
    }

    /// `g(t, T; a)`.
    pub fn g(&self, t: usize, full_steps: usize) -> f64 {
        let part = t as f64 / full_steps as f64;
        if part > self.threshold {
            (part - self.threshold) / (1.0 - self.threshold)
        } else {
            0.0
        }
    }

    /// `k = w (100 / T) g(t, T; a)`, at most 1.
    pub fn pull(&self, t: usize, full_steps: usize) -> f64 {
        (self.weight * 100.0 / full_steps as f64 * self.g(t, full_steps)).min(1.0)
    }

    /// Whether any of the last `steps` steps of a schedule of `full_steps` is pulled.
    pub fn acts(&self, steps: usize, full_steps: usize) -> bool {
        steps > 1 && self.pull(steps - 1, full_steps) > 0.0
    }

    /// The pulled state. `z` is the sampler's state at `sigma`, `x0` the clean latent it saw, `c_lq` the
    /// low-quality latent.
    pub fn apply(
        &self,
        z: Tensor<4>,
        x0: &Tensor<4>,
        c_lq: &Tensor<4>,
        pull: f64,
        space: Space,
        sigma: f64,
    ) -> Tensor<4> {
        if pull == 0.0 {
            return z;
        }
        let alpha = space.alpha(sigma);
        match self.mode_in(space) {
            RssMode::Literal => z * (1.0 - pull) + c_lq.clone() * pull,
            RssMode::Scaled => z * (1.0 - pull) + c_lq.clone() * (pull * alpha),
            RssMode::NoisePreserving => z + (c_lq.clone() - x0.clone()) * (pull * alpha),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;

    fn tensor(seed: u32) -> Tensor<4> {
        let value = |i: u32| {
            let x = (i + 1000 * seed).wrapping_mul(2_654_435_761);
            f64::from(x ^ (x >> 15)) / 2_147_483_648.0 - 1.0
        };
        let values: Vec<f64> = (0..48).map(value).collect();
        Tensor::from_data(
            TensorData::new(values, [1, 3, 4, 4]),
            (&Device::flex(), DType::F64),
        )
    }

    fn norm(x: Tensor<4>) -> f64 {
        x.square()
            .sum()
            .into_data()
            .convert::<f64>()
            .as_slice::<f64>()
            .expect("f64")[0]
            .sqrt()
    }

    #[test]
    fn the_distance_to_the_target_shrinks_by_exactly_the_pull() {
        let (z, c, x0) = (tensor(1), tensor(2), tensor(3));
        let rss = Rss {
            weight: 0.05,
            threshold: 0.8,
            mode: None,
        };
        for (space, sigma) in [(Space::Sigma, 5.3), (Space::Vp, 2.0), (Space::Flow, 0.9)] {
            let pull = rss.pull(95, 100);
            let target = match rss.mode_in(space) {
                RssMode::Scaled => c.clone() * space.alpha(sigma),
                _ => c.clone(),
            };
            let pulled = rss.apply(z.clone(), &x0, &c, pull, space, sigma);
            let (before, after) = (norm(z.clone() - target.clone()), norm(pulled - target));
            assert!(
                (after - (1.0 - pull) * before).abs() < 1e-12 * before,
                "{space:?}: {after} for {}",
                (1.0 - pull) * before
            );
        }
    }

    #[test]
    fn the_published_numbers() {
        let rss = Rss {
            weight: 0.05,
            threshold: 0.8,
            mode: None,
        };
        let active: Vec<f64> = (0..100)
            .map(|i| rss.g(99 - i, 100))
            .filter(|&g| g > 0.0)
            .collect();
        assert_eq!(active.len(), 19);
        assert!((active[0] - 0.95).abs() < 1e-12);
        assert!((active.iter().sum::<f64>() - 9.5).abs() < 1e-9);
        assert!(
            (rss.pull(19, 20) - 0.05 * 5.0 * 0.75).abs() < 1e-12,
            "scaled by 100 / T"
        );
    }

    #[test]
    fn a_run_that_starts_below_the_threshold_is_never_pulled() {
        let rss = Rss {
            weight: 0.05,
            threshold: 0.8,
            mode: None,
        };
        assert!(!rss.acts(10, 20));
        assert!(rss.acts(20, 20));
        assert!(
            Rss {
                threshold: 0.3,
                ..rss
            }
            .acts(10, 20)
        );
    }

    #[test]
    fn a_noise_preserving_pull_leaves_a_state_that_already_agrees() {
        let (z, c) = (tensor(1), tensor(2));
        let rss = Rss {
            weight: 0.05,
            threshold: 0.0,
            mode: Some(RssMode::NoisePreserving),
        };
        let pulled = rss.apply(z.clone(), &c, &c, 0.5, Space::Flow, 0.5);
        assert_eq!(norm(pulled - z), 0.0);
    }
}
