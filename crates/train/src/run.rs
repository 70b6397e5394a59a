//! A training run from its configuration to its result: steps, log, checkpoints, validation.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::tensor::{Device, TensorData};
use pixels::random::stream;
use priors::{
    folder::Folder,
    weights::{SafetensorsFile, Values, Weights, share},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    checkpoint::{Origin, State},
    config::{Stage, Start, TrainConfig},
    data::{Loader, Photos, hex},
    folder::OutFolder,
    guard::{Action, Verdict},
    objective::{Denoise, Encoder, Objective, Vae},
    optimise::{AdamW, Named, average, clip, learning_rate},
    report,
    validate::{Scores, Validation},
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
    /// Seconds of them in which it waited for samples.
    pub waited: f64,
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
    /// Validation pictures were written, with the scores of the results.
    Validated {
        /// The step.
        step: usize,
        /// Means over the validation pictures.
        scores: Scores,
    },
    /// Something to know that ends nothing: a step that was skipped, a photograph that was passed over.
    Note(String),
    /// A line was written to the log.
    Logged(String),
}

/// How many samples the autoencoder's latents are measured on.
const MEASURED: usize = 64;

/// Runs `config` to its end, from its checkpoint if there is one. `stop` ends it after the step under
/// way, with a checkpoint.
///
/// # Errors
/// Unusable files, another run in the same folder, a loss that [`crate::guard`] stops at, a full disk. The last checkpoint stays
/// whole.
pub fn run(
    config: &TrainConfig,
    device: &Device,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let objective: Box<dyn Objective> = match config.stage {
        Stage::Vae => Box::new(Vae::new(config, device)?),
        Stage::Encoder => Box::new(Encoder::new(config, device)?),
        _ => Box::new(Denoise::new(config, device)?),
    };
    let photos = Arc::new(Photos::open(&config.data, config.seed)?);
    let origin = Origin {
        config: hash(config),
        data: photos.list_hash()?,
    };
    let initial = objective.initial()?;
    let shapes: Vec<(String, Vec<usize>)> = initial
        .iter()
        .map(|(name, data)| (name.clone(), data.shape().as_slice().to_vec()))
        .collect();
    let mut state = match State::load(&config.out, &origin)? {
        Some(state) => state,
        None => fresh(initial)?,
    };
    let mut out = OutFolder::open(&config.out, state.step)?;
    out.write(
        "config.resolved.toml",
        &toml::to_string(config).expect("plain TOML"),
    )?;
    let batch = config.optimise.batch;
    let parameters = state.values.values().map(Vec::len).sum();
    watch(Event::Start {
        step: state.step,
        steps: config.optimise.steps,
        parameters,
    });
    let mut loader = Loader::start(
        photos.clone(),
        state.step * batch,
        2 * batch,
        config.data.workers,
    );
    let validation = Validation::open(config)?;
    while state.step < config.optimise.steps && !stop.load(Ordering::Relaxed) {
        let done = step(config, objective.as_ref(), &shapes, &mut state, &mut loader)?;
        for why in done.passed_over {
            out.log(
                &serde_json::json!({ "step": state.step, "passed_over": why }),
                watch,
            )?;
            watch(Event::Note(format!("passed over {why}")));
        }
        match (done.wrong, config.guard.action) {
            (None, _) => {}
            (Some(why), Action::Skip) if state.recent.in_a_row <= config.guard.patience => {
                out.log(
                    &serde_json::json!({ "step": state.step, "skipped": why }),
                    watch,
                )?;
                watch(Event::Note(format!("step {} skipped: {why}", state.step)));
            }
            (Some(why), action) => {
                // The step under way changed nothing but the count.
                state.step -= 1;
                state.recent.in_a_row -= 1;
                out.log(
                    &serde_json::json!({ "step": state.step, "stopped": why }),
                    watch,
                )?;
                state.save(&config.out, &origin)?;
                return Err(Error::Diverged(stopped(state.step + 1, &why, action)));
            }
        }
        out.log(&done.record, watch)?;
        watch(Event::Step(done.record));
        let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
        // Before the checkpoint, so that a run resumed from it lacks no scores.
        if due(config.every.validate) && !validation.is_empty() {
            let values = result(config, &shapes, &state);
            let scores = validation.run(config, objective.as_ref(), &values, state.step)?;
            out.log(&scores.line(state.step), watch)?;
            watch(Event::Validated {
                step: state.step,
                scores,
            });
        }
        if due(config.every.checkpoint) {
            state.save(&config.out, &origin)?;
        }
    }
    drop(loader);
    state.save(&config.out, &origin)?;
    let samples = (0..MEASURED)
        .map(|i| photos.sample(i))
        .collect::<Result<Vec<_>, _>>()?;
    objective.save(&result(config, &shapes, &state), &samples, &config.out)?;
    copy_rest(&config.model, &config.out.join("prior"))?;
    let about = serde_json::json!({
        "stage": config.stage,
        "steps": state.step,
        "images": state.step * batch,
        "config_sha256": origin.config,
        "data_sha256": photos.hash()?,
        "reclair": env!("CARGO_PKG_VERSION"),
    });
    out.write(
        "run.json",
        &serde_json::to_string_pretty(&about).expect("plain JSON"),
    )?;
    report::write(&config.out, &config.out.join("report.html"))
}

/// Why the run stopped at `step`, and what to do.
fn stopped(step: usize, why: &str, action: Action) -> String {
    let advice = match action {
        Action::Stop => {
            "give `action = \"skip\"` in [guard] and run it again to pass over such steps, or lower optimise.lr and start over"
        }
        Action::Skip => "too many steps in a row were skipped; lower optimise.lr and start over",
    };
    format!("step {step}: {why}; the steps before it are in the checkpoint; {advice}")
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
        recent: Default::default(),
    })
}

/// What a step did.
struct Done {
    record: StepRecord,
    /// Why its gradient was not used.
    wrong: Option<String>,
    passed_over: Vec<String>,
}

fn step(
    config: &TrainConfig,
    objective: &dyn Objective,
    shapes: &[(String, Vec<usize>)],
    state: &mut State,
    loader: &mut Loader,
) -> Result<Done, Error> {
    let started = Instant::now();
    let mut batch = loader.batch(config.optimise.batch)?;
    let waited = started.elapsed().as_secs_f64();
    let passed_over = batch
        .iter_mut()
        .flat_map(|sample| std::mem::take(&mut sample.passed_over))
        .collect();
    let mut rng = stream(config.seed, &format!("step {}", state.step));
    let evaluation = kernels::with_products(config.optimise.precision.products(), || {
        objective.evaluate(&shaped(&state.values, shapes), &batch, &mut rng)
    })?;
    let mut gradients = evaluation.gradients;
    let gradient_norm = clip(&mut gradients, config.optimise.clip);
    let lr = learning_rate(&config.optimise, state.step);
    let verdict = state
        .recent
        .judge(&config.guard, evaluation.loss, gradient_norm);
    if verdict == Verdict::Sound {
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
    }
    state.step += 1;
    Ok(Done {
        record: StepRecord {
            step: state.step,
            images: state.step * config.optimise.batch,
            loss: evaluation.loss,
            gradient_norm,
            lr,
            seconds: started.elapsed().as_secs_f64(),
            waited,
        },
        wrong: verdict.why(),
        passed_over,
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

/// Tensors to go on from: those named with `prefix`, in `file` of `folder`.
pub(crate) struct Stored<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) folder: &'a Folder,
    pub(crate) file: String,
    pub(crate) take: Take,
}

/// Which tensors of a file are gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// All, where the configuration's `start` asks for them; the network must know each.
    All,
    /// Those whose names begin so, always: a network that starts as a copy of another's part.
    Copy(&'static [&'static str]),
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
        take,
    } in stored
    {
        let wanted = match (take, start) {
            (Take::Copy(_), _) | (Take::All, Start::Model) => true,
            (Take::All, Start::Fresh) => false,
            (Take::All, Start::ModelOrFresh) => folder.has(file),
        };
        if wanted {
            let file = SafetensorsFile::from_bytes(folder.read(file)?, &folder.path(file))?;
            overlay(&mut values, prefix, &file, *take)?;
        }
    }
    Ok(values)
}

fn overlay(
    values: &mut Values,
    prefix: &str,
    file: &SafetensorsFile,
    take: Take,
) -> Result<(), Error> {
    let misfit = |what: String| {
        Error::Input(format!(
            "{}: tensor {what}; the file does not fit its config.json",
            file.path().display()
        ))
    };
    let taken = |name: &&String| match take {
        Take::All => true,
        Take::Copy(parts) => parts.iter().any(|part| name.starts_with(part)),
    };
    for name in file.names().iter().filter(taken) {
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
    config.guard = Default::default();
    let text = toml::to_string(&config).expect("plain TOML");
    hex(&Sha256::digest(text))
}
