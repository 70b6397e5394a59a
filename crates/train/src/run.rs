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
    weights::{SafetensorsFile, Values, Weights},
};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    checkpoint::{Origin, State},
    config::{Precision, Stage, Start, TrainConfig},
    data::{Loader, Photos, Sample, hex},
    folder::OutFolder,
    guard::{Action, Verdict},
    lent::Lent,
    loss_scale::LossScale,
    objective::{Denoise, Encoder, Evaluation, Objective, Vae},
    optimise::{AdamW, Named, average, clip, learning_rate},
    ranks::{Ranks, Share, agree, any, total},
    report, self_test,
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
    /// The loss scale, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// Seconds this step took.
    pub seconds: f64,
    /// Seconds of them in which it waited for samples.
    pub waited: f64,
}

/// What a run tells whoever watches it.
#[derive(Clone, Debug)]
pub enum Event {
    /// The device's gradients were compared with the CPU's: [`crate::self_test`].
    Tested {
        /// How far they are off, of their norm.
        off: f64,
    },
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

/// Runs `config` to its end, from its checkpoint if there is one, together with the other ranks. `stop` on any of them ends
/// it after the step under way, with a checkpoint.
///
/// # Errors
/// Unusable files, another run in the same folder, a device that computes wrong gradients, a loss that [`crate::guard`] stops at, a full disk. The last checkpoint stays
/// whole. An error of one rank alone is not known to the others, which wait for it: [`Ranks::abort`] ends them.
pub fn run(
    config: &TrainConfig,
    device: &Device,
    ranks: &dyn Ranks,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let share = Share::new(config.optimise.samples(), ranks)?;
    let optimise = &config.optimise;
    let off = self_test::check(device, optimise.gradient, optimise.precision.products())?;
    watch(Event::Tested { off });
    // Rank 0 makes the folder ready before the others look into it.
    let writes = ranks.rank() == 0;
    if !writes {
        ranks.wait();
    }
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
    let shapes = shapes_of(&initial);
    let mut state = match State::load(&config.out, &origin)? {
        Some(state) => {
            drop(initial);
            state
        }
        None => fresh(config, initial)?,
    };
    let mut out = None;
    if writes {
        let folder = OutFolder::open(&config.out, state.step)?;
        folder.write(
            "config.resolved.toml",
            &toml::to_string(config).expect("plain TOML"),
        )?;
        out = Some(folder);
    }
    objective.prepare(&photos, stop, &mut |note| watch(Event::Note(note)))?;
    if writes {
        ranks.wait();
    }
    agree(ranks, || state.digest(&origin))?;
    let batch = config.optimise.samples();
    let parameters = state.values.values().map(Vec::len).sum();
    watch(Event::Start {
        step: state.step,
        steps: config.optimise.steps,
        parameters,
    });
    let mut loader = Loader::start(
        photos.clone(),
        share,
        state.step * share.count(),
        2 * share.count(),
        config.data.workers,
    );
    let validation = Validation::open(config)?;
    while state.step < config.optimise.steps && !any(ranks, stop.load(Ordering::Relaxed)) {
        let done = step(
            config,
            objective.as_ref(),
            (ranks, &share),
            &shapes,
            &mut state,
            &mut loader,
        )?;
        for why in done.passed_over {
            if let Some(out) = &mut out {
                out.log(
                    &serde_json::json!({ "step": state.step, "passed_over": why }),
                    watch,
                )?;
            }
            watch(Event::Note(format!("passed over {why}")));
        }
        if let (Some(why), Some(out)) = (&done.overflowed, &mut out) {
            out.log(
                &serde_json::json!({ "step": state.step, "skipped": why }),
                watch,
            )?;
            watch(Event::Note(format!("step {} skipped: {why}", state.step)));
        }
        match (done.wrong, config.guard.action) {
            (None, _) => {}
            (Some(why), Action::Skip) if state.recent.in_a_row <= config.guard.patience => {
                if let Some(out) = &mut out {
                    out.log(
                        &serde_json::json!({ "step": state.step, "skipped": why }),
                        watch,
                    )?;
                    watch(Event::Note(format!("step {} skipped: {why}", state.step)));
                }
            }
            (Some(why), action) => {
                // The step under way changed nothing but the count.
                state.step -= 1;
                state.recent.in_a_row -= 1;
                if let Some(out) = &mut out {
                    out.log(
                        &serde_json::json!({ "step": state.step, "stopped": why }),
                        watch,
                    )?;
                    state.save(&config.out, &origin)?;
                }
                ranks.wait();
                return Err(Error::Diverged(stopped(state.step + 1, &why, action)));
            }
        }
        let Some(out) = &mut out else { continue };
        out.log(&done.record, watch)?;
        watch(Event::Step(done.record));
        let at = state.step;
        let due = |every: usize| every > 0 && at.is_multiple_of(every);
        // Before the checkpoint, so that a run resumed from it lacks no scores.
        if due(config.every.validate) && !validation.is_empty() {
            let scores = with_result(config, &shapes, &mut state, |values, step| {
                validation.run(config, objective.as_ref(), values, step)
            })?;
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
    let Some(out) = out else {
        ranks.wait();
        return Ok(());
    };
    state.save(&config.out, &origin)?;
    let measured = if config.stage == Stage::Vae {
        MEASURED
    } else {
        0
    };
    let samples = (0..measured)
        .map(|i| photos.sample(i))
        .collect::<Result<Vec<_>, _>>()?;
    with_result(config, &shapes, &mut state, |values, _| {
        objective.save(values, &samples, &config.out)
    })?;
    // A frozen prior stays where it is.
    if config.stage != Stage::Adapter {
        copy_rest(&config.model, &config.out.join("prior"))?;
    }
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
    report::write(&config.out, &config.out.join("report.html"))?;
    ranks.wait();
    Ok(())
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

/// Names and shapes of the trained tensors.
pub(crate) fn shapes_of(values: &Values) -> Vec<(String, Vec<usize>)> {
    let of =
        |(name, data): (&String, &TensorData)| (name.clone(), data.shape().as_slice().to_vec());
    values.iter().map(of).collect()
}

pub(crate) fn fresh(config: &TrainConfig, initial: Values) -> Result<State, Error> {
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
        average: if averages(config) {
            values.clone()
        } else {
            Named::new()
        },
        values,
        optimiser: AdamW::default(),
        step: 0,
        recent: Default::default(),
        loss_scale: LossScale::new(config.optimise.precision),
    })
}

/// What a step did.
pub(crate) struct Done {
    pub(crate) record: StepRecord,
    /// What was done about a gradient that overflowed and was not used.
    overflowed: Option<String>,
    /// Why its gradient was not used for another reason.
    wrong: Option<String>,
    passed_over: Vec<String>,
}

pub(crate) fn step(
    config: &TrainConfig,
    objective: &dyn Objective,
    (ranks, share): (&dyn Ranks, &Share),
    shapes: &[(String, Vec<usize>)],
    state: &mut State,
    loader: &mut Loader,
) -> Result<Done, Error> {
    let started = Instant::now();
    let mut batch = loader.batch(share.count())?;
    let waited = started.elapsed().as_secs_f64();
    let passed_over = batch
        .iter_mut()
        .flat_map(|sample| std::mem::take(&mut sample.passed_over))
        .collect();
    // By the sample's number in the run, so that it does not matter which rank draws it, nor beside which others.
    let mine = state.step * share.count()..(state.step + 1) * share.count();
    let mut draws: Vec<_> = mine
        .map(|i| stream(config.seed, &format!("noise {}", share.sample(i))))
        .collect();
    let scale = state.loss_scale.scale();
    let lent = Lent::new(std::mem::take(&mut state.values), shapes);
    let evaluation = kernels::with_products(config.optimise.precision.products(), || {
        evaluate(
            objective,
            lent.values(),
            &batch,
            &mut draws,
            config.optimise.batch,
            scale,
        )
    });
    state.values = lent.back();
    let evaluation = total(ranks, share, shapes, evaluation?);
    let mut gradients = evaluation.gradients;
    state.loss_scale.unscale(&mut gradients);
    let gradient_norm = clip(&mut gradients, config.optimise.clip);
    let lr = learning_rate(&config.optimise, state.step);
    let overflowed = state.loss_scale.update(gradient_norm.is_finite());
    let verdict = match overflowed {
        Some(_) => Verdict::Sound,
        None => state
            .recent
            .judge(&config.guard, evaluation.loss, gradient_norm),
    };
    if verdict == Verdict::Sound && overflowed.is_none() {
        state
            .optimiser
            .step(&mut state.values, &gradients, lr, &config.optimise);
        if averages(config) {
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
            images: state.step * config.optimise.samples(),
            loss: evaluation.loss,
            gradient_norm,
            lr,
            loss_scale: (config.optimise.precision == Precision::F16).then_some(scale),
            seconds: started.elapsed().as_secs_f64(),
            waited,
        },
        overflowed,
        wrong: verdict.why(),
        passed_over,
    })
}

/// Loss and gradients of the samples of a step, `at_a_time` of them computed together: means over all, the gradients times
/// `scale`.
///
/// # Errors
/// As the objective's.
pub fn evaluate(
    objective: &dyn Objective,
    values: &Values,
    samples: &[Sample],
    draws: &mut [ChaCha8Rng],
    at_a_time: usize,
    scale: f32,
) -> Result<Evaluation, Error> {
    let mut sum: Option<Evaluation> = None;
    let all = samples.len() as f64;
    let batches = samples.chunks(at_a_time).zip(draws.chunks_mut(at_a_time));
    for (batch, draws) in batches {
        let mut one = objective.evaluate(values, batch, draws, scale)?;
        let part = batch.len() as f64 / all;
        if part != 1.0 {
            one.scale(part);
        }
        match &mut sum {
            Some(sum) => sum.add(one),
            none => *none = Some(one),
        }
    }
    Ok(sum.expect("a step has samples"))
}

fn averages(config: &TrainConfig) -> bool {
    config.optimise.ema_halflife_images > 0.0
}

/// Does something with the weights to use, the average where one is kept, and the step.
fn with_result<T>(
    config: &TrainConfig,
    shapes: &[(String, Vec<usize>)],
    state: &mut State,
    then: impl FnOnce(&Values, usize) -> Result<T, Error>,
) -> Result<T, Error> {
    let named = if averages(config) {
        &mut state.average
    } else {
        &mut state.values
    };
    let lent = Lent::new(std::mem::take(named), shapes);
    let done = then(lent.values(), state.step);
    *named = lent.back();
    done
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
    config.data.cache_text = false;
    config.guard = Default::default();
    let text = toml::to_string(&config).expect("plain TOML");
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_configurations_keep_their_hash() {
        let runs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini/runs");
        // The autoencoder's leg is older than `precision`, which its hash lacks.
        for run in ["joint-1", "joint-2", "joint-3"] {
            let read = |file: &str| {
                std::fs::read_to_string(format!("{runs}/{run}/{file}")).expect("committed")
            };
            let config = toml::from_str(&read("config.resolved.toml")).expect("a configuration");
            let about: serde_json::Value = serde_json::from_str(&read("run.json")).expect("JSON");
            assert_eq!(about["config_sha256"], hash(&config), "{run}");
        }
    }
}
