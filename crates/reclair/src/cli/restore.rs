//! `reclair restore IN... -o OUT`: restores pictures.

use std::{io::Write, path::PathBuf, time::Instant};

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use priors::{folder::Folder, weights::Precision};
use reclair::embedded;
use restore::{
    restorer::{ColourFix, Event, RestoreOptions, Restorer, Start},
    rss::{Rss, RssMode},
    sampler::SamplerKind,
};

use super::jobs::{Job, each, jobs, make_folder_for};

/// Arguments of `restore`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Pictures, or folders of pictures.
    #[arg(required = true, value_name = "IN")]
    inputs: Vec<PathBuf>,
    /// The result: a file, or a folder for results named STEM.png.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The prior: `mini` (embedded), or a folder in diffusers' layout.
    #[arg(long, default_value = "mini")]
    prior: String,
    /// An adapter folder for the prior; `none` for the bare prior.
    #[arg(long)]
    adapter: Option<String>,
    /// Size of the result relative to the input.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// What the picture shows.
    #[arg(long, default_value = "")]
    prompt: String,
    /// What the result should not be; used with --cfg other than 1.
    #[arg(
        long,
        default_value = "low quality, low resolution, blurry, noisy, compressed"
    )]
    negative: String,
    /// Steps that are taken.
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Classifier-free guidance.
    #[arg(long, default_value_t = 1.0)]
    cfg: f64,
    /// The sampler.
    #[arg(long, value_enum, default_value_t = Sampler::Euler)]
    sampler: Sampler,
    /// Where the sampler starts.
    #[arg(long, value_enum, default_value_t = StartAt::Lq)]
    start: StartAt,
    /// How much of the way from noise is gone with --start lq: 1 is all of it.
    #[arg(long, default_value_t = 0.3)]
    strength: f64,
    /// Restoration guidance: the weight w for a hundred steps; 0 turns it off.
    #[arg(long, default_value_t = 0.0)]
    rss_weight: f64,
    /// Restoration guidance: the threshold a; the pull acts while t/T > a.
    #[arg(long, default_value_t = 0.8)]
    rss_threshold: f64,
    /// Restoration guidance: what is pulled; by default what suits the sampler.
    #[arg(long, value_enum)]
    rss_mode: Option<Mode>,
    /// Weight of the adapter's term.
    #[arg(long, default_value_t = 1.0)]
    adapter_scale: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side of the tiles in pixels; 0 never tiles.
    #[arg(long, default_value_t = 512)]
    tile: usize,
    /// What is done to the colours of the result.
    #[arg(long, value_enum, default_value_t = Colour::None)]
    colour: Colour,
    /// Print a JSON line for each picture: what was done, how long it took, how far from the input's latent it ended.
    #[arg(long)]
    json: bool,
    /// Where the networks run.
    #[arg(long, value_enum, default_value_t = super::On::Cpu)]
    device: super::On,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sampler {
    Euler,
    Ddim,
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
    fn options(&self) -> RestoreOptions {
        let mode = self.rss_mode.map(|mode| match mode {
            Mode::Literal => RssMode::Literal,
            Mode::Scaled => RssMode::Scaled,
            Mode::NoisePreserving => RssMode::NoisePreserving,
        });
        RestoreOptions {
            scale: self.scale,
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            steps: self.steps,
            cfg_scale: self.cfg,
            sampler: match self.sampler {
                Sampler::Euler => SamplerKind::Euler,
                Sampler::Ddim => SamplerKind::Ddim,
            },
            start: match self.start {
                StartAt::Noise => Start::Noise,
                StartAt::Lq => Start::Lq {
                    strength: self.strength,
                },
            },
            rss: (self.rss_weight != 0.0).then_some(Rss {
                weight: self.rss_weight,
                threshold: self.rss_threshold,
                mode,
            }),
            adapter_scale: self.adapter_scale,
            seed: self.seed,
            tile_px: self.tile,
            colour: match self.colour {
                Colour::None => ColourFix::None,
                Colour::Wavelet => ColourFix::Wavelet,
                Colour::Adain => ColourFix::Adain,
            },
        }
    }

    fn restorer(&self) -> anyhow::Result<Restorer> {
        let mini = self.prior == "mini";
        let prior = if mini {
            embedded::mini_prior()
        } else {
            Folder::Disk(self.prior.clone().into())
        };
        let adapter = match self.adapter.as_deref() {
            Some("none") => None,
            Some(folder) => Some(Folder::Disk(folder.into())),
            None => mini.then(embedded::mini_adapter),
        };
        // mini is small enough to be widened once; a large prior stays in the type it is stored in.
        let precision = if mini {
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

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    super::set_threads(args.threads)?;
    super::in_range("--rss-weight", args.rss_weight, 0.0, 1.0)?;
    super::in_range("--rss-threshold", args.rss_threshold, 0.0, 0.999)?;
    super::in_range("--cfg", args.cfg, 0.0, 100.0)?;
    super::in_range("--adapter-scale", args.adapter_scale, 0.0, 10.0)?;
    let jobs = jobs(&args.inputs, &args.output)?;
    let restorer = args.restorer()?;
    let options = args.options();
    let mut said = false;
    each(&jobs, |job| {
        let line = one(job, &restorer, &options, &mut said)?;
        if args.json {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok(())
    })
}

/// Restores one picture; returns what was done.
fn one(
    job: &Job,
    restorer: &Restorer,
    options: &RestoreOptions,
    said: &mut bool,
) -> anyhow::Result<serde_json::Value> {
    let started = Instant::now();
    let image = pixels::io::open(&job.input)?;
    pixels::io::Format::from_path(&job.output)?;
    make_folder_for(&job.output)?;
    let bar = ProgressBar::new(1000);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {elapsed} elapsed, {eta} to go  {msg}",
    )?);
    bar.set_message(job.name.clone());
    let first = !std::mem::replace(said, true);
    let restored = restorer.restore(&image, options, &mut |event| match event {
        Event::Note(note) if first => bar.suspend(|| eprintln!("note: {note}")),
        Event::Note(_) => (),
        Event::Done(part) => bar.set_position((1000.0 * part) as u64),
    });
    bar.finish_and_clear();
    let restored = restored?;
    pixels::io::save(&restored.image, &job.output)?;
    eprintln!("{} -> {}", job.input.display(), job.output.display());
    Ok(serde_json::json!({
        "input": job.input,
        "output": job.output,
        "width": restored.image.width,
        "height": restored.image.height,
        "seconds": started.elapsed().as_secs_f64(),
        "latent_distance": restored.distance,
        "options": options,
    }))
}
