//! Samplers: from a noisy state to a clean latent by way of a denoiser.

mod ddim;
mod dpm_solver;
mod edm;
mod euler;
mod euler_ancestral;
#[cfg(test)]
mod gaussian;
mod heun;
mod kind;
mod unipc;

use burn::tensor::Tensor;

pub use ddim::Ddim;
pub use dpm_solver::{DpmSolver, Extrapolates, Order};
pub use edm::{Churn, Edm};
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use heun::Heun;
pub use kind::SamplerKind;
pub use unipc::{Bh, UniPc};

use crate::{denoiser::Denoiser, rss::Rss, schedule::Schedule};

/// What a sampler's step gives.
#[derive(Clone, Debug)]
pub struct Step {
    /// The state at the next level, `[b, c, h, w]`.
    pub z: Tensor<4>,
    /// The clean latent that the denoiser saw last.
    pub x0: Tensor<4>,
}

/// One way to go from a level to the next. A sampler that remembers steps forgets them at step 0.
pub trait Sampler {
    /// Step `i` of `schedule`: from the state `z` at `levels[i]` to `levels[i + 1]`. `noise` is called where
    /// the sampler draws.
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step;

    /// Corrects the state that step `i` gave by what the denoiser sees there. Called after every step but the
    /// last and before anything else touches the state; most samplers have nothing to correct.
    fn settle(
        &mut self,
        _denoiser: &dyn Denoiser,
        step: Step,
        _schedule: &Schedule,
        _i: usize,
    ) -> Step {
        step
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
    assert_eq!(
        denoiser.space(),
        schedule.space,
        "the denoiser's and the schedule's states"
    );
    let steps = schedule.steps();
    for i in 0..steps {
        let mut step = sampler.step(denoiser, z, schedule, i, noise);
        if i + 1 < steps {
            step = sampler.settle(denoiser, step, schedule, i);
        }
        z = match rss {
            Some((rss, c_lq)) if i + 1 < steps => {
                let pull = rss.pull(steps - 1 - i, schedule.full_steps);
                let sigma = schedule.levels[i + 1].sigma;
                rss.apply(step.z, &step.x0, c_lq, pull, schedule.space, sigma)
            }
            _ => step.z,
        };
        watch(Progress { done: i + 1, z: &z });
    }
    z
}
