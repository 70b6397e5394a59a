//! Euler's method on the probability-flow ODE, in whatever space the denoiser works.
//!
//! With `eps = (z - alpha D) / beta`, the step is `z' = alpha' D + beta' eps`: in sigma space
//! `z + (z - D) / sigma (sigma' - sigma)`, in flow space `z + (sigma' - sigma) v`.
//!
//! Source: Karras et al., 2206.00364, algorithm 1 without the second order; diffusers' Euler schedulers.

use burn::tensor::Tensor;

use super::{Sampler, Step};
use crate::{denoiser::Denoiser, schedule::Level};

/// Euler's method.
#[derive(Clone, Copy, Debug)]
pub struct Euler;

impl Sampler for Euler {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        from: Level,
        to: Level,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let space = denoiser.space();
        let x0 = denoiser.denoise(z.clone(), from);
        // z' = (b'/b) z + (a' - a b'/b) D, exact for D held fixed.
        let ratio = space.beta(to.sigma) / space.beta(from.sigma);
        let weight = space.alpha(to.sigma) - space.alpha(from.sigma) * ratio;
        let z = z * ratio + x0.clone() * weight;
        Step { z, x0 }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::schedule::Space;

    /// Data `N(0, s^2)`: `D(z) = z alpha s^2 / (alpha^2 s^2 + beta^2)`, and the ODE keeps
    /// `z / sqrt(alpha^2 s^2 + beta^2)` constant.
    struct Gaussian(Space, f64);

    impl Denoiser for Gaussian {
        fn space(&self) -> Space {
            self.0
        }
        fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
            let (a, b) = (self.0.alpha(level.sigma), self.0.beta(level.sigma));
            let s2 = self.1 * self.1;
            z * (a * s2 / (a * a * s2 + b * b))
        }
    }

    fn error(space: Space, steps: usize) -> f64 {
        let device = Device::flex();
        let level = |i: usize| Level {
            sigma: 0.9 * (1.0 - i as f64 / steps as f64),
            t: 0.0,
        };
        let s = 0.7;
        let mut z = Tensor::<4>::full([1, 1, 1, 1], 1.0, (&device, DType::F64));
        for i in 0..steps {
            z = Euler
                .step(
                    &Gaussian(space, s),
                    z,
                    level(i),
                    level(i + 1),
                    &mut || unreachable!(),
                )
                .z;
        }
        let spread =
            |sigma: f64| (space.alpha(sigma).powi(2) * s * s + space.beta(sigma).powi(2)).sqrt();
        let exact = spread(0.0) / spread(0.9);
        (z.into_data()
            .convert::<f64>()
            .as_slice::<f64>()
            .expect("f64")[0]
            - exact)
            .abs()
    }

    #[test]
    fn halving_the_step_halves_the_error_in_every_space() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            let order = (error(space, 64) / error(space, 128)).log2();
            assert!((order - 1.0).abs() < 0.1, "{space:?}: order {order}");
        }
    }
}
