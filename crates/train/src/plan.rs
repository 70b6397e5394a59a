//! What a training run will take, found by doing a few of its steps without its weights.
//!
//! Trained values, optimiser, average, samples and steps are those of the run. What stays fixed is zeros that take no memory
//! ([`Precision::Blank`](priors::weights::Precision)), so that nothing large is read and configurations alone will do; its bytes
//! are added to the process's peak memory after the rehearsal, and so are those of the photographs that the run will keep decoded.
//! The steps are made first with photographs that must be decoded, then with the same again; the time of a step is between the two,
//! as often as the run will find its photographs decoded. Prompts that the run keeps on disk are read once, before the steps, where
//! the text encoders' bytes count; the peak is the larger of that and the steps'. Measured rather than derived from sizes, it knows the machine, its
//! kernels and its allocator. The rehearsal writes nothing but to a temporary folder.

use std::sync::Arc;

use burn::tensor::Device;
use priors::{
    any::{AnyPrior, Architecture},
    clip::ClipText,
    t5::T5Encoder,
    vae::AutoencoderKl,
    weights::Weights,
};
use restore::rehearsal::peak_bytes;
use serde::Serialize;

use crate::{
    Error,
    checkpoint::State,
    config::{Stage, Start, TrainConfig},
    data::{Loader, Photos},
    objective::{Denoise, Encoder, Objective, Vae, encoder_of, folder_of, stored_dtype},
    output::Output,
    ranks::{Ranks, Share},
    step::{fresh, shapes_of, step},
};

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Values that train.
    pub trained: usize,
    /// Values that stay as they are: of the prior, its text encoders and autoencoder.
    pub frozen: usize,
    /// Samples that this process computes in a step.
    pub samples: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Expected seconds of a step.
    pub seconds_per_step: f64,
    /// Bytes on disk of the prompts' encodings, where they are kept (`data.cache_text`).
    pub text_cache_bytes: u64,
    /// What latents that are read once take on disk, bytes, in all; 0 where none are kept. The time of a step is that of one whose
    /// latents are not there yet.
    pub latent_cache_bytes: u64,
    /// Bytes on disk of a checkpoint; two are there while one is written.
    pub checkpoint_bytes: u64,
    /// Bytes on disk of the result, with what of the model is copied into it.
    pub result_bytes: u64,
    /// Expected peak memory of this process, where the system tells it (Linux).
    pub peak_bytes: Option<u64>,
    /// Memory that is free for it now, where the system tells it (Linux).
    pub available_bytes: Option<u64>,
    /// What the run will say about its pictures.
    pub notes: Vec<String>,
}

/// Steps of a pass; the first waits for its samples and is not counted.
const PASS: usize = 3;

/// A step that takes longer, in seconds, is not made again.
const LONG: f64 = 60.0;

/// Rehearses the run of `config`.
///
/// # Errors
/// As [`crate::run::run`], weights aside; a run that needs more memory than there is before it takes a step.
pub fn plan(config: &TrainConfig, device: &Device, ranks: &dyn Ranks) -> Result<Plan, Error> {
    let share = Share::new(config.optimise.samples(), ranks)?;
    let given = config;
    let aside = tempfile::tempdir().map_err(|source| Error::io(std::env::temp_dir(), source))?;
    let mut config = given.clone();
    config.out = aside.path().to_owned();
    config.encoder_model = encoder_of(&config);
    config.start = Start::Fresh;
    config.adapter_model = None;
    let frozen = frozen(&config, device)?;
    let objective: Box<dyn Objective> = match config.stage {
        Stage::Vae => Box::new(Vae::new(&config, device)?),
        Stage::Encoder => Box::new(Encoder::blank(&config, device)?),
        _ => Box::new(Denoise::blank(&config, device)?),
    };
    let initial = objective.initial()?;
    let shapes = shapes_of(&initial);
    let output = Output::of(given, &shapes)?;
    let trained = shapes
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let available_bytes = available_bytes();
    let least = least_bytes(trained, &frozen, &config);
    if let Some(available) = available_bytes.filter(|&available| available < least) {
        return Err(Error::Input(format!(
            "weights and optimiser alone take {:.1} GB and this machine has {:.1} GB free; free some, or use a larger machine",
            least as f64 / 1e9,
            available as f64 / 1e9
        )));
    }
    let photos = Arc::new(Photos::open(&config.data, config.seed)?);
    let decoded = photos.decoded_bytes();
    let most_kept = decoded.min(config.data.cache_mb << 20);
    let mut rehearsal = Rehearsal {
        config: &config,
        objective: objective.as_ref(),
        ranks,
        share,
        shapes: &shapes,
        state: fresh(&config, initial)?,
        photos: &photos,
    };
    let before = peak_bytes();
    let first = rehearsal.pass(0, 1)?;
    let seconds_per_step = if first > LONG {
        first
    } else {
        let decoding = rehearsal.pass(PASS, PASS)?;
        let kept = rehearsal.pass(PASS, PASS)?;
        let often = most_kept as f64 / decoded.max(1) as f64;
        often * kept + (1.0 - often) * decoding
    };
    let to_keep = most_kept.saturating_sub(photos.kept_bytes());
    Ok(Plan {
        trained,
        frozen: frozen.values,
        samples: share.count(),
        steps: config.optimise.steps,
        seconds_per_step,
        text_cache_bytes: objective.disk_bytes(&photos),
        latent_cache_bytes: objective.latents("")?.map_or(0, |(_, bytes)| bytes),
        checkpoint_bytes: output.checkpoint,
        result_bytes: output.result,
        peak_bytes: before
            .zip(peak_bytes())
            .map(|peaks| frozen.peak_bytes(peaks, to_keep)),
        available_bytes,
        notes: photos.note().into_iter().collect(),
    })
}

struct Rehearsal<'a> {
    config: &'a TrainConfig,
    objective: &'a dyn Objective,
    ranks: &'a dyn Ranks,
    share: Share,
    shapes: &'a [(String, Vec<usize>)],
    state: State,
    photos: &'a Arc<Photos>,
}

impl Rehearsal<'_> {
    /// Makes so many of the run's steps from `first` on; seconds of a step, the first aside where there are more.
    fn pass(&mut self, first: usize, steps: usize) -> Result<f64, Error> {
        self.state.step = first;
        let count = self.share.count();
        let workers = self.config.data.workers;
        let photos = self.photos.clone();
        let mut loader = Loader::start(photos, self.share, first * count, 2 * count, workers);
        let mut seconds = Vec::new();
        for _ in 0..steps {
            let done = step(
                self.config,
                self.objective,
                (self.ranks, &self.share),
                self.shapes,
                &mut self.state,
                &mut loader,
            )?;
            seconds.push(done.record.seconds);
        }
        let counted = &seconds[usize::from(steps > 1)..];
        Ok(counted.iter().sum::<f64>() / counted.len() as f64)
    }
}

/// What stays as it is.
#[derive(Default)]
struct Frozen {
    values: usize,
    /// In the memory during the steps.
    bytes: usize,
    /// In the memory before them, while text encoders read the prompts that are kept on disk.
    reading_bytes: usize,
}

impl Frozen {
    /// The peak of a run, from those of the rehearsal before and after its steps and the photographs still to be decoded.
    fn peak_bytes(&self, (before, after): (u64, u64), to_keep: usize) -> u64 {
        let steps = after + (self.bytes + to_keep) as u64;
        steps.max(before + self.reading_bytes as u64)
    }
}

/// The networks that `config` keeps as they are, counted from their configurations.
fn frozen(config: &TrainConfig, device: &Device) -> Result<Frozen, Error> {
    let folder = folder_of(config)?;
    let mut frozen = Frozen::default();
    if config.stage == Stage::Vae {
        return Ok(frozen);
    }
    let mut parts = vec!["vae"];
    if config.stage == Stage::Adapter {
        parts.extend([
            Architecture::of(&folder).folder(),
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
        ]);
    }
    for part in parts {
        let file = format!("{part}/config.json");
        if !folder.has(&file) {
            continue;
        }
        let w = Weights::blank(device);
        // The encoder that sees through degradations, beside the autoencoder's own.
        let robust = Weights::blank(device);
        let (json, path) = (folder.json(&file)?, folder.path(&file));
        match part {
            "vae" => {
                let vae = AutoencoderKl::from_json(&json, &path, &w)?;
                if config.stage != Stage::Encoder && config.encoder_model.is_some() {
                    vae.with_encoder(&robust)?;
                }
            }
            "text_encoder_3" => drop(T5Encoder::from_json(&json, &path, &w)?),
            "text_encoder" | "text_encoder_2" => drop(ClipText::from_json(&json, &path, &w)?),
            _ => drop(AnyPrior::from_folder(&folder, &w)?),
        }
        let count = w.count() + robust.count();
        frozen.values += count;
        let bytes = match part {
            "vae" => 4 * count,
            _ => stored_dtype(&folder).size() * count,
        };
        // Encoders whose words are kept on disk leave the memory before the steps; the network's file is read in these.
        let text = part.starts_with("text_encoder");
        if !(text && config.data.cache_text) {
            frozen.bytes += bytes;
        }
        if config.data.cache_text && (text || part == "vae") {
            frozen.reading_bytes += bytes;
        }
    }
    Ok(frozen)
}

/// Weights, both moments, a gradient and the average where there is one: what no step is made without. Before the steps,
/// without the moments and the gradient, the prompts are read.
fn least_bytes(trained: usize, frozen: &Frozen, config: &TrainConfig) -> u64 {
    let copies = 1 + usize::from(config.optimise.ema_halflife_images > 0.0);
    let steps = frozen.bytes + 4 * (copies + 3) * trained;
    steps.max(frozen.reading_bytes + 4 * copies * trained) as u64
}

/// Memory that can be had without swapping, where the system tells it (Linux).
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests;
