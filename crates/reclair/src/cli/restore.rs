//! `reclair restore IN... -o OUT`: restores pictures.

mod args;

use std::{collections::BTreeSet, io::Write, time::Instant};

use indicatif::{ProgressBar, ProgressStyle};
use restore::{
    options::{RestoreOptions, Start},
    restorer::{Event, Restorer},
};

pub(super) use self::args::Args;
use super::jobs::{Job, each, jobs, make_folder_for};

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    super::set_threads(args.threads)?;
    args.check()?;
    let jobs = jobs(&args.inputs, &args.output)?;
    let restorer = args.restorer()?;
    for note in restorer.notes() {
        eprintln!("note: {note}");
    }
    let options = args.options(&restorer)?;
    if options.start == Start::Noise && !restorer.has_adapter() {
        eprintln!(
            "note: from pure noise and without an adapter the result has little to do with the picture; add --adapter, or --start lq"
        );
    }
    let mut said = BTreeSet::new();
    each(&jobs, |job| {
        if args.dry_run {
            return plan(job, &restorer, &options, args.json);
        }
        let mut options = options.clone();
        if let Some(command) = &args.captioner {
            options.prompt = super::captioner::caption(command, &job.input)?.0;
        }
        let line = one(job, &restorer, &options, &mut said)?;
        if args.json {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok(())
    })
}

/// Prints what one picture will take.
fn plan(
    job: &Job,
    restorer: &Restorer,
    options: &RestoreOptions,
    json: bool,
) -> anyhow::Result<()> {
    let plan = restorer.rehearse(&pixels::io::open(&job.input)?, options)?;
    let out = &mut std::io::stdout();
    if json {
        let line = serde_json::json!({ "input": job.input, "plan": plan });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    let [[w, h], [pw, ph], [tw, th]] = [plan.result_px, plan.padded_px, plan.tile_px];
    let memory = plan
        .peak_bytes
        .map_or("unknown on this system".to_owned(), |bytes| {
            format!("about {:.0} MB", bytes as f64 / 1e6)
        });
    let reading = match plan.reading_seconds {
        ..0.5 => String::new(),
        seconds => format!(" ({seconds:.0} s more when its files must be read from the disk)"),
    };
    writeln!(
        out,
        "{}: {w}x{h} (padded {pw}x{ph}), tiles of {tw}x{th}: {} for the denoiser with {} calls each, {} for the autoencoder; about {:.0} s{reading}; peak memory {memory}",
        job.input.display(),
        plan.tiles,
        plan.calls,
        plan.vae_tiles,
        plan.seconds
    )?;
    Ok(())
}

/// Restores one picture; returns what was done.
fn one(
    job: &Job,
    restorer: &Restorer,
    options: &RestoreOptions,
    said: &mut BTreeSet<String>,
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
    let restored = restorer.restore(&image, options, &mut |event| match event {
        Event::Note(note) => {
            let note = note.to_string();
            if said.insert(note.clone()) {
                bar.suspend(|| eprintln!("note: {note}"));
            }
        }
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
