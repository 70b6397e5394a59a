//! `reclair degrade IN... -o OUT --preset NAME`: makes low-quality pictures and says what it drew.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Parser;
use pixels::{
    degrade::{Degradation, OutputSize, degrade},
    random::stream,
};

use super::jobs::{each, jobs, make_folder_for};

/// Arguments of `degrade`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// Pictures, or folders of pictures.
    #[arg(required = true, value_name = "IN")]
    inputs: Vec<PathBuf>,
    /// The result: a file, or a folder for results named STEM.png.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The degradation: realesrgan, mild, mixture, x8 or light.
    #[arg(long, default_value = "realesrgan")]
    preset: String,
    /// Seed; a picture's random stream derives from it and the file's name.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave the pictures at the low size instead of the input's.
    #[arg(long)]
    small: bool,
}

/// Runs it. A JSON line for each picture goes to stdout.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let law = Degradation::preset(&args.preset)?;
    let size = if args.small {
        OutputSize::Small
    } else {
        OutputSize::Input
    };
    let jobs = jobs(&args.inputs, &args.output)?;
    each(&jobs, |job| {
        let image = pixels::io::open(&job.input)?;
        let stem = Path::new(&job.name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let degraded = degrade(&image, &law, &mut stream(args.seed, &stem), size);
        make_folder_for(&job.output)?;
        pixels::io::save(&degraded.image, &job.output)?;
        let line = serde_json::json!({
            "name": job.name,
            "output": job.output,
            "descriptors": degraded.descriptors,
            "drawn": degraded.drawn,
        });
        writeln!(std::io::stdout(), "{line}")?;
        Ok(())
    })
}
