//! Euler's method with ancestral noise: a step goes below the next level, and noise brings it up again.
//!
//! ```text
//! s = beta / alpha     down = s'^2 / s     up^2 = s'^2 - down^2
//! x' = x + (down - s) (x - D) / s + up n           x = z / alpha
//! ```
//!
//! It draws as much as DDPM. The formulas are those of sigma space; in flow space, where there is no reference
//! for them, they act on `z / alpha`, so that a first step from pure noise is `alpha' D + beta' n`.
//!
//! Source: k-diffusion's `sample_euler_ancestral` with eta 1; diffusers' `EulerAncestralDiscreteScheduler`.

use burn::tensor::Tensor;

use super::{Sampler, Step, euler::advance};
use crate::{denoiser::Denoiser, schedule::Schedule};

/// Euler's method with ancestral noise.
#[derive(Clone, Copy, Debug)]
pub struct EulerAncestral;

impl Sampler for EulerAncestral {
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
        let (s, s_to) = (space.ratio(from.sigma), space.ratio(to.sigma));
        let down = s_to * (s_to / s);
        let up = (s_to * s_to - down * down).max(0.0).sqrt();
        let sigma_down = space.sigma_from_ratio(down);
        let x0 = denoiser.denoise(z.clone(), from);
        let z = advance(space, z, &x0, from.sigma, sigma_down);
        let mut x = z / space.alpha(sigma_down);
        if up > 0.0 {
            x = x + noise() * up;
        }
        Step {
            z: x * space.alpha(to.sigma),
            x0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::gaussian::weak_order, *};
    use crate::schedule::Space;

    #[test]
    fn halving_the_step_halves_the_error_of_the_spread() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            let order = weak_order(&|| Box::new(EulerAncestral), space);
            assert!((order - 1.0).abs() < 0.1, "{space:?}: order {order}");
        }
    }
}
