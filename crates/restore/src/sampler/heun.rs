//! Heun's method: Euler's step, corrected by the slope where it ends.
//!
//! ```text
//! d = (x - D(x, sigma)) / sigma         x1 = x + (sigma' - sigma) d
//! d1 = (x1 - D(x1, sigma')) / sigma'    x' = x + (sigma' - sigma) (d + d1) / 2
//! ```
//!
//! `x` is the state in sigma and flow space; in VP it is divided by alpha. The last step, to 0, is Euler's.
//! A step asks the denoiser twice.
//!
//! Source: Karras et al., 2206.00364, algorithm 1; diffusers' `HeunDiscreteScheduler` and
//! `FlowMatchHeunDiscreteScheduler`.

use burn::tensor::Tensor;

use super::{Sampler, Step};
use crate::{
    denoiser::Denoiser,
    schedule::{Schedule, Space},
};

/// Heun's method.
#[derive(Clone, Copy, Debug)]
pub struct Heun;

impl Sampler for Heun {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let (from, to) = (schedule.levels[i], schedule.levels[i + 1]);
        let scale = |sigma: f64| match schedule.space {
            Space::Vp => schedule.space.alpha(sigma),
            Space::Sigma | Space::Flow => 1.0,
        };
        let dt = to.sigma - from.sigma;
        let x0 = denoiser.denoise(z.clone(), from);
        let x = z / scale(from.sigma);
        let d = (x.clone() - x0.clone()) / from.sigma;
        let x1 = x.clone() + d.clone() * dt;
        if to.sigma == 0.0 {
            return Step { z: x1, x0 };
        }
        let x0 = denoiser.denoise(x1.clone() * scale(to.sigma), to);
        let d1 = (x1 - x0.clone()) / to.sigma;
        let z = (x + (d + d1) * (0.5 * dt)) * scale(to.sigma);
        Step { z, x0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::gaussian::order, *};

    #[test]
    fn halving_the_step_quarters_the_error_in_every_space() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            let order = order(&|| Box::new(Heun), space);
            assert!((order - 2.0).abs() < 0.1, "{space:?}: order {order}");
        }
    }
}
