//! A training run as a file: `reclair train CONFIG.toml`.
//!
//! Paths are relative to the configuration's own folder.

use std::path::{Path, PathBuf};

use restore::{adapter::AdapterConfig, lora::LoraConfig};
use serde::{Deserialize, Serialize};

use crate::{Error, guard::Guard};

mod data;
mod losses;

pub use self::{
    data::{Data, Mix, Small},
    losses::{
        DenoiseLoss, EncoderLoss, EncoderTarget, Latent, Metric, Sizes, Timesteps, VaeInit, VaeLoss,
    },
};

/// What a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The autoencoder.
    Vae,
    /// The text encoder and the denoising network, without an adapter.
    Prior,
    /// Text encoder, network and Restoration Adapter together; the adapter is skipped for half of the
    /// samples. For priors small enough to be trained for restoration.
    Joint,
    /// The paper's training: the prior is frozen; Restoration Adapter and, where there is a section for it, LoRA.
    Adapter,
    /// The degradation-robust encoder: a copy of the autoencoder's.
    Encoder,
}

/// A training run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What is trained.
    pub stage: Stage,
    /// Folder of the model: diffusers layout, with every `config.json` of what the stage needs. Where the model is frozen
    /// (stages `adapter` and `encoder`) also a safetensors checkpoint.
    pub model: PathBuf,
    /// The autoencoder in place of the model's own (all stages but `vae`): its folder, or a safetensors file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_model: Option<PathBuf>,
    /// Text encoders in place of the model's own (stage `adapter`): folders, or safetensors files; which each is, is
    /// seen from its width.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text_encoder_models: Vec<PathBuf>,
    /// Folder of an adapter to go on from.
    pub adapter_model: Option<PathBuf>,
    /// Folder of an adapter whose degradation-robust encoder makes the low-quality latents (stages `joint` and
    /// `adapter`), or is gone on from (stage `encoder`).
    pub encoder_model: Option<PathBuf>,
    /// Folder the result, log, checkpoints and pictures are written to.
    pub out: PathBuf,
    /// Whether networks start from the model folder's weights or from fresh ones.
    pub start: Start,
    /// Under what licence the adapter is given, for its `reclair.json`; an SPDX name or a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Seed of the initial weights, the order of samples and all noise.
    #[serde(default)]
    pub seed: u64,
    /// Photographs.
    pub data: Data,
    /// Optimiser and length.
    pub optimise: Optimise,
    /// How often things are written.
    #[serde(default)]
    pub every: Every,
    /// What is done about a step that went wrong.
    #[serde(default, skip_serializing_if = "Guard::is_default")]
    pub guard: Guard,
    /// The autoencoder's loss (stage `vae`).
    #[serde(default)]
    pub vae: VaeLoss,
    /// The degradation-robust encoder's loss (stage `encoder`).
    #[serde(default, skip_serializing_if = "EncoderLoss::is_default")]
    pub encoder: EncoderLoss,
    /// The denoising loss (other stages).
    #[serde(default)]
    pub denoise: DenoiseLoss,
    /// The Restoration Adapter (stages `joint` and `adapter`).
    pub adapter: Option<AdapterConfig>,
    /// LoRA (stage `adapter`); without it the Restoration Adapter trains alone.
    pub lora: Option<LoraConfig>,
}

/// Where the trained networks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From initial values drawn from the seed.
    Fresh,
    /// From the model folder's weights: a further leg.
    Model,
    /// From the model folder's weights where there are any, else fresh.
    ModelOrFresh,
}

/// Optimiser and length of a run. AdamW with PyTorch's defaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimise {
    /// Optimiser steps.
    pub steps: usize,
    /// Samples computed at a time.
    pub batch: usize,
    /// How many batches make a step: its gradient is the mean over `batch * accumulate` samples, in the memory of `batch`.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub accumulate: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps over which the rate rises from zero.
    #[serde(default)]
    pub warmup: usize,
    /// The rate at the last step, as a fraction of the peak; it falls along a half cosine.
    #[serde(default = "one")]
    pub final_lr: f64,
    /// First moment's decay.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Second moment's decay.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 for none.
    #[serde(default = "one")]
    pub clip: f64,
    /// Half-life of the averaged weights, in samples; 0 for none.
    #[serde(default)]
    pub ema_halflife_images: f64,
    /// How the gradient is made.
    #[serde(default)]
    pub gradient: Gradient,
    /// What the convolutions of a step multiply; sums, weights and everything else stay f32.
    #[serde(default)]
    pub precision: Precision,
}

impl Optimise {
    /// Samples in a step.
    pub fn samples(&self) -> usize {
        self.batch * self.accumulate
    }
}

/// The operands of a convolution's products, forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Activations, weights and gradients rounded to bfloat16: faster where the processor multiplies such pairs
    /// (AVX512-BF16, AMX). A run's bits then depend on the processor.
    Bf16,
    /// The same rounded to half precision, as GPUs multiply, with a loss scale ([`crate::loss_scale`]) because its range is
    /// small. On the CPU it is slower than `f32`: for trying what such training does.
    F16,
}

impl Precision {
    /// As the kernels name it.
    pub fn products(self) -> kernels::Products {
        match self {
            Self::F32 => kernels::Products::F32,
            Self::Bf16 => kernels::Products::Bf16,
            Self::F16 => kernels::Products::F16,
        }
    }
}

/// How the gradient is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// One tape over the whole network: three forwards' worth of work.
    #[default]
    Whole,
    /// In so many pieces of the network (of each half of an autoencoder), each taped alone: four forwards' worth of work, the
    /// memory of one piece and of what enters each.
    Cut(usize),
}

/// How often things are written, in steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Every {
    /// A checkpoint to resume from.
    pub checkpoint: usize,
    /// A picture grid and scores on the validation pictures; 0 for never.
    pub validate: usize,
}

impl Default for Every {
    fn default() -> Self {
        Self {
            checkpoint: 500,
            validate: 1000,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
fn once() -> usize {
    1
}
fn is_once(times: &usize) -> bool {
    *times == 1
}
fn one() -> f64 {
    1.0
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn eps() -> f64 {
    1e-8
}
fn weight_decay() -> f64 {
    0.01
}

impl TrainConfig {
    /// Reads `path` and makes its paths absolute to the configuration's folder.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, or values that do not make sense.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let mut config: Self = toml::from_str(&text).map_err(|why| {
            // One line: the library's own message shows the file around the error.
            let line = why
                .span()
                .map_or(1, |span| text[..span.start].lines().count().max(1));
            let why = why.message();
            Error::Input(format!(
                "{} line {line}: {why}; correct the configuration",
                path.display()
            ))
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        for file in [&mut config.model, &mut config.out, &mut config.data.images] {
            *file = base.join(&*file);
        }
        let others = [
            &mut config.data.validation,
            &mut config.vae_model,
            &mut config.adapter_model,
            &mut config.encoder_model,
        ];
        let texts = config.text_encoder_models.iter_mut();
        for file in others.into_iter().flatten().chain(texts) {
            *file = base.join(&*file);
        }
        config.check(path)?;
        Ok(config)
    }

    /// Refuses crops that the networks cannot halve as often as they do.
    ///
    /// # Errors
    /// The crops' side is no multiple of `grid` pixels.
    pub(crate) fn check_crop(&self, grid: usize) -> Result<(), Error> {
        let side = self.data.crop_px;
        if side.is_multiple_of(grid) {
            return Ok(());
        }
        Err(Error::Input(format!(
            "data.crop_px = {side}, but this model needs a multiple of {grid}; try {}",
            side.next_multiple_of(grid)
        )))
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let needs_adapter = matches!(self.stage, Stage::Joint | Stage::Adapter);
        let needs_pairs = needs_adapter || self.stage == Stage::Encoder;
        let trains_text = matches!(self.stage, Stage::Prior | Stage::Joint);
        let trains_encoder = matches!(self.stage, Stage::Vae | Stage::Encoder);
        let probability = |p: f64| (0.0..=1.0).contains(&p);
        let o = &self.optimise;
        let wrong = [
            (self.data.crop_px == 0, "data.crop_px must not be 0"),
            (self.optimise.batch == 0, "optimise.batch must not be 0"),
            (
                self.optimise.accumulate == 0,
                "optimise.accumulate must not be 0",
            ),
            (
                !(self.guard.spike == 0.0 || self.guard.spike > 1.0),
                "guard.spike must be above 1, or 0 for none",
            ),
            (self.guard.window == 0, "guard.window must not be 0"),
            (
                !(self.data.reduce[0] >= 1.0 && self.data.reduce[1] >= self.data.reduce[0]),
                "data.reduce must be [low, high] with 1 <= low <= high",
            ),
            (
                ![
                    self.data.null_text,
                    self.denoise.lq_target,
                    self.denoise.skip_adapter,
                    self.denoise.lq_start,
                ]
                .into_iter()
                .all(probability),
                "data.null_text, denoise.lq_target, denoise.skip_adapter and denoise.lq_start are probabilities, from 0 to 1",
            ),
            (
                self.data
                    .degradations
                    .iter()
                    .any(|mix| !(mix.weight >= 0.0 && mix.weight.is_finite())),
                "a weight in data.degradations must not be negative",
            ),
            (
                !self.data.degradations.is_empty()
                    && self.data.degradations.iter().all(|mix| mix.weight == 0.0),
                "one weight in data.degradations must be above 0",
            ),
            (
                !(o.lr > 0.0 && o.lr.is_finite()),
                "optimise.lr must be above 0",
            ),
            (
                !(probability(o.final_lr)
                    && (0.0..1.0).contains(&o.beta1)
                    && (0.0..1.0).contains(&o.beta2)),
                "optimise.final_lr must be from 0 to 1, beta1 and beta2 from 0 to below 1",
            ),
            (
                !(o.eps > 0.0
                    && o.weight_decay >= 0.0
                    && o.clip >= 0.0
                    && o.ema_halflife_images >= 0.0),
                "optimise.eps must be above 0; weight_decay, clip (0: none) and ema_halflife_images (0: none) not below 0",
            ),
            (
                self.stage == Stage::Encoder && o.precision == Precision::F16,
                "this stage computes with the prior's autoencoder, and SDXL's overflows f16: take optimise.precision = \"f32\" or \"bf16\"",
            ),
            (
                self.lora.is_some() && self.stage != Stage::Adapter,
                "only stage \"adapter\" trains LoRA: leave the section [lora] out",
            ),
            (
                self.vae_model.is_some() && self.stage == Stage::Vae,
                "this stage trains the autoencoder of `model`: leave vae_model out",
            ),
            (
                !self.text_encoder_models.is_empty() && self.stage != Stage::Adapter,
                "only stage \"adapter\" reads frozen text encoders: leave text_encoder_models out",
            ),
            (
                self.data.cache_latents > 0 && trains_encoder,
                "this stage trains an encoder: leave data.cache_latents out",
            ),
            (
                self.data.cache_text && trains_text,
                "this stage trains the text encoder: leave data.cache_text out",
            ),
            (
                self.adapter_model.is_some() && self.start == Start::Fresh,
                "start = \"fresh\" would not go on from adapter_model: set start = \"model\", or leave adapter_model out",
            ),
            (
                {
                    let [low, high] = self.denoise.lq_start_strength;
                    !(low > 0.0 && low <= high && high <= 1.0)
                },
                "denoise.lq_start_strength must be [low, high] with 0 < low <= high <= 1",
            ),
            (
                needs_adapter && self.adapter.is_none(),
                "this stage needs a section [adapter]",
            ),
            (
                self.stage == Stage::Encoder && self.start != Start::Model,
                "this stage starts from the model's own encoder; set start = \"model\"",
            ),
            (
                needs_pairs && self.data.degradations.is_empty(),
                "this stage needs data.degradations",
            ),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, why)) => Err(Error::Input(format!(
                "{}: {why}; correct the configuration",
                path.display()
            ))),
            None => Ok(()),
        }
    }
}
