//! The command line: one file for each subcommand.

mod train;

use clap::{Parser, Subcommand};

/// Restores real photographs with a diffusion prior and a restoration adapter.
#[derive(Debug, Parser)]
#[command(name = "reclair", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train an autoencoder, a prior or an adapter.
    Train(train::Args),
}

/// Runs the program; the error, if any, is one line that says what to do.
///
/// # Errors
/// Whatever the subcommand met.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::run(&args),
    }
}

/// Sets the number of threads for everything that follows; all cores where none is given.
fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    anyhow::ensure!(threads > 0, "--threads 0 is not possible; give at least 1");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(())
}
