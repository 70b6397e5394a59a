//! Where a run's steps lie among the training timesteps of discrete diffusion, as each family of diffusers' schedulers
//! lays them: `N` training timesteps, `T` steps, `i` from the noisiest.
//!
//! | layout | one step | multistep |
//! |---|---|---|
//! | leading | `(T - 1 - i) (N div T) + offset` | `(T - i) (N div (T + 1)) + offset` |
//! | trailing | `round(N - i N / T) - 1` | the same |
//! | linspace | `(N - 1) (T - 1 - i) / (T - 1)` | `round((N - 1) (T - i) / T)` |
//! | legacy (sgm) | `floor((N - 1) (1 - i / T))` | the same |
//!
//! Source: `set_timesteps` of `EulerDiscreteScheduler`, `DDIMScheduler`, `DPMSolverMultistepScheduler` and
//! `UniPCMultistepScheduler`.

use priors::scheduler::Spacing;

/// The family of schedulers that a sampler belongs to in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Each step stands for itself: Euler, Heun, DDIM.
    OneStep,
    /// Steps look at those before: DPM-Solver, UniPC. The end counts as a timestep too.
    Multistep,
}

impl Family {
    /// The most steps that are all different.
    pub(super) fn most_steps(self, spacing: Spacing, train_timesteps: usize) -> usize {
        match (self, spacing) {
            (Self::Multistep, Spacing::Leading | Spacing::Linspace) => (train_timesteps - 1).max(1),
            _ => train_timesteps,
        }
    }

    /// The timesteps of a run, noisiest first.
    pub(super) fn timesteps(
        self,
        spacing: Spacing,
        train_timesteps: usize,
        steps_offset: usize,
        steps: usize,
    ) -> Vec<f64> {
        let (n, last) = (train_timesteps as f64, (train_timesteps - 1) as f64);
        let timestep = |i: usize| match (spacing, self) {
            (Spacing::Leading, Self::OneStep) => {
                ((steps - 1 - i) * (train_timesteps / steps) + steps_offset) as f64
            }
            (Spacing::Leading, Self::Multistep) => {
                ((steps - i) * (train_timesteps / (steps + 1)) + steps_offset) as f64
            }
            (Spacing::Trailing, _) => (n - i as f64 * n / steps as f64).round_ties_even() - 1.0,
            (Spacing::Linspace, Self::OneStep) => {
                last * (steps - 1 - i) as f64 / (steps.max(2) - 1) as f64
            }
            // numpy's order of operations, here and below, which decides where the exact value is half or whole.
            (Spacing::Linspace, Self::Multistep) => {
                ((steps - i) as f64 * (last / steps as f64)).round_ties_even()
            }
            (Spacing::Legacy, _) => (i as f64 * (-last / steps as f64) + last).floor(),
        };
        (0..steps).map(|i| timestep(i).clamp(0.0, last)).collect()
    }
}
