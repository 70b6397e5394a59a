//! How a picture is restored.

use serde::Serialize;

use crate::{rss::Rss, sampler::SamplerKind};

/// Where the sampler starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From pure noise.
    Noise,
    /// From the noised low-quality latent, at this part of the full schedule.
    Lq {
        /// 1 is pure noise, nearly 0 nothing but the low-quality picture.
        strength: f64,
    },
}

/// What is done to the colours of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ColourFix {
    /// Nothing.
    None,
    /// Low frequencies are the input's.
    Wavelet,
    /// Mean and deviation of each channel are the input's.
    Adain,
}

/// How a picture is restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestoreOptions {
    /// The result is this many times larger than the input.
    pub scale: f64,
    /// What the picture shows; empty is the null text.
    pub prompt: String,
    /// What the result should not be; used when `cfg_scale` is not 1.
    pub negative: String,
    /// Steps that are taken.
    pub steps: usize,
    /// Classifier-free guidance.
    pub cfg_scale: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Where it starts.
    pub start: Start,
    /// Restoration guidance.
    pub rss: Option<Rss>,
    /// Weight of the Restoration Adapter's term.
    pub adapter_scale: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of the tiles in pixels of the result; 0 never tiles.
    pub tile_px: usize,
    /// What is done to the colours.
    pub colour: ColourFix,
}

impl Default for RestoreOptions {
    /// The embedded prior's defaults.
    fn default() -> Self {
        Self {
            scale: 1.0,
            prompt: String::new(),
            negative: String::new(),
            steps: 8,
            cfg_scale: 1.0,
            sampler: SamplerKind::Euler,
            start: Start::Lq { strength: 0.3 },
            rss: None,
            adapter_scale: 1.0,
            seed: 0,
            tile_px: 512,
            colour: ColourFix::None,
        }
    }
}
