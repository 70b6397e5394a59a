//! `reclair report RUN_DIR`: a training run as one HTML file.

use std::path::PathBuf;

use clap::Parser;

/// Arguments of `report`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The `out` folder of a training run, also of one that is under way.
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    /// The report [default: report.html in RUN_DIR].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let output = match &args.output {
        Some(output) => output.clone(),
        None => args.run.join("report.html"),
    };
    train::report::write(&args.run, &output)?;
    eprintln!("{}", output.display());
    Ok(())
}
