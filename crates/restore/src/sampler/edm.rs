//! EDM's stochastic sampler with Euler steps: before each step noise is added (churn).
//!
//! ```text
//! gamma = min(s_churn / T, sqrt 2 - 1) where s_tmin <= s <= s_tmax, else 0     s = beta / alpha
//! s^ = s (1 + gamma)     x^ = x + s_noise sqrt(s^^2 - s^2) n                   x = z / alpha
//! x' = x^ + (s' - s^) (x^ - D(x^, s^)) / s^
//! ```
//!
//! A churned level is none of the schedule's, so the denoiser is asked at the trained level nearest to it, as
//! sgm's `DiscreteDenoiser` does. Without churn it is Euler's method. Pure noise in flow space is not churned.
//!
//! Source: Karras et al., 2206.00364, algorithm 2 without the second order, which is how SUPIR restores;
//! diffusers' `EDMEulerScheduler`.

use burn::tensor::Tensor;
use serde::Serialize;

use super::{
    Sampler, Step,
    euler::{Euler, advance},
};
use crate::{denoiser::Denoiser, schedule::Schedule};

/// How much noise is added, and where.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Churn {
    /// Total churn; 0 is Euler's method.
    pub s_churn: f64,
    /// The least noise, relative to the signal, that is churned.
    pub s_tmin: f64,
    /// The most; infinite by default, which JSON writes as null.
    pub s_tmax: f64,
    /// The added noise's standard deviation; slightly above 1 makes up for what a denoiser smooths away.
    pub s_noise: f64,
}

impl Default for Churn {
    /// What SUPIR's program uses.
    fn default() -> Self {
        Self {
            s_churn: 5.0,
            s_tmin: 0.0,
            s_tmax: f64::INFINITY,
            s_noise: 1.003,
        }
    }
}

/// EDM's stochastic sampler.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edm {
    /// Its noise.
    pub churn: Churn,
}

impl Sampler for Edm {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let (from, to) = (schedule.levels[i], schedule.levels[i + 1]);
        let space = schedule.space;
        let s = space.ratio(from.sigma);
        let Churn {
            s_churn,
            s_tmin,
            s_tmax,
            s_noise,
        } = self.churn;
        let churned = s.is_finite() && (s_tmin..=s_tmax).contains(&s);
        let gamma = (s_churn / schedule.full_steps as f64).min(2.0_f64.sqrt() - 1.0);
        if !churned || gamma == 0.0 {
            return Euler.step(denoiser, z, schedule, i, noise);
        }
        // Increase the noise.
        let s_hat = s * (1.0 + gamma);
        let sigma_hat = space.sigma_from_ratio(s_hat);
        let added = noise() * (s_noise * (s_hat * s_hat - s * s).sqrt());
        let x = z / space.alpha(from.sigma) + added;
        // Euler's step from there.
        let near = schedule.nearest(sigma_hat);
        let x0 = denoiser.denoise(x.clone() * space.alpha(near.sigma), near);
        let z = advance(space, x * space.alpha(sigma_hat), &x0, sigma_hat, to.sigma);
        Step { z, x0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::gaussian::{order, weak_order},
        *,
    };
    use crate::schedule::Space;

    fn edm(s_churn: f64) -> Box<dyn Sampler> {
        Box::new(Edm {
            churn: Churn {
                s_churn,
                s_noise: 1.0,
                ..Churn::default()
            },
        })
    }

    #[test]
    fn halving_the_step_halves_the_error_of_the_spread() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            let order = weak_order(&|| edm(5.0), space);
            assert!((order - 1.0).abs() < 0.1, "{space:?}: order {order}");
        }
    }

    #[test]
    fn without_churn_it_is_eulers_method() {
        let order = order(&|| edm(0.0), Space::Sigma);
        assert!((order - 1.0).abs() < 0.1, "order {order}");
    }
}
