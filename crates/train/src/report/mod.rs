//! A run as one HTML file: curves, scores, pictures over time, notes and configuration.
//!
//! It is made from what lies in the run's folder (`log.jsonl`, `grid-*.png`, `config.resolved.toml`, `run.json`), so also of a run
//! that is under way or was killed. Curves are inline SVG, pictures inline JPEG; nothing is fetched and nothing runs.

mod chart;
pub mod html;
mod log;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use pixels::io::Format;

use crate::{Error, folder};
use chart::{Axis, Series, chart};
use html::{escape, image_tag};
use log::Log;

/// The most grids that are shown, the first and the last among them.
const GRIDS: usize = 12;

/// The most notes that are shown; the last ones.
const NOTES: usize = 50;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.2em 1em .2em 0;text-align:left;vertical-align:top}\
svg{width:100%;height:auto}figure{margin:0 0 1.5em}img{max-width:100%}pre{background:#f5f5f5;padding:1em;overflow:auto}";

/// Writes the report of the run in `folder` to `path`.
///
/// # Errors
/// A folder without a log, an unreadable picture, a full disk.
pub fn write(folder: &Path, path: &Path) -> Result<(), Error> {
    let page = page(folder)?;
    Ok(priors::weights::write_atomically(path, page.as_bytes())?)
}

/// The report's text.
///
/// # Errors
/// As [`write()`].
pub fn page(folder: &Path) -> Result<String, Error> {
    let log_path = folder.join(folder::LOG);
    let text = std::fs::read_to_string(&log_path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Input(format!(
            "{}: has no {}; give the `out` folder of a training run",
            folder.display(),
            folder::LOG
        )),
        _ => Error::io(&log_path, source),
    })?;
    let log = Log::read(&text);
    let optional = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let config = optional("config.resolved.toml");
    let name = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{0}</title>\n<style>{STYLE}</style>\n<h1>Training run {0}</h1>\n",
        escape(&name)
    );
    page += &summary(&log, config.as_deref(), optional("run.json").is_some());
    page += &curves(&log);
    page += &pictures(folder)?;
    page += &notes(&log);
    for (title, text) in [("Configuration", config), ("Result", optional("run.json"))] {
        if let Some(text) = text {
            let text = escape(text.trim());
            let _ = writeln!(page, "<h2>{title}</h2>\n<pre>{text}</pre>");
        }
    }
    Ok(page)
}

/// The table at the top.
fn summary(log: &Log, config: Option<&str>, ended: bool) -> String {
    let config: Option<toml::Table> = config.and_then(|text| text.parse().ok());
    let steps = config
        .as_ref()
        .and_then(|c| c.get("optimise")?.get("steps")?.as_integer());
    let stage = config.as_ref().and_then(|c| c.get("stage")?.as_str());
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    if let Some(stage) = stage {
        row("Stage", stage.to_owned());
    }
    let of = steps.map_or(String::new(), |steps| format!(" of {steps}"));
    let state = if ended { "" } else { ", no result written yet" };
    row("Steps", format!("{}{of}{state}", log.last_step()));
    if let (Some(images), Some(seconds)) = (log.last("images"), log.seconds()) {
        row("Samples seen", format!("{images}"));
        row("Time in steps", duration(seconds));
        row("Samples a second", format!("{:.2}", images / seconds));
        let waited = log.sum("waited");
        row(
            "Time waiting for samples",
            format!("{:.1} %", 100.0 * waited / seconds),
        );
    }
    if let Some(loss) = log.smoothed("loss").last() {
        row("Loss, smoothed", format!("{:.5}", loss.1));
    }
    if let Some((step, best)) = log
        .points("validation_psnr")
        .into_iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
    {
        row(
            "Best validation PSNR",
            format!("{best:.2} dB at step {step}"),
        );
    }
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value)))
        .collect();
    format!("<table>\n{rows}</table>\n")
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn curves(log: &Log) -> String {
    let series = |name, key: &str, colour| Series::thick(name, colour, log.points(key));
    let both = |key: &str| {
        vec![
            Series::thin("each step", "#9bc", log.points(key)),
            Series::thick("smoothed", "#07c", log.smoothed(key)),
        ]
    };
    let charts = [
        ("Loss", Axis::Fitting, both("loss")),
        (
            "Gradient norm before clipping",
            Axis::Fitting,
            both("gradient_norm"),
        ),
        (
            "Validation PSNR, dB",
            Axis::Linear,
            vec![
                series("result", "validation_psnr", "#07c"),
                series("low-quality input", "validation_lq_psnr", "#c70"),
            ],
        ),
        (
            "Validation SSIM and detail",
            Axis::Linear,
            vec![
                series("SSIM", "validation_ssim", "#07c"),
                series("detail", "validation_detail", "#283"),
            ],
        ),
        (
            "Learning rate",
            Axis::Linear,
            vec![series("rate", "lr", "#07c")],
        ),
        (
            "Seconds a step",
            Axis::Linear,
            vec![
                Series::thick("in all", "#07c", log.smoothed("seconds")),
                Series::thick("waiting for samples", "#c70", log.smoothed("waited")),
            ],
        ),
    ];
    charts
        .into_iter()
        .filter(|(_, _, series)| series.iter().any(|series| !series.points.is_empty()))
        .map(|(title, axis, series)| {
            format!(
                "<h2>{title}</h2>\n<figure>{}</figure>\n",
                chart(title, axis, &series)
            )
        })
        .collect()
}

/// The validation grids, oldest first, thinned out evenly.
fn pictures(folder: &Path) -> Result<String, Error> {
    let mut grids: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|source| Error::io(folder, source))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| step_of(path).is_some())
        .collect();
    grids.sort();
    if grids.is_empty() {
        return Ok(String::new());
    }
    let shown = grids.len().min(GRIDS);
    let mut page = format!(
        "<h2>Pictures</h2>\n<p>{shown} of {} validation grids. A row is one picture; the last column is the result that is scored.</p>\n",
        grids.len()
    );
    for i in 0..shown {
        let at = (i * (grids.len() - 1)).checked_div(shown - 1).unwrap_or(0);
        let path = &grids[at];
        let step = step_of(path).unwrap_or_default();
        let tag = image_tag(
            &pixels::io::open(path)?,
            Format::Jpeg,
            &format!("step {step}"),
        )?;
        let _ = writeln!(
            page,
            "<figure>{tag}<figcaption>Step {step}</figcaption></figure>"
        );
    }
    Ok(page)
}

/// The step of `grid-0000200.png`.
fn step_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_prefix("grid-")?.strip_suffix(".png")?;
    digits.parse().ok()
}

fn notes(log: &Log) -> String {
    if log.notes.is_empty() {
        return String::new();
    }
    let from = log.notes.len().saturating_sub(NOTES);
    let rows: String = log.notes[from..]
        .iter()
        .map(|(step, kind, why)| {
            let kind = kind.replace('_', " ");
            format!(
                "<tr><td>{step}</td><td>{kind}</td><td>{}</td></tr>\n",
                escape(why)
            )
        })
        .collect();
    format!(
        "<h2>Notes</h2>\n<p>The last {} of {}.</p>\n<table><tr><th>Step</th><th></th><th></th></tr>\n{rows}</table>\n",
        log.notes.len() - from,
        log.notes.len()
    )
}
