//! DDIM in VP space.
//!
//! ```text
//! eps = (z - alpha D) / beta      s = eta beta'/beta sqrt(1 - (alpha/alpha')^2)
//! z' = alpha' D + sqrt(beta'^2 - s^2) eps + s n
//! ```
//!
//! Source: Song et al., 2010.02502, eq. 12 and 16; diffusers' `DDIMScheduler`.

use burn::tensor::Tensor;

use super::{Sampler, Step};
use crate::{denoiser::Denoiser, schedule::Schedule};

/// DDIM with its noise parameter.
#[derive(Clone, Copy, Debug)]
pub struct Ddim {
    /// 0 is deterministic, 1 draws as much as DDPM.
    pub eta: f64,
}

impl Sampler for Ddim {
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
        let (a, b) = (space.alpha(from.sigma), space.beta(from.sigma));
        let (a_to, b_to) = (space.alpha(to.sigma), space.beta(to.sigma));
        let x0 = denoiser.denoise(z.clone(), from);
        let s = self.eta * b_to / b * (1.0 - (a / a_to).powi(2)).max(0.0).sqrt();
        let eps = (z - x0.clone() * a) / b;
        let mut z = x0.clone() * a_to + eps * (b_to * b_to - s * s).max(0.0).sqrt();
        if s > 0.0 {
            z = z + noise() * s;
        }
        Step { z, x0 }
    }
}
