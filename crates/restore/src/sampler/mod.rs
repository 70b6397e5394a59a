//! Samplers: from a noisy state to a clean latent by way of a denoiser.

mod ddim;
mod euler;

use burn::tensor::Tensor;
use serde::Serialize;

pub use ddim::Ddim;
pub use euler::Euler;

use crate::{
    denoiser::Denoiser,
    rss::Rss,
    schedule::{Level, Schedule, Space},
};

/// What a sampler's step gives.
#[derive(Clone, Debug)]
pub struct Step {
    /// The state at the next level, `[b, c, h, w]`.
    pub z: Tensor<4>,
    /// The clean latent that the denoiser saw.
    pub x0: Tensor<4>,
}

/// One way to go from a level to the next.
pub trait Sampler {
    /// One step from `z` at `from` to the level `to`; `noise` is called where the sampler draws.
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        from: Level,
        to: Level,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step;
}

/// The samplers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// First order, deterministic, in sigma or flow space.
    Euler,
    /// DDIM without noise, in VP space. On a flow prior it is Euler.
    Ddim,
}

impl SamplerKind {
    /// The space it works in for epsilon and v priors.
    pub fn space(self) -> Space {
        match self {
            Self::Euler => Space::Sigma,
            Self::Ddim => Space::Vp,
        }
    }

    /// The sampler itself.
    pub fn sampler(self) -> Box<dyn Sampler> {
        match self {
            Self::Euler => Box::new(Euler),
            Self::Ddim => Box::new(Ddim { eta: 0.0 }),
        }
    }
}

/// What a run tells whoever watches it after each step.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub done: usize,
    /// The state after guidance.
    pub z: &'a Tensor<4>,
}

/// Runs all steps of `schedule` from the state `z`, with restoration guidance between them.
pub fn sample(
    sampler: &mut dyn Sampler,
    denoiser: &dyn Denoiser,
    schedule: &Schedule,
    rss: Option<(&Rss, &Tensor<4>)>,
    mut z: Tensor<4>,
    noise: &mut dyn FnMut() -> Tensor<4>,
    watch: &mut dyn FnMut(Progress<'_>),
) -> Tensor<4> {
    let steps = schedule.steps();
    for i in 0..steps {
        let (from, to) = (schedule.levels[i], schedule.levels[i + 1]);
        let step = sampler.step(denoiser, z, from, to, noise);
        z = match rss {
            Some((rss, c_lq)) if i + 1 < steps => {
                let pull = rss.pull(steps - 1 - i, schedule.full_steps);
                rss.apply(step.z, &step.x0, c_lq, pull, schedule.space, to.sigma)
            }
            _ => step.z,
        };
        watch(Progress { done: i + 1, z: &z });
    }
    z
}
