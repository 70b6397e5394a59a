//! How a picture is restored, and the presets.

use priors::{
    folder::Folder,
    scheduler::{Prediction, SchedulerConfig, Spacing},
};
use serde::Serialize;

use crate::{
    denoiser::CfgScale,
    rss::Rss,
    sampler::{Churn, SamplerKind},
    tiled::TileWeights,
};

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

/// How the autoencoder takes a picture that is larger than a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeTiles {
    /// Norms see the whole picture's statistics: the result is that of the whole at once.
    Pooled,
    /// Every tile for itself, with blended overlaps: less memory and work where a picture is very large, and tones that
    /// differ from tile to tile.
    Blended,
}

/// The size that SDXL is told it works at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToldSize {
    /// What it sees at once: the tile.
    Seen,
    /// So many pixels a side whatever it sees; SUPIR says 1024, which keeps the look of large pictures.
    Constant(usize),
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
    pub cfg_scale: CfgScale,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Layout of the timesteps; the sampler's or the prior's own where none is given.
    pub spacing: Option<Spacing>,
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
    /// What the denoiser's tiles weigh where they overlap.
    pub tile_weights: TileWeights,
    /// The size that SDXL is told.
    pub told_size: ToldSize,
    /// How the autoencoder takes tiles.
    pub vae_tiles: VaeTiles,
    /// What is done to the colours.
    pub colour: ColourFix,
    /// Weight of an unsharp mask, of Gaussian sigma 2 pixels, on a soft result: what a small prior predicts is a mean, which
    /// is smoother than any picture. A result with fine detail gets less of it or none ([`pixels::softness`]).
    pub sharpen: f64,
}

impl Default for RestoreOptions {
    /// The embedded prior's: [`Preset::Mini`].
    fn default() -> Self {
        Self {
            scale: 1.0,
            prompt: String::new(),
            negative: String::new(),
            steps: 1,
            cfg_scale: CfgScale::Constant(1.0),
            sampler: SamplerKind::Euler,
            spacing: None,
            start: Start::Lq { strength: 0.3 },
            rss: None,
            adapter_scale: 1.0,
            seed: 0,
            tile_px: 512,
            tile_weights: TileWeights::Cosine,
            told_size: ToldSize::Seen,
            vae_tiles: VaeTiles::Pooled,
            colour: ColourFix::None,
            sharpen: 0.6,
        }
    }
}

impl RestoreOptions {
    /// The prior's schedule with the timesteps laid out as these options want them.
    pub fn laid_out(&self, config: &SchedulerConfig) -> SchedulerConfig {
        let config = config.clone();
        match self.spacing.or(self.sampler.spacing(&config)) {
            Some(spacing) => config.with_spacing(spacing),
            None => config,
        }
    }
}

/// Options that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// For the embedded prior, which is trained for it: one step from the low-quality latent with a third of noise, sharpened where the
    /// result is soft.
    Mini,
    /// The paper's test: 100 steps from noise, guidance 7.5, RSS with w = 0.05 and a = 0.8. The sampler is EDM's
    /// stochastic one, which its ablation names, and Euler's on flow priors. Tiles have Gaussian weights.
    Paper,
    /// The paper's guidance in 20 steps of DPM-Solver++(2M).
    Quick,
}

impl Preset {
    /// The one for the prior in `folder`: two text encoders are SDXL's or SD3's.
    pub fn of(folder: &Folder) -> Self {
        if folder.has("text_encoder_2/config.json") {
            Self::Paper
        } else {
            Self::Mini
        }
    }

    /// What it stands for on a prior of this prediction.
    pub fn options(self, prediction: Prediction) -> RestoreOptions {
        let paper = |steps, sampler| RestoreOptions {
            steps,
            cfg_scale: CfgScale::Constant(7.5),
            sampler,
            start: Start::Noise,
            rss: Some(Rss {
                weight: 0.05,
                threshold: 0.8,
                mode: None,
            }),
            // As SUPIR and Mixture of Diffusers blend what large priors say. mini is 0.5 dB nearer to its untiled result with
            // half a cosine (docs/benchmarks.md).
            tile_weights: TileWeights::Gaussian,
            sharpen: 0.0,
            ..RestoreOptions::default()
        };
        match self {
            Self::Mini => RestoreOptions::default(),
            Self::Paper if prediction == Prediction::Flow => paper(100, SamplerKind::Euler),
            Self::Paper => paper(100, SamplerKind::Edm(Churn::default())),
            Self::Quick => paper(20, SamplerKind::DpmSolverPlusPlus),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prior(files: &'static [(&'static str, &'static [u8])]) -> Folder {
        Folder::Embedded(files)
    }

    #[test]
    fn two_text_encoders_want_the_papers_options() {
        let one = prior(&[("text_encoder/config.json", b"{}")]);
        let two = prior(&[
            ("text_encoder/config.json", b"{}"),
            ("text_encoder_2/config.json", b"{}"),
        ]);
        assert_eq!(Preset::of(&one), Preset::Mini);
        assert_eq!(Preset::of(&two), Preset::Paper);
    }

    #[test]
    fn tiles_of_large_priors_have_gaussian_weights() {
        for prediction in [
            Prediction::Epsilon,
            Prediction::VPrediction,
            Prediction::Flow,
        ] {
            let weights = |preset: Preset| preset.options(prediction).tile_weights;
            assert_eq!(weights(Preset::Paper), TileWeights::Gaussian);
            assert_eq!(weights(Preset::Quick), TileWeights::Gaussian);
            assert_eq!(weights(Preset::Mini), TileWeights::Cosine);
        }
    }

    #[test]
    fn the_papers_sampler_is_at_supirs_timesteps_on_discrete_diffusion_alone() {
        let flow = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 3.0,
            spacing: Spacing::Linspace,
        };
        let diffusion = SchedulerConfig::Diffusion {
            train_timesteps: 1000,
            beta_start: 0.000_85,
            beta_end: 0.012,
            prediction: Prediction::Epsilon,
            spacing: Spacing::Leading,
            steps_offset: 1,
            end: priors::scheduler::End::FirstTimestep,
        };
        let paper = Preset::Paper.options(Prediction::Epsilon);
        assert_eq!(paper.sampler, SamplerKind::Edm(Churn::default()));
        assert_eq!(
            paper.laid_out(&diffusion),
            diffusion.clone().with_spacing(Spacing::Legacy)
        );
        assert_eq!(paper.laid_out(&flow), flow);
        assert_eq!(
            Preset::Paper.options(Prediction::Flow).sampler,
            SamplerKind::Euler
        );
        let own = RestoreOptions {
            spacing: Some(Spacing::Trailing),
            ..paper
        };
        assert_eq!(
            own.laid_out(&diffusion),
            diffusion.with_spacing(Spacing::Trailing)
        );
    }
}
