//! UniPC of second order that predicts x0: a predictor, and a corrector that costs no further network call.
//!
//! With `h` the step in `lambda = ln(alpha / beta)`, `m0` and `m1` what the denoiser saw at its beginning and at
//! the level before, `r = -h0 / h`, `d = (m1 - m0) / r`, and `z^` Euler's step:
//!
//! ```text
//! predict   z' = z^ - alpha' B d / 2
//! correct   z' = z^ - alpha' B (rho_1 d + rho_2 (m' - m0))         m' = D(predicted z', lambda')
//! rho_1 + rho_2 = (e^-h - 1 + h) / (-h B)       r rho_1 + rho_2 = 2 (1 - h + h^2/2 - e^-h) / (-h^2 B)
//! ```
//!
//! `B` is `-h` (`bh1`) or `e^-h - 1` (`bh2`). The first and the last step are of first order, which is
//! `d = 0` and `rho_2 = 1/2`. A state is final when it is corrected, so that is done in
//! [`Sampler::settle`]; what happens to the state after it is where the next step begins.
//!
//! Source: Zhao et al., 2302.04867; diffusers' `UniPCMultistepScheduler`.

use burn::tensor::Tensor;

use super::{
    Sampler, Step,
    euler::{advance, data_weight},
};
use crate::{denoiser::Denoiser, schedule::Schedule};

/// The function `B(h)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bh {
    /// `-h`. Infinite, and so of no use, where a run starts from pure noise in flow space.
    Bh1,
    /// `e^-h - 1`.
    Bh2,
}

/// UniPC.
#[derive(Clone, Debug)]
pub struct UniPc {
    bh: Bh,
    /// The step that was predicted last.
    predicted: Option<Predicted>,
    /// What the denoiser saw at the level where the next step begins.
    seen: Option<Tensor<4>>,
}

/// What the corrector needs of a predicted step.
#[derive(Clone, Debug)]
struct Predicted {
    /// The state where it began.
    z: Tensor<4>,
    /// What the denoiser saw there.
    m0: Tensor<4>,
    /// What it saw at the level before, where the step is of second order.
    m1: Option<Tensor<4>>,
}

impl UniPc {
    /// A sampler at the start of a run.
    pub fn new(bh: Bh) -> Self {
        Self {
            bh,
            predicted: None,
            seen: None,
        }
    }

    /// `-alpha' B` of step `i`.
    fn weight(&self, schedule: &Schedule, i: usize) -> f64 {
        let (from, to) = (schedule.levels[i].sigma, schedule.levels[i + 1].sigma);
        match self.bh {
            Bh::Bh1 => schedule.space.alpha(to) * schedule.lambda_step(i),
            Bh::Bh2 => data_weight(schedule.space, from, to),
        }
    }

    /// `r`, `rho_1` and `rho_2` of step `i`.
    fn coefficients(&self, schedule: &Schedule, i: usize) -> (f64, f64, f64) {
        let h = schedule.lambda_step(i);
        let r = -schedule.lambda_step(i - 1) / h;
        let b = match self.bh {
            Bh::Bh1 => -h,
            Bh::Bh2 => (-h).exp_m1(),
        };
        let phi_2 = (-h).exp_m1() / -h - 1.0;
        let phi_3 = phi_2 / -h - 0.5;
        let (sum, weighted) = (phi_2 / b, 2.0 * phi_3 / b);
        let rho_1 = (sum - weighted) / (1.0 - r);
        (r, rho_1, sum - rho_1)
    }
}

impl Sampler for UniPc {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        let (from, to) = (schedule.levels[i].sigma, schedule.levels[i + 1].sigma);
        let before = self.predicted.take().filter(|_| i > 0);
        let m0 = match self.seen.take() {
            Some(seen) if i > 0 => seen,
            _ => denoiser.denoise(z.clone(), schedule.levels[i]),
        };
        let m1 = before
            .map(|before| before.m0)
            .filter(|_| i + 1 < schedule.steps());
        let mut next = advance(schedule.space, z.clone(), &m0, from, to);
        if let Some(m1) = &m1 {
            let (r, ..) = self.coefficients(schedule, i);
            next = next + (m1.clone() - m0.clone()) * (0.5 * self.weight(schedule, i) / r);
        }
        let x0 = m0.clone();
        self.predicted = Some(Predicted { z, m0, m1 });
        Step { z: next, x0 }
    }

    fn settle(
        &mut self,
        denoiser: &dyn Denoiser,
        step: Step,
        schedule: &Schedule,
        i: usize,
    ) -> Step {
        let Some(Predicted { z, m0, m1 }) = self.predicted.clone() else {
            return step;
        };
        let (from, to) = (schedule.levels[i].sigma, schedule.levels[i + 1].sigma);
        let x0 = denoiser.denoise(step.z, schedule.levels[i + 1]);
        let weight = self.weight(schedule, i);
        let mut settled = advance(schedule.space, z, &m0, from, to);
        let mut rho_2 = 0.5;
        if let Some(m1) = m1 {
            let (r, rho_1, other) = self.coefficients(schedule, i);
            settled = settled + (m1 - m0.clone()) * (weight * rho_1 / r);
            rho_2 = other;
        }
        settled = settled + (x0.clone() - m0) * (weight * rho_2);
        self.seen = Some(x0.clone());
        Step { z: settled, x0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::gaussian::order, *};
    use crate::schedule::Space;

    #[test]
    fn halving_the_step_quarters_the_error_in_every_space() {
        for space in [Space::Sigma, Space::Vp, Space::Flow] {
            for bh in [Bh::Bh1, Bh::Bh2] {
                let order = order(&|| Box::new(UniPc::new(bh)), space);
                assert!((order - 2.0).abs() < 0.1, "{bh:?} {space:?}: order {order}");
            }
        }
    }
}
