//! A training run from its configuration to its result: steps, log, checkpoints, validation.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::Device;
use kernels::Products;
use priors::weights::Values;

pub use crate::step::{StepRecord, evaluate};
use crate::{
    Error, about,
    checkpoint::State,
    config::{Gradient, Stage, TrainConfig},
    data::{Loader, Photos},
    disk::free_bytes,
    folder::OutFolder,
    guard::Action,
    lent::Lent,
    objective::{Denoise, Encoder, Objective, Said, Vae, folder_of},
    origin::Origin,
    output::Output,
    ranks::{Ranks, Share, agree, any},
    report, self_test,
    start::{copy_rest, write_part},
    step::{averages, fresh, shapes_of, step},
    validate::{Scores, Validation},
};

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

/// What a run asks the machine before it begins; a test answers in its place.
struct Machine {
    /// As [`self_test::check`].
    gradients: fn(&Device, Gradient, Products) -> Result<f64, Error>,
    /// As [`free_bytes`].
    free_bytes: fn(&Path) -> Option<u64>,
}

/// How many samples the autoencoder's latents are measured on.
const MEASURED: usize = 64;

/// Runs `config` to its end, from its checkpoint if there is one, together with the other ranks. `stop` on any of them ends
/// it after the step under way, with a checkpoint.
///
/// # Errors
/// Unusable files, another run in the same folder, a device that computes wrong gradients, a loss that [`crate::guard`] stops at, a disk that is full or
/// would be. The last checkpoint stays
/// whole. An error of one rank alone is not known to the others, which wait for it: [`Ranks::abort`] ends them.
pub fn run(
    config: &TrainConfig,
    device: &Device,
    ranks: &dyn Ranks,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let machine = Machine {
        gradients: self_test::check,
        free_bytes,
    };
    run_on(&machine, config, device, ranks, stop, watch)
}

fn run_on(
    machine: &Machine,
    config: &TrainConfig,
    device: &Device,
    ranks: &dyn Ranks,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Event),
) -> Result<(), Error> {
    let share = Share::new(config.optimise.samples(), ranks)?;
    let optimise = &config.optimise;
    let off = (machine.gradients)(device, optimise.gradient, optimise.precision.products())?;
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
    let photos = Photos::open(&config.data, config.seed)?;
    let listed = photos.list_hash()?;
    let latents = objective.latents(&listed)?;
    // Every rank writes latents, maybe to a disk of its own; the first writes checkpoints beside them.
    if let Some((cache, bytes)) = &latents {
        cache.check_room(*bytes)?;
    }
    let latent_bytes = (latents.as_ref()).map_or(0, |(cache, bytes)| cache.missing_bytes(*bytes));
    let photos = Arc::new(photos.with_latents(latents.map(|(cache, _)| cache)));
    let origin = Origin::of(config, listed)?;
    let initial = objective.initial()?;
    let shapes = shapes_of(&initial);
    let mut state = match State::load(&config.out, &origin)? {
        Some(state) => {
            drop(initial);
            state
        }
        None => fresh(config, initial)?,
    };
    let output = Output::of(config, &shapes)?;
    let has_room = || {
        let free = (machine.free_bytes)(&config.out);
        output.check_room(&config.out, latent_bytes, free)
    };
    let mut out = None;
    if writes {
        has_room()?;
        let folder = OutFolder::open(&config.out, state.step)?;
        folder.write(
            "config.resolved.toml",
            &toml::to_string(config).expect("plain TOML"),
        )?;
        out = Some(folder);
    }
    let validation = Validation::open(config)?;
    let mut notes: Vec<String> = photos.note().into_iter().collect();
    notes.extend(validation.note());
    objective.prepare(&photos, stop, &mut |said| match said {
        Said::Progress(text) => watch(Event::Note(text)),
        Said::Note(text) => notes.push(text),
    })?;
    if let Some(out) = &mut out {
        // Prompts that were read meanwhile lie on the same disk.
        has_room()?;
        // Said by whoever started the run, for every command.
        for ignored in kernels::ignored_settings() {
            out.keep(state.step, ignored, watch)?;
        }
        for note in notes {
            out.note(state.step, note, watch)?;
        }
    }
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
    if !matches!(config.stage, Stage::Adapter | Stage::Encoder) {
        let prior = config.out.join("prior");
        if config.vae_model.is_some() {
            write_part(&folder_of(config)?, "vae", &prior)?;
        }
        copy_rest(&config.model, &prior)?;
    }
    let mut record = serde_json::json!({
        "stage": config.stage,
        "steps": state.step,
        "images": state.step * batch,
        "config_sha256": origin.config,
        "data_list_sha256": origin.data,
        "fingerprints": origin.files,
        "reclair": env!("CARGO_PKG_VERSION"),
    });
    // Reading every photograph takes long: not for a run that was told to stop and will be resumed.
    if state.step == config.optimise.steps {
        match photos.hash() {
            Ok(hash) => record["data_sha256"] = hash.into(),
            Err(why) => watch(Event::Note(format!(
                "run.json lacks the data's hash: {why}"
            ))),
        }
    }
    if let serde_json::Value::Object(training) = &record {
        about::write(config, training)?;
    }
    out.write(
        "run.json",
        &serde_json::to_string_pretty(&record).expect("plain JSON"),
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

#[cfg(test)]
mod tests;
