//! A training run from its configuration to its result: steps, log, checkpoints, validation.

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::tensor::{Device, TensorData};
use pixels::{Image, colour::Luma, random::stream, score::psnr};
use priors::{
    folder::Folder,
    weights::{SafetensorsFile, Values, Weights, share},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    checkpoint::State,
    config::{Stage, Start, TrainConfig},
    data::{Loader, Photos, Sample, pictures_under},
    objective::{Denoise, Objective, Vae},
    optimise::{AdamW, Named, average, clip, learning_rate},
};

/// One line of the log.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// The step just done, from 1.
    pub step: usize,
    /// Samples seen so far.
    pub images: usize,
    /// The loss of this step's batch.
    pub loss: f64,
    /// The gradient's global norm before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Seconds this step took.
    pub seconds: f64,
}

/// What a run tells whoever watches it.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run starts, or goes on, at this step of so many.
    Start {
        /// Steps done before.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Trained values.
        parameters: usize,
    },
    /// A step is done.
    Step(StepRecord),
    /// Validation pictures were written, with the mean PSNR of the results.
    Validated {
        /// The step.
        step: usize,
        /// Mean over the validation pictures, dB.
        psnr: f64,
    },
}

/// How many validation pictures are shown.
const SHOWN: usize = 6;

/// How many samples the autoencoder's latents are measured on.
const MEASURED: usize = 64;

/// Runs `config` to its end, from its checkpoint if there is one. `stop` ends it after the step under
/// way, with a checkpoint.
///
/// # Errors
/// Unusable files, a loss that is no number, a full disk. The last checkpoint stays whole.
pub fn run(
    config: &TrainConfig,
    device: &Device,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let objective: Box<dyn Objective> = match config.stage {
        Stage::Vae => Box::new(Vae::new(config, device)?),
        _ => Box::new(Denoise::new(config, device)?),
    };
    let photos = Arc::new(Photos::open(&config.data, config.seed)?);
    let config_hash = hash(config);
    let initial = objective.initial()?;
    let shapes: Vec<(String, Vec<usize>)> = initial
        .iter()
        .map(|(name, data)| (name.clone(), data.shape().as_slice().to_vec()))
        .collect();
    let mut state = match State::load(&config.out, &config_hash)? {
        Some(state) => state,
        None => fresh(initial)?,
    };
    std::fs::create_dir_all(&config.out).map_err(|source| Error::io(&config.out, source))?;
    write_text(
        &config.out.join("config.resolved.toml"),
        &toml::to_string(config).expect("plain TOML"),
    )?;
    let batch = config.optimise.batch;
    let parameters = state.values.values().map(Vec::len).sum();
    watch(Event::Start {
        step: state.step,
        steps: config.optimise.steps,
        parameters,
    });
    let mut loader = Loader::start(photos.clone(), state.step * batch, 2 * batch);
    let validation = validation(config)?;
    while state.step < config.optimise.steps && !stop.load(Ordering::Relaxed) {
        let record = step(config, objective.as_ref(), &shapes, &mut state, &mut loader)?;
        append(
            &config.out.join("log.jsonl"),
            &serde_json::to_string(&record).expect("plain JSON"),
        )?;
        watch(Event::Step(record));
        let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
        if due(config.every.checkpoint) {
            state.save(&config.out, &config_hash)?;
        }
        if due(config.every.validate) && !validation.is_empty() {
            let psnr = validate(config, objective.as_ref(), &shapes, &state, &validation)?;
            let line = serde_json::json!({ "step": state.step, "validation_psnr": psnr });
            append(&config.out.join("log.jsonl"), &line.to_string())?;
            watch(Event::Validated {
                step: state.step,
                psnr,
            });
        }
    }
    state.save(&config.out, &config_hash)?;
    let samples = (0..MEASURED)
        .map(|i| photos.sample(i))
        .collect::<Result<Vec<_>, _>>()?;
    objective.save(&result(config, &shapes, &state), &samples, &config.out)?;
    copy_rest(&config.model, &config.out.join("prior"))?;
    let about = serde_json::json!({
        "stage": config.stage,
        "steps": state.step,
        "images": state.step * batch,
        "config_sha256": config_hash,
        "data_sha256": photos.hash()?,
        "reclair": env!("CARGO_PKG_VERSION"),
    });
    write_text(
        &config.out.join("run.json"),
        &serde_json::to_string_pretty(&about).expect("plain JSON"),
    )
}

fn fresh(initial: Values) -> Result<State, Error> {
    let values = initial
        .into_iter()
        .map(|(name, data)| {
            (
                name,
                data.convert::<f32>()
                    .try_into_vec::<f32>()
                    .expect("converted to f32"),
            )
        })
        .collect::<Named>();
    Ok(State {
        average: values.clone(),
        values,
        optimiser: AdamW::default(),
        step: 0,
    })
}

fn step(
    config: &TrainConfig,
    objective: &dyn Objective,
    shapes: &[(String, Vec<usize>)],
    state: &mut State,
    loader: &mut Loader,
) -> Result<StepRecord, Error> {
    let started = Instant::now();
    let batch = loader.batch(config.optimise.batch)?;
    let mut rng = stream(config.seed, &format!("step {}", state.step));
    let evaluation = kernels::with_products(config.optimise.precision.products(), || {
        objective.evaluate(&shaped(&state.values, shapes), &batch, &mut rng)
    })?;
    let mut gradients = evaluation.gradients;
    let gradient_norm = clip(&mut gradients, config.optimise.clip);
    if !evaluation.loss.is_finite() || !gradient_norm.is_finite() {
        return Err(Error::Diverged(format!(
            "step {}: loss {} and gradient norm {gradient_norm} are no numbers; lower optimise.lr and resume from the checkpoint",
            state.step + 1,
            evaluation.loss
        )));
    }
    let lr = learning_rate(&config.optimise, state.step);
    state
        .optimiser
        .step(&mut state.values, &gradients, lr, &config.optimise);
    if config.optimise.ema_halflife_images > 0.0 {
        average(
            &mut state.average,
            &state.values,
            &config.optimise,
            state.step,
        );
    }
    state.step += 1;
    Ok(StepRecord {
        step: state.step,
        images: state.step * config.optimise.batch,
        loss: evaluation.loss,
        gradient_norm,
        lr,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The weights to use: the average where one is kept.
fn result(config: &TrainConfig, shapes: &[(String, Vec<usize>)], state: &State) -> Values {
    let named = if config.optimise.ema_halflife_images > 0.0 {
        &state.average
    } else {
        &state.values
    };
    shaped(named, shapes)
}

fn shaped(named: &Named, shapes: &[(String, Vec<usize>)]) -> Values {
    let data = |(name, shape): &(String, Vec<usize>)| {
        (
            name.clone(),
            share(TensorData::new(named[name].clone(), shape.clone())),
        )
    };
    shapes.iter().map(data).collect()
}

/// Validation samples: a crop of each picture, degraded as in training.
fn validation(config: &TrainConfig) -> Result<Vec<Sample>, Error> {
    let Some(folder) = &config.data.validation else {
        return Ok(vec![]);
    };
    let mut data = config.data.clone();
    data.images.clone_from(folder);
    data.null_text = 1.0;
    let count = pictures_under(folder)?.len().min(SHOWN);
    let photos = Photos::open(&data, config.seed.wrapping_add(1))?;
    (0..count).map(|i| photos.sample(i)).collect()
}

fn validate(
    config: &TrainConfig,
    objective: &dyn Objective,
    shapes: &[(String, Vec<usize>)],
    state: &State,
    samples: &[Sample],
) -> Result<f64, Error> {
    let values = result(config, shapes, state);
    let mut rows = Vec::new();
    let mut total = 0.0;
    for (i, sample) in samples.iter().enumerate() {
        let mut rng = stream(config.seed, &format!("validation {i}"));
        let row = objective.show(&values, sample, &mut rng)?;
        if let Some(result) = row.last() {
            total += psnr(result, &sample.hq, Luma::Rgb)?;
        }
        rows.push(row);
    }
    pixels::io::save(
        &grid(&rows),
        config.out.join(format!("grid-{:07}.png", state.step)),
    )?;
    Ok(total / samples.len() as f64)
}

/// Pictures of one size, a row each.
fn grid(rows: &[Vec<Image>]) -> Image {
    let (w, h) = (rows[0][0].width, rows[0][0].height);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1);
    Image::from_fn(w * columns, h * rows.len(), |c, y, x| {
        rows[y / h]
            .get(x / w)
            .map_or(0.0, |image| image.plane(c)[(y % h) * w + x % w])
    })
}

/// Tensors to go on from: those named with `prefix`, in `file` of `folder`.
pub(crate) struct Stored<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) folder: &'a Folder,
    pub(crate) file: String,
}

/// The trained tensors as they start: initial values, overlaid with files as `start` says.
pub(crate) fn start_values(
    start: Start,
    stored: &[Stored<'_>],
    seed: u64,
    device: &Device,
    build: impl Fn(&Weights) -> Result<(), Error>,
) -> Result<Values, Error> {
    let weights = Weights::seeded(seed, device);
    build(&weights)?;
    let mut values = weights.made();
    for Stored {
        prefix,
        folder,
        file,
    } in stored
    {
        let wanted = match start {
            Start::Fresh => false,
            Start::Model => true,
            Start::ModelOrFresh => folder.has(file),
        };
        if wanted {
            let file = SafetensorsFile::from_bytes(folder.read(file)?, &folder.path(file))?;
            overlay(&mut values, prefix, &file)?;
        }
    }
    Ok(values)
}

fn overlay(values: &mut Values, prefix: &str, file: &SafetensorsFile) -> Result<(), Error> {
    let misfit = |what: String| {
        Error::Input(format!(
            "{}: tensor {what}; the file does not fit its config.json",
            file.path().display()
        ))
    };
    for name in file.names() {
        let (Some(data), Some(slot)) =
            (file.data(name), values.get_mut(&format!("{prefix}.{name}")))
        else {
            return Err(misfit(format!("{name} is not part of this network")));
        };
        if data.shape() != slot.shape() {
            return Err(misfit(format!(
                "{name} should be {:?} and is {:?}",
                slot.shape(),
                data.shape()
            )));
        }
        *slot = data.convert::<f32>();
    }
    Ok(())
}

/// Copies the files of a prior's folder that `out` does not have yet, so that `out` is whole.
pub(crate) fn copy_rest(folder: &Path, out: &Path) -> Result<(), Error> {
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).map_err(|source| Error::io(&at, source))? {
            let path = entry.map_err(|source| Error::io(&at, source))?.path();
            let to = out.join(path.strip_prefix(folder).unwrap_or(&path));
            if path.is_dir() {
                open.push(path);
            } else if !to.exists() {
                let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
                priors::weights::write_atomically(&to, &bytes)?;
            }
        }
    }
    Ok(())
}

fn hash(config: &TrainConfig) -> String {
    // Where things are written and how the machine is used do not change the result.
    let mut config = config.clone();
    config.out = Default::default();
    config.every = Default::default();
    config.data.cache_mb = 0;
    config.data.workers = 0;
    let text = toml::to_string(&config).expect("plain TOML");
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn append(path: &Path, line: &str) -> Result<(), Error> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.and_then(|mut file| writeln!(file, "{line}"))
        .map_err(|source| Error::io(path, source))
}

fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    Ok(priors::weights::write_atomically(path, text.as_bytes())?)
}
