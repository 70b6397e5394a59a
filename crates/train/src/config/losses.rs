//! What the stages minimise.

use serde::{Deserialize, Serialize};

use super::is_default;

/// The autoencoder's loss: `l1 |x' - x| + l2 (x' - x)^2 + kl KL`, each a mean over values.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaeLoss {
    /// Weight of the absolute error.
    pub l1: f64,
    /// Weight of the squared error.
    pub l2: f64,
    /// Weight of the divergence from the standard normal.
    pub kl: f64,
    /// Whether the latent is drawn from the posterior or is its mean.
    pub latent: Latent,
    /// What fresh weights compute before training.
    pub init: VaeInit,
}

/// What an autoencoder's fresh weights compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeInit {
    /// Each layer's own initial values: noise.
    Layers,
    /// A cosine transform of 4x4 blocks of which 16 coefficients are kept: training starts at its 38 dB.
    Dct,
}

/// Which latent the decoder is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latent {
    /// The posterior's mean.
    Mean,
    /// A draw from the posterior.
    Draw,
}

impl Default for VaeLoss {
    fn default() -> Self {
        Self {
            l1: 1.0,
            l2: 0.0,
            kl: 1e-6,
            latent: Latent::Draw,
            init: VaeInit::Layers,
        }
    }
}

/// The degradation-robust encoder's loss; see [`crate::objective::Encoder`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderLoss {
    /// Weight of the squared difference of decoded pictures.
    pub pixels: f64,
    /// Weight of the squared difference of latents.
    pub latent: f64,
    /// Weight of how far latents of clean pictures move.
    pub clean: f64,
    /// What encodes the clean picture.
    pub target: EncoderTarget,
}

/// What encodes the clean picture that a degraded one is to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderTarget {
    /// The prior's encoder, which does not move.
    Prior,
    /// The encoder that trains, as SUPIR states its loss: collapses.
    Itself,
}

impl Default for EncoderLoss {
    fn default() -> Self {
        Self {
            pixels: 1.0,
            latent: 0.1,
            clean: 0.1,
            target: EncoderTarget::Prior,
        }
    }
}

impl EncoderLoss {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The denoising loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DenoiseLoss {
    /// Noise levels of a flow prior: `sigma = sigmoid(N(mean, std))`.
    pub sigma_mean: f64,
    /// See `sigma_mean`.
    pub sigma_std: f64,
    /// Which noise levels of a flow prior there are to draw from.
    #[serde(skip_serializing_if = "is_default")]
    pub timesteps: Timesteps,
    /// What SDXL is told about a sample's size.
    #[serde(skip_serializing_if = "is_default")]
    pub sizes: Sizes,
    /// What an error in the latent counts.
    pub metric: Metric,
    /// How often the target is the low-quality picture, under a prompt of what was done to it.
    pub lq_target: f64,
    /// How often the adapter is skipped (stage `joint`).
    pub skip_adapter: f64,
    /// How often the state lies on the way from the noised low-quality latent, as in `restore --start lq`,
    /// rather than from pure noise.
    #[serde(skip_serializing_if = "is_zero")]
    pub lq_start: f64,
    /// The strengths such starts are drawn from, uniformly, `[low, high]`, above 0 and at most 1.
    #[serde(skip_serializing_if = "is_usual_strength")]
    pub lq_start_strength: [f64; 2],
    /// The steps that restoration takes from such a start: states are drawn from those that these visit (one
    /// step visits the start alone). 0: anywhere on the way, for any number of steps.
    ///
    /// Between start and end the state holds much of the clean latent, and most of the loss there is noise that nothing
    /// could predict; a restorer of one step never stands there.
    #[serde(skip_serializing_if = "is_default")]
    pub lq_start_steps: u32,
}

/// The noise levels of a flow prior that training draws from, at `u = sigmoid(N(mean, std))`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timesteps {
    /// All of them: `sigma = u`.
    #[default]
    Continuous,
    /// The scheduler's training timesteps with its shift, as diffusers' training scripts for SD3 draw them:
    /// `s = u` rounded up to a thousandth, `sigma = shift s / (1 + (shift - 1) s)`.
    Scheduler,
}

/// What SDXL is told about a sample: original size, crop's corner, target size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// The photograph's size, where the crop was taken from what it was reduced to, and the crop's size: what SDXL was
    /// trained with.
    #[default]
    Photo,
    /// The crop's size, uncropped: what `restore` says.
    Crop,
}

/// What an error in the latent counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Every channel the same: the prior's own loss.
    Latent,
    /// What it does to the decoded picture, by a quadratic form over channels measured on the decoder.
    Pixels,
}

impl Default for DenoiseLoss {
    fn default() -> Self {
        Self {
            sigma_mean: 0.0,
            sigma_std: 1.0,
            timesteps: Timesteps::default(),
            sizes: Sizes::default(),
            metric: Metric::Latent,
            lq_target: 0.05,
            skip_adapter: 0.5,
            lq_start: 0.0,
            lq_start_strength: USUAL_STRENGTH,
            lq_start_steps: 0,
        }
    }
}

/// See [`DenoiseLoss::lq_start_strength`].
const USUAL_STRENGTH: [f64; 2] = [0.3, 0.7];

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}
fn is_usual_strength(value: &[f64; 2]) -> bool {
    *value == USUAL_STRENGTH
}
