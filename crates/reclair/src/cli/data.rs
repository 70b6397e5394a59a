//! `reclair data check|preview|caption DIR`: what one does with pictures before training on them.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use pixels::{Image, io::Format};
use train::{
    check::{Limits, check},
    config::{Data, Mix, Small, TrainConfig},
    data::{Photos, Sample, pictures},
    report::html::{escape, image_tag},
    validate::grid,
};

use super::jobs::make_folder_for;

/// Arguments of `data`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find pictures that should not be trained on: unreadable, too small, the same twice, enlarged or blurred, heavily
    /// compressed.
    Check(CheckArgs),
    /// Make a sheet of training pairs; a JSON line for each says what was drawn.
    Preview(PreviewArgs),
    /// Write a caption beside each picture that has none.
    Caption(CaptionArgs),
}

#[derive(Debug, Parser)]
struct CheckArgs {
    /// A folder of pictures or WebDataset shards, or one shard.
    #[arg(value_name = "DIR")]
    images: PathBuf,
    /// The shortest side that is not too small, pixels.
    #[arg(long, default_value_t = Limits::default().side_px)]
    min_side: usize,
    /// The lowest JPEG quality that is not a finding.
    #[arg(long, default_value_t = Limits::default().jpeg_quality)]
    min_quality: u8,
    /// How much larger steps at one place of a grid of 8 pixels may be than at the next strongest.
    #[arg(long, default_value_t = Limits::default().blockiness)]
    max_blockiness: f64,
    /// The least power of the finest detail relative to coarser detail.
    #[arg(long, default_value_t = Limits::default().fineness)]
    min_fineness: f64,
    /// Print a JSON line for each finding.
    #[arg(long)]
    json: bool,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Parser)]
struct PreviewArgs {
    /// A folder of pictures or WebDataset shards, or one shard; with --config what the configuration names.
    #[arg(value_name = "DIR", required_unless_present = "config")]
    images: Option<PathBuf>,
    /// A training configuration whose section [data] and seed are used: the first samples of that run.
    #[arg(long, value_name = "CONFIG", conflicts_with_all = ["preset", "crop", "seed"])]
    config: Option<PathBuf>,
    /// The degradation: realesrgan, mild, mixture, x8 or light.
    #[arg(long, default_value = "realesrgan")]
    preset: String,
    /// Side of the crops, pixels.
    #[arg(long, default_value_t = 256)]
    crop: usize,
    /// How many pairs.
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The sheet: a picture, clean and degraded side by side, or with a name in .html a page with what was drawn.
    #[arg(short, long, default_value = "preview.png", value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Parser)]
struct CaptionArgs {
    /// A folder of pictures.
    #[arg(value_name = "DIR")]
    images: PathBuf,
    /// A command that gets a picture's path as its last argument and prints one line.
    #[arg(long, value_name = "CMD")]
    captioner: String,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Check(args) => run_check(args),
        Command::Preview(args) => preview(args),
        Command::Caption(args) => caption(args),
    }
}

fn run_check(args: &CheckArgs) -> anyhow::Result<()> {
    super::set_threads(args.threads)?;
    let limits = Limits {
        side_px: args.min_side,
        jpeg_quality: args.min_quality,
        blockiness: args.max_blockiness,
        fineness: args.min_fineness,
    };
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{pos} pictures  {elapsed}")?);
    let checked = check(&args.images, &limits, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let mut stdout = std::io::stdout().lock();
    for finding in &checked.findings {
        if args.json {
            writeln!(stdout, "{}", serde_json::to_string(finding)?)?;
        } else {
            let kind = finding.kind.name();
            writeln!(stdout, "{}: {kind}: {}", finding.file, finding.detail)?;
        }
    }
    eprintln!(
        "{} pictures, {} with a caption: {} findings",
        checked.pictures,
        checked.captions,
        checked.findings.len()
    );
    Ok(())
}

fn preview(args: &PreviewArgs) -> anyhow::Result<()> {
    ensure!(args.count > 0, "--count 0 shows nothing; give at least 1");
    let (mut data, seed) = match &args.config {
        Some(config) => {
            let config = TrainConfig::read(config)?;
            (config.data, config.seed)
        }
        None => (plain(args)?, args.seed),
    };
    if let Some(images) = &args.images {
        data.images.clone_from(images);
    }
    let page = args.output.extension().is_some_and(|e| e == "html");
    if !page {
        Format::from_path(&args.output)?;
    }
    let photos = Photos::open(&data, seed)?;
    if let Some(note) = photos.note() {
        eprintln!("note: {note}");
    }
    let samples: Result<Vec<Sample>, _> = (0..args.count).map(|i| photos.sample(i)).collect();
    let samples = samples?;
    make_folder_for(&args.output)?;
    if page {
        priors::weights::write_atomically(&args.output, html(&samples)?.as_bytes())?;
    } else {
        let row = |sample: &Sample| vec![sample.hq.clone(), sample.lq.clone()];
        let rows: Vec<Vec<Image>> = samples.iter().map(row).collect();
        pixels::io::save(&grid(&rows), &args.output)?;
    }
    let mut stdout = std::io::stdout().lock();
    for sample in &samples {
        writeln!(stdout, "{}", line(sample))?;
    }
    eprintln!("{}", args.output.display());
    Ok(())
}

/// The data of a preview without a configuration.
fn plain(args: &PreviewArgs) -> anyhow::Result<Data> {
    ensure!(
        args.crop > 0,
        "--crop 0 is not possible; give at least 1 pixel"
    );
    Ok(Data {
        images: PathBuf::new(),
        validation: None,
        crop_px: args.crop,
        small: Small::default(),
        reduce: [1.0, 1.0],
        degradations: vec![Mix {
            preset: Some(args.preset.clone()),
            law: None,
            weight: 1.0,
        }],
        cache_mb: 0,
        workers: 1,
        null_text: 0.0,
        cache_text: false,
        cache_latents: 0,
    })
}

fn line(sample: &Sample) -> serde_json::Value {
    serde_json::json!({
        "name": sample.name,
        "caption": sample.caption,
        "descriptors": sample.descriptors,
        "drawn": sample.drawn,
        "passed_over": sample.passed_over,
    })
}

/// The sheet as a page: pairs with what was drawn for them.
fn html(samples: &[Sample]) -> anyhow::Result<String> {
    let mut page = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<title>Training pairs</title>\n\
        <style>body{font:14px/1.4 system-ui,sans-serif;margin:2em}img{max-width:48%}pre{white-space:pre-wrap}</style>\n\
        <h1>Training pairs: clean, degraded</h1>\n"
        .to_owned();
    for sample in samples {
        let drawn: Vec<String> = sample
            .drawn
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        page += &format!(
            "<h2>{}</h2>\n<p>{}<br><b>{}</b></p>\n{}\n{}\n<pre>{}</pre>\n",
            escape(&sample.name),
            escape(&sample.caption),
            sample.descriptors.join(", "),
            // Lossless: what compression did is what one looks for.
            image_tag(&sample.hq, Format::Png, "clean")?,
            image_tag(&sample.lq, Format::Png, "degraded")?,
            escape(&drawn.join("\n"))
        );
    }
    Ok(page)
}

fn caption(args: &CaptionArgs) -> anyhow::Result<()> {
    let pictures = pictures(&args.images)?;
    let files: Vec<&Path> = pictures
        .iter()
        .filter_map(|picture| picture.file())
        .collect();
    ensure!(
        files.len() == pictures.len(),
        "{}: captions are written beside pictures, not into shards; caption the pictures before they are packed",
        args.images.display()
    );
    let bar = ProgressBar::new(files.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len}  {eta} to go",
    )?);
    let (mut asked, mut failed) = (0, 0);
    for path in &files {
        match super::captioner::caption(&args.captioner, path) {
            Ok((_, new)) => asked += usize::from(new),
            Err(why) => {
                failed += 1;
                bar.suspend(|| eprintln!("error: {why:#}"));
                // A command that never works is not asked a thousand times.
                ensure!(
                    asked > 0 || failed < 3,
                    "the captioner failed on the first pictures; correct the command"
                );
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    eprintln!("{} pictures, {asked} captions written", files.len());
    ensure!(
        failed == 0,
        "{failed} pictures have no caption; the others have; run it again for these"
    );
    Ok(())
}
