//! Denoisers: functions from a noisy state and its level to the clean latent `x0`.
//!
//! A network predicts epsilon, v or the flow's velocity; [`x0_from_prediction`] turns each into `x0`:
//!
//! ```text
//! epsilon   x0 = (z - beta eps) / alpha            z in VP
//! v         x0 = alpha z - beta v                  z in VP
//! flow      x0 = z - sigma v                       z in flow space
//! ```
//!
//! Source: k-diffusion's wrappers (`external.py`); Salimans and Ho, 2202.00512; Lipman et al., 2210.02747.

use burn::tensor::Tensor;
use priors::scheduler::Prediction;
use serde::Serialize;

use crate::schedule::{Level, Schedule, Space};

/// A function from a noisy state to the clean latent.
pub trait Denoiser {
    /// What a state is made of.
    fn space(&self) -> Space;

    /// `D(z, level)` for a state `z` `[b, c, h, w]`.
    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4>;
}

/// What the network is given for a state of this space: VP for epsilon and v, the state itself for flow.
pub fn network_input(z: Tensor<4>, space: Space, sigma: f64) -> Tensor<4> {
    match space {
        Space::Sigma => z * Space::Vp.alpha(sigma),
        Space::Vp | Space::Flow => z,
    }
}

/// The clean latent of a network's `output` for its `input` at `sigma`.
pub fn x0_from_prediction(
    prediction: Prediction,
    input: Tensor<4>,
    output: Tensor<4>,
    sigma: f64,
) -> Tensor<4> {
    let (alpha, beta) = (Space::Vp.alpha(sigma), Space::Vp.beta(sigma));
    match prediction {
        Prediction::Epsilon => (input - output * beta) / alpha,
        Prediction::VPrediction => input * alpha - output * beta,
        Prediction::Flow => input - output * sigma,
    }
}

/// The scale of classifier-free guidance over a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum CfgScale {
    /// The same at every step.
    Constant(f64),
    /// Linear in steps.
    Linear {
        /// At the first step that is taken.
        first: f64,
        /// At the last.
        last: f64,
    },
}

impl CfgScale {
    /// The scale where this part of the run, from 0 to 1, is done.
    pub fn at(self, part: f64) -> f64 {
        match self {
            Self::Constant(scale) => scale,
            Self::Linear { first, last } => first + (last - first) * part,
        }
    }
}

/// Classifier-free guidance: `D = D_null + scale (D_text - D_null)`. At scale 1 the null denoiser is
/// not asked.
///
/// Source: Ho and Salimans, 2207.12598.
pub struct Guided<'a, A, B> {
    /// Under the prompt.
    pub text: A,
    /// Under the negative or null prompt.
    pub null: B,
    /// The scale.
    pub cfg_scale: CfgScale,
    /// The run over which the scale changes.
    pub schedule: &'a Schedule,
}

impl<A: Denoiser, B: Denoiser> Denoiser for Guided<'_, A, B> {
    fn space(&self) -> Space {
        self.text.space()
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let scale = self.cfg_scale.at(self.schedule.part(level.sigma));
        if scale == 1.0 {
            return self.text.denoise(z, level);
        }
        let text = self.text.denoise(z.clone(), level);
        let null = self.null.denoise(z, level);
        null.clone() + (text - null) * scale
    }
}
