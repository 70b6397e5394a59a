//! `reclair eval --restored DIR --reference DIR`: scores pictures against references.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use pixels::{Image, colour::Luma, score};
use serde_json::{Map, Value, json};

/// Arguments of `eval`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Folder of pictures to score.
    #[arg(long)]
    restored: PathBuf,
    /// Folder of clean pictures with the same file stems.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// What to score, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Metric::Psnr, Metric::Ssim, Metric::Niqe, Metric::Detail])]
    metrics: Vec<Metric>,
    /// What PSNR, SSIM and NIQE look at; by default what pyiqa does: RGB for PSNR, YIQ luma for the others.
    #[arg(long, value_enum)]
    luma: Option<LumaArg>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Metric {
    /// Decibels, higher is better.
    Psnr,
    /// Up to 1, higher is better.
    Ssim,
    /// Naturalness without a reference, lower is better.
    Niqe,
    /// Share of the reference's gradient that is there, 1 is all of it.
    Detail,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LumaArg {
    Yiq,
    Ycbcr,
    Rgb,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::Psnr => "psnr",
            Self::Ssim => "ssim",
            Self::Niqe => "niqe",
            Self::Detail => "detail",
        }
    }

    fn score(
        self,
        image: &Image,
        reference: Option<&Image>,
        luma: Option<Luma>,
    ) -> anyhow::Result<f64> {
        let needed = || reference.with_context(|| format!("{} needs --reference", self.name()));
        Ok(match self {
            Self::Psnr => score::psnr(image, needed()?, luma.unwrap_or(Luma::Rgb))?,
            Self::Ssim => score::ssim(image, needed()?, luma.unwrap_or(Luma::Yiq))?,
            Self::Niqe => score::niqe(image, luma.unwrap_or(Luma::Yiq))?,
            Self::Detail => score::detail(image, needed()?)?,
        })
    }
}

/// Runs it. The table, or JSON, goes to stdout.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let luma = args.luma.map(|luma| match luma {
        LumaArg::Yiq => Luma::Yiq,
        LumaArg::Ycbcr => Luma::Ycbcr,
        LumaArg::Rgb => Luma::Rgb,
    });
    let restored = by_stem(&args.restored)?;
    ensure!(
        !restored.is_empty(),
        "{}: holds no pictures; give the folder of results",
        args.restored.display()
    );
    let references = args
        .reference
        .as_deref()
        .map(by_stem)
        .transpose()?
        .unwrap_or_default();
    let mut rows = Vec::new();
    let mut failed = 0;
    for (stem, path) in &restored {
        match row(
            args,
            stem,
            path,
            references.get(stem).map(PathBuf::as_path),
            luma,
        ) {
            Ok(row) => {
                let mut why: Vec<String> = row
                    .iter()
                    .filter_map(|score| score.as_ref().err().map(|error| format!("{error:#}")))
                    .collect();
                why.dedup();
                failed += usize::from(!why.is_empty());
                for why in why {
                    eprintln!("error: {stem}: {why}");
                }
                let row: Vec<Option<f64>> = row.into_iter().map(Result::ok).collect();
                if row.iter().any(Option::is_some) {
                    rows.push((stem.clone(), row));
                }
            }
            Err(error) => {
                failed += 1;
                eprintln!("error: {stem}: {error:#}");
            }
        }
    }
    if !rows.is_empty() {
        print(args, &rows)?;
    }
    ensure!(
        failed == 0,
        "{failed} of {} pictures could not be scored in all metrics",
        restored.len()
    );
    Ok(())
}

fn by_stem(folder: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!(
            "{}: cannot be read; give a folder of pictures",
            folder.display()
        )
    })?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_file() && pixels::io::is_picture_name(&path) {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(other) = found.insert(stem.clone(), path) {
                bail!(
                    "{}: two pictures are called {stem}; keep one",
                    other.display()
                );
            }
        }
    }
    Ok(found)
}

fn row(
    args: &Args,
    stem: &str,
    path: &Path,
    reference: Option<&Path>,
    luma: Option<Luma>,
) -> anyhow::Result<Vec<anyhow::Result<f64>>> {
    let image = pixels::io::open(path)?;
    if let (Some(folder), None) = (&args.reference, reference) {
        bail!(
            "{} has no picture called {stem}; give the matching folder",
            folder.display()
        );
    }
    let reference = reference.map(pixels::io::open).transpose()?;
    Ok(args
        .metrics
        .iter()
        .map(|metric| metric.score(&image, reference.as_ref(), luma))
        .collect())
}

/// What could not be scored is `null`, or a dash, and not in the mean.
fn print(args: &Args, rows: &[(String, Vec<Option<f64>>)]) -> anyhow::Result<()> {
    let mean = |i: usize| {
        let scores: Vec<f64> = rows.iter().filter_map(|(_, row)| row[i]).collect();
        (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
    };
    let named = |row: &[Option<f64>]| -> Map<String, Value> {
        args.metrics
            .iter()
            .zip(row)
            .map(|(metric, &value)| (metric.name().to_owned(), json!(value)))
            .collect()
    };
    let means: Vec<Option<f64>> = (0..args.metrics.len()).map(mean).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let image = |(name, row): &(String, Vec<Option<f64>>)| {
            let mut object = Map::from_iter([("name".to_owned(), json!(name))]);
            object.extend(named(row));
            Value::Object(object)
        };
        let images: Vec<Value> = rows.iter().map(image).collect();
        writeln!(
            out,
            "{}",
            json!({ "images": images, "mean": named(&means) })
        )?;
        return Ok(());
    }
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(4)
        .max(4);
    let line = |name: &str, row: &[Option<f64>]| {
        let value = |v: &Option<f64>| match v {
            Some(v) => format!("{v:>10.4}"),
            None => format!("{:>10}", "-"),
        };
        let values: String = row.iter().map(value).collect();
        format!("{name:<width$}{values}")
    };
    let header: String = args
        .metrics
        .iter()
        .map(|metric| format!("{:>10}", metric.name()))
        .collect();
    writeln!(out, "{:<width$}{header}", "name")?;
    for (name, row) in rows {
        writeln!(out, "{}", line(name, row))?;
    }
    writeln!(out, "{}", line("mean", &means))?;
    Ok(())
}
