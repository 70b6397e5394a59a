//! What `reclair restore` is asked for, and the options that it makes of it.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use priors::{scheduler::Spacing, weights::Precision};
use restore::{
    denoiser::CfgScale,
    options::{ColourFix, Preset, RestoreOptions, Start},
    restorer::Restorer,
    rss::{Rss, RssMode},
    sampler::{Churn, SamplerKind},
};

/// Arguments of `restore`.
#[derive(Debug, Parser)]
pub(in crate::cli) struct Args {
    /// Pictures, or folders of pictures.
    #[arg(required = true, value_name = "IN")]
    pub(super) inputs: Vec<PathBuf>,
    /// The result: a file, or a folder for results named STEM.png.
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: PathBuf,
    /// The prior: `mini` (embedded), a folder in diffusers' layout, a safetensors checkpoint, or OWNER/NAME[@REVISION] in
    /// Hugging Face's cache or on its hub (the licence is shown first).
    #[arg(long, default_value = "mini")]
    prior: String,
    #[command(flatten)]
    parts: crate::cli::parts::Parts,
    #[command(flatten)]
    consent: crate::cli::Consent,
    /// An adapter folder for the prior; `none` for the bare prior.
    #[arg(long)]
    adapter: Option<String>,
    /// A LoRA for the prior, of diffusers, PEFT, kohya or ComfyUI, merged at this strength (1 without one); may be given again.
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    lora: Vec<crate::cli::lora::LoraArg>,
    /// Size of the result relative to the input.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// What the picture shows.
    #[arg(long, default_value = "")]
    prompt: String,
    /// A command that gets a picture's path as its last argument and prints in one line what it shows; kept beside the
    /// picture as NAME.txt and read from there the next time.
    #[arg(long, value_name = "CMD", conflicts_with = "prompt")]
    pub(super) captioner: Option<String>,
    /// What the result should not be; used with --cfg other than 1.
    #[arg(
        long,
        default_value = "low quality, low resolution, blurry, noisy, compressed"
    )]
    negative: String,
    /// Values for --steps, --cfg, --sampler, --start, --strength, --tile-weights, --sharpen and the --rss options where these are not
    /// given; by default `paper` for a prior with two text encoders (SDXL, SD3), else `mini`.
    #[arg(long, value_enum)]
    preset: Option<PresetName>,
    /// Steps that are taken [presets: mini 1, paper 100, quick 20].
    #[arg(long)]
    steps: Option<usize>,
    /// Classifier-free guidance; `7.5:4` goes evenly from 7.5 at the first step to 4 at the last [presets: mini 1,
    /// paper and quick 7.5].
    #[arg(long, value_name = "SCALE[:LAST]", value_parser = cfg_scale)]
    cfg: Option<CfgScale>,
    /// The sampler [presets: mini euler, paper edm, on flow priors euler, quick dpm++].
    #[arg(long, value_enum)]
    sampler: Option<Sampler>,
    /// How the timesteps lie; by default as the prior's configuration says, with --sampler edm on discrete
    /// diffusion `legacy`.
    #[arg(long, value_enum)]
    spacing: Option<Layout>,
    /// Total churn of --sampler edm; 0 draws nothing [default: 5].
    #[arg(long, value_name = "CHURN")]
    s_churn: Option<f64>,
    /// --sampler edm churns from this sigma upwards [default: 0].
    #[arg(long, value_name = "SIGMA")]
    s_tmin: Option<f64>,
    /// --sampler edm churns up to this sigma [default: all].
    #[arg(long, value_name = "SIGMA")]
    s_tmax: Option<f64>,
    /// Deviation of the noise that --sampler edm adds [default: 1.003].
    #[arg(long, value_name = "DEVIATION")]
    s_noise: Option<f64>,
    /// Where the sampler starts [presets: mini lq, paper and quick noise].
    #[arg(long, value_enum)]
    start: Option<StartAt>,
    /// How much of the way from noise is gone with --start lq: 1 is all of it; with few steps it begins at the nearest level that
    /// whole steps reach [presets: mini 0.3, paper and quick 0.5].
    #[arg(long)]
    strength: Option<f64>,
    /// Restoration guidance: the weight w for a hundred steps; 0 turns it off [presets: mini 0, paper and quick
    /// 0.05].
    #[arg(long)]
    rss_weight: Option<f64>,
    /// Restoration guidance: the threshold a; the pull acts while t/T > a [default: 0.8].
    #[arg(long)]
    rss_threshold: Option<f64>,
    /// Restoration guidance: what is pulled; by default what suits the sampler.
    #[arg(long, value_enum)]
    rss_mode: Option<Mode>,
    /// Weight of the adapter's term.
    #[arg(long, default_value_t = 1.0)]
    adapter_scale: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    tiling: crate::cli::tiling::Tiling,
    /// What is done to the colours of the result.
    #[arg(long, value_enum, default_value_t = Colour::None)]
    colour: Colour,
    /// Weight of an unsharp mask on the result where that is soft, 0 to 2; one with fine detail is left alone [presets: mini 0.6, paper
    /// and quick 0].
    #[arg(long, value_name = "WEIGHT")]
    sharpen: Option<f64>,
    /// Restore nothing: try the networks on one tile and print size, tiles, expected time and peak memory.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print a JSON line for each picture: what was done, how long it took, how far from the input's latent it ended.
    #[arg(long)]
    pub(super) json: bool,
    /// Where the networks run.
    #[arg(long, value_enum, default_value_t = crate::cli::On::Cpu)]
    device: crate::cli::On,
    /// Threads; all cores by default.
    #[arg(long)]
    pub(super) threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetName {
    /// One step from the low-quality latent with noise: strength 0.3.
    Mini,
    /// The paper's test: 100 steps from noise, guidance 7.5, restoration guidance.
    Paper,
    /// The paper's guidance in 20 steps.
    Quick,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sampler {
    /// First order, deterministic.
    Euler,
    /// Euler with fresh noise in every step.
    #[value(name = "euler-a")]
    EulerAncestral,
    /// EDM's stochastic sampler, at SUPIR's timesteps.
    Edm,
    /// Second order, two network calls a step.
    Heun,
    /// DDIM without noise.
    Ddim,
    /// DPM-Solver, second order, predicts the noise.
    #[value(name = "dpm")]
    DpmSolver,
    /// DPM-Solver++(2M), second order, predicts the clean latent.
    #[value(name = "dpm++")]
    DpmSolverPlusPlus,
    /// UniPC, second order with a corrector (bh2).
    #[value(name = "unipc")]
    UniPc,
    /// UniPC (bh1); not for flow priors.
    #[value(name = "unipc-bh1")]
    UniPcBh1,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Layout {
    /// Equal steps from the cleaner end; not for flow priors.
    Leading,
    /// Equal steps from the noisier end.
    Trailing,
    /// Equal steps between both ends.
    Linspace,
    /// sgm's, which SUPIR uses; not for flow priors.
    Legacy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StartAt {
    /// Pure noise.
    Noise,
    /// The noised low-quality latent.
    Lq,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Literal,
    Scaled,
    NoisePreserving,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    None,
    Wavelet,
    Adain,
}

impl Args {
    /// Refuses values out of range.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (option, value, low, high) in [
            ("--rss-weight", self.rss_weight, 0.0, 1.0),
            ("--rss-threshold", self.rss_threshold, 0.0, 0.999),
            ("--s-churn", self.s_churn, 0.0, 1e6),
            ("--s-tmin", self.s_tmin, 0.0, f64::INFINITY),
            ("--s-tmax", self.s_tmax, 0.0, f64::INFINITY),
            ("--s-noise", self.s_noise, 0.0, 10.0),
            ("--adapter-scale", Some(self.adapter_scale), 0.0, 10.0),
            ("--sharpen", self.sharpen, 0.0, 2.0),
        ] {
            if let Some(value) = value {
                crate::cli::in_range(option, value, low, high)?;
            }
        }
        self.tiling.check()
    }

    /// The preset's options with those that were given in their place.
    pub(super) fn options(&self, restorer: &Restorer) -> anyhow::Result<RestoreOptions> {
        let prior = restorer.prior();
        let preset = match self.preset {
            None => Preset::of(&prior.folder),
            Some(PresetName::Mini) => Preset::Mini,
            Some(PresetName::Paper) => Preset::Paper,
            Some(PresetName::Quick) => Preset::Quick,
        };
        let preset = preset.options(prior.scheduler.prediction());
        let sampler = self.sampler(preset.sampler)?;
        Ok(RestoreOptions {
            scale: self.scale,
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            steps: self.steps.unwrap_or(preset.steps),
            cfg_scale: self.cfg.unwrap_or(preset.cfg_scale),
            sampler,
            spacing: self.spacing.map(|layout| match layout {
                Layout::Leading => Spacing::Leading,
                Layout::Trailing => Spacing::Trailing,
                Layout::Linspace => Spacing::Linspace,
                Layout::Legacy => Spacing::Legacy,
            }),
            start: self.start(preset.start)?,
            rss: self.rss(preset.rss)?,
            adapter_scale: self.adapter_scale,
            seed: self.seed,
            colour: match self.colour {
                Colour::None => ColourFix::None,
                Colour::Wavelet => ColourFix::Wavelet,
                Colour::Adain => ColourFix::Adain,
            },
            sharpen: self.sharpen.unwrap_or(preset.sharpen),
            ..self.tiling.options(preset)
        })
    }

    fn sampler(&self, preset: SamplerKind) -> anyhow::Result<SamplerKind> {
        let sampler = self.sampler.map_or(preset, |sampler| match sampler {
            Sampler::Euler => SamplerKind::Euler,
            Sampler::EulerAncestral => SamplerKind::EulerAncestral,
            Sampler::Edm => SamplerKind::Edm(Churn::default()),
            Sampler::Heun => SamplerKind::Heun,
            Sampler::Ddim => SamplerKind::Ddim,
            Sampler::DpmSolver => SamplerKind::DpmSolver,
            Sampler::DpmSolverPlusPlus => SamplerKind::DpmSolverPlusPlus,
            Sampler::UniPc => SamplerKind::UniPc,
            Sampler::UniPcBh1 => SamplerKind::UniPcBh1,
        });
        let given = [self.s_churn, self.s_tmin, self.s_tmax, self.s_noise];
        match sampler {
            SamplerKind::Edm(own) => Ok(SamplerKind::Edm(Churn {
                s_churn: self.s_churn.unwrap_or(own.s_churn),
                s_tmin: self.s_tmin.unwrap_or(own.s_tmin),
                s_tmax: self.s_tmax.unwrap_or(own.s_tmax),
                s_noise: self.s_noise.unwrap_or(own.s_noise),
            })),
            _ if given.iter().any(Option::is_some) => anyhow::bail!(
                "--s-churn, --s-tmin, --s-tmax and --s-noise belong to EDM's sampler; add --sampler edm"
            ),
            other => Ok(other),
        }
    }

    fn start(&self, preset: Start) -> anyhow::Result<Start> {
        let noise = match self.start {
            Some(StartAt::Noise) => true,
            Some(StartAt::Lq) => false,
            None => preset == Start::Noise,
        };
        match (noise, self.strength, preset) {
            (true, Some(_), _) => {
                anyhow::bail!("--strength belongs to a start from the picture; add --start lq")
            }
            (true, None, _) => Ok(Start::Noise),
            (false, Some(strength), _) => Ok(Start::Lq { strength }),
            (false, None, Start::Lq { strength }) => Ok(Start::Lq { strength }),
            (false, None, Start::Noise) => Ok(Start::Lq { strength: 0.5 }),
        }
    }

    fn rss(&self, preset: Option<Rss>) -> anyhow::Result<Option<Rss>> {
        let weight = self.rss_weight.or(preset.map(|rss| rss.weight));
        let Some(weight) = weight.filter(|&weight| weight != 0.0) else {
            anyhow::ensure!(
                self.rss_threshold.is_none() && self.rss_mode.is_none(),
                "--rss-threshold and --rss-mode belong to restoration guidance, which is off; add --rss-weight 0.05"
            );
            return Ok(None);
        };
        Ok(Some(Rss {
            weight,
            threshold: self
                .rss_threshold
                .or(preset.map(|rss| rss.threshold))
                .unwrap_or(0.8),
            mode: self.rss_mode.map(|mode| match mode {
                Mode::Literal => RssMode::Literal,
                Mode::Scaled => RssMode::Scaled,
                Mode::NoisePreserving => RssMode::NoisePreserving,
            }),
        }))
    }

    pub(super) fn restorer(&self) -> anyhow::Result<Restorer> {
        let prior = crate::cli::prior(&self.prior, &self.parts, self.consent)?;
        let prior = crate::cli::lora::merged(prior, &self.lora)?;
        let adapter = crate::cli::adapter(self.adapter.as_deref(), &self.prior);
        // mini is small enough to be widened once; a large prior stays in the type it is stored in.
        let precision = if self.prior == "mini" {
            Precision::F32
        } else {
            Precision::Stored
        };
        Ok(Restorer::open(
            &prior,
            adapter.as_ref(),
            precision,
            &self.device.device()?,
        )?)
    }
}

/// Reads `7.5`, or `7.5:4` for the first step and the last.
fn cfg_scale(text: &str) -> Result<CfgScale, String> {
    let number = |text: &str| match text.parse() {
        Ok(scale) if (0.0..=100.0).contains(&scale) => Ok(scale),
        _ => Err("give a number from 0 to 100, or two as in 7.5:4".to_owned()),
    };
    Ok(match text.split_once(':') {
        None => CfgScale::Constant(number(text)?),
        Some((first, last)) => CfgScale::Linear {
            first: number(first)?,
            last: number(last)?,
        },
    })
}
