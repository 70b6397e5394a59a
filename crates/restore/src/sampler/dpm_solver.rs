//! DPM-Solver and DPM-Solver++(2M): exponential integrators that remember the step before.
//!
//! With `lambda = ln(alpha / beta)`, `h` this step in lambda and `h0` the one before, in whatever space:
//!
//! ```text
//! noise   z' = (alpha'/alpha) z - beta' (e^h - 1) (eps + h/(2 h0) (eps - eps_before))
//! data    z' = (beta'/beta) z - alpha' (e^-h - 1) (D + h/(2 h0) (D - D_before))
//! ```
//!
//! To first order both are Euler's step, which is how it is computed: it stays finite from pure noise and to
//! no noise. The last step is of first order where it ends without noise or the run is short, as in diffusers.
//!
//! Sources: Lu et al., 2206.00927 and 2211.01095; diffusers' `DPMSolverMultistepScheduler` with
//! `solver_type` midpoint, `algorithm_type` dpmsolver and dpmsolver++.

use burn::tensor::Tensor;

use super::{
    Sampler, Step,
    euler::{advance, data_weight},
};
use crate::{denoiser::Denoiser, schedule::Schedule};

/// Runs of fewer steps than this end with a step of first order.
const SHORT: usize = 15;

/// What is extrapolated from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extrapolates {
    /// The noise: DPM-Solver.
    Noise,
    /// The clean latent: DPM-Solver++.
    Data,
}

/// How much of the past a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    First,
    /// The step before.
    Second,
}

/// DPM-Solver, multistep.
#[derive(Clone, Debug)]
pub struct DpmSolver {
    extrapolates: Extrapolates,
    order: Order,
    /// What the step before saw.
    before: Option<Tensor<4>>,
}

impl DpmSolver {
    /// A sampler at the start of a run.
    pub fn new(extrapolates: Extrapolates, order: Order) -> Self {
        Self {
            extrapolates,
            order,
            before: None,
        }
    }
}

impl Sampler for DpmSolver {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let (from, to) = (schedule.levels[i].sigma, schedule.levels[i + 1].sigma);
        let space = schedule.space;
        let x0 = denoiser.denoise(z.clone(), schedule.levels[i]);
        let (seen, weight) = match self.extrapolates {
            Extrapolates::Data => (x0.clone(), data_weight(space, from, to)),
            Extrapolates::Noise => (
                (z.clone() - x0.clone() * space.alpha(from)) / space.beta(from),
                space.beta(to) - space.alpha(to) * space.ratio(from),
            ),
        };
        let before = self.before.replace(seen.clone());
        let last = i + 1 == schedule.steps() && (to == 0.0 || schedule.steps() < SHORT);
        let mut z = advance(space, z, &x0, from, to);
        if let Some(before) = before
            && i > 0
            && !last
            && self.order == Order::Second
        {
            let part = 0.5 * schedule.lambda_step(i) / schedule.lambda_step(i - 1);
            z = z + (seen - before) * (weight * part);
        }
        Step { z, x0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::gaussian::order, *};
    use crate::schedule::Space;

    #[test]
    fn each_has_its_order_in_every_space() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            for extrapolates in [Extrapolates::Noise, Extrapolates::Data] {
                for (wanted, of) in [(1.0, Order::First), (2.0, Order::Second)] {
                    let order = order(&|| Box::new(DpmSolver::new(extrapolates, of)), space);
                    let what = format!("{extrapolates:?} {of:?} {space:?}");
                    assert!((order - wanted).abs() < 0.1, "{what}: order {order}");
                }
            }
        }
    }
}
