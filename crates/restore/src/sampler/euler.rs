//! Euler's method on the probability-flow ODE, in whatever space the denoiser works.
//!
//! With `eps = (z - alpha D) / beta`, the step is `z' = alpha' D + beta' eps`: in sigma space
//! `z + (z - D) / sigma (sigma' - sigma)`, in flow space `z + (sigma' - sigma) v`.
//!
//! Source: Karras et al., 2206.00364, algorithm 1 without the second order; diffusers' Euler schedulers.

use burn::tensor::Tensor;

use super::{Sampler, Step};
use crate::{
    denoiser::Denoiser,
    schedule::{Schedule, Space},
};

/// Euler's method.
#[derive(Clone, Copy, Debug)]
pub struct Euler;

impl Sampler for Euler {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let (from, to) = (schedule.levels[i], schedule.levels[i + 1]);
        let x0 = denoiser.denoise(z.clone(), from);
        let z = advance(schedule.space, z, &x0, from.sigma, to.sigma);
        Step { z, x0 }
    }
}

/// The state at `to` where `D` is held fixed from the level `from` on:
/// `z' = (beta'/beta) z + (alpha' - alpha beta'/beta) D`.
///
/// It is also the first-order step of the exponential integrators, free of their infinite `lambda`.
pub(super) fn advance(space: Space, z: Tensor<4>, x0: &Tensor<4>, from: f64, to: f64) -> Tensor<4> {
    z * (space.beta(to) / space.beta(from)) + x0.clone() * data_weight(space, from, to)
}

/// The weight of `D` in [`advance`]: `alpha' (1 - e^-h)`.
pub(super) fn data_weight(space: Space, from: f64, to: f64) -> f64 {
    space.alpha(to) - space.alpha(from) * space.beta(to) / space.beta(from)
}

#[cfg(test)]
mod tests {
    use super::{super::gaussian::order, *};

    #[test]
    fn halving_the_step_halves_the_error_in_every_space() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            let order = order(&|| Box::new(Euler), space);
            assert!((order - 1.0).abs() < 0.1, "{space:?}: order {order}");
        }
    }
}
