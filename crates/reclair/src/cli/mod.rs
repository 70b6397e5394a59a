//! The command line: one file for each subcommand.

mod captioner;
mod convert;
mod data;
mod degrade;
#[cfg(feature = "hub")]
mod download;
mod eval;
mod export;
mod info;
mod jobs;
mod lora;
mod parts;
mod report;
mod restore;
mod table3;
mod tiling;
mod train;

use burn::tensor::Device;
use clap::{Parser, Subcommand, ValueEnum};
use priors::folder::{Folder, Given, Repository};
use reclair::embedded;

/// Restores real photographs with a diffusion prior and a restoration adapter.
#[derive(Debug, Parser)]
#[command(
    name = "reclair",
    version,
    arg_required_else_help = true,
    after_help = "Exit status: 0 all done, 1 something failed (the rest is done), 2 wrong usage, 130 stopped at once."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Restore pictures.
    Restore(Box<restore::Args>),
    /// Make low-quality pictures from good ones.
    Degrade(degrade::Args),
    /// Score restored pictures.
    Eval(eval::Args),
    /// Train an autoencoder, a prior or an adapter.
    Train(train::Args),
    /// Check, preview and caption training pictures.
    Data(data::Args),
    /// Write a training run's curves, scores and pictures as one HTML file.
    Report(report::Args),
    /// Download a prior from the Hugging Face hub, its licence shown first.
    #[cfg(feature = "hub")]
    Download(download::Args),
    /// Tell what a prior and an adapter are made of.
    Info(info::Args),
    /// Write a LoRA for other programs, or a prior with LoRA merged.
    Export(export::Args),
    /// Write a prior's or adapter's folder in another number format.
    Convert(convert::Args),
}

/// Runs the program; the error, if any, is one line that says what to do.
///
/// # Errors
/// Whatever the subcommand met.
pub(crate) fn main() -> anyhow::Result<()> {
    let command = Cli::parse().command;
    for ignored in kernels::ignored_settings() {
        eprintln!("note: {ignored}");
    }
    match command {
        Command::Restore(args) => restore::run(&args),
        Command::Degrade(args) => degrade::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Report(args) => report::run(&args),
        #[cfg(feature = "hub")]
        Command::Download(args) => download::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Convert(args) => convert::run(&args),
    }
}

/// Where the networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// The CPU.
    Cpu,
    /// The first GPU of the backends this program was built with.
    Gpu,
}

impl On {
    /// The device itself.
    fn device(self) -> anyhow::Result<Device> {
        let gpu = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Gpu if gpu => Ok(Device::default()),
            Self::Gpu => anyhow::bail!(
                "this program was built for the CPU only; build it with `--features vulkan` (or metal, cuda), or leave --device out"
            ),
        }
    }
}

/// Bytes of a thread's stack, as the main thread has them: networks run on the pool's threads.
const STACK: usize = 8 << 20;

/// Sets the number of threads for everything that follows; all cores where none is given.
fn set_threads(threads: Option<usize>) -> anyhow::Result<()> {
    anyhow::ensure!(
        threads != Some(0),
        "--threads 0 is not possible; give at least 1"
    );
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .stack_size(STACK)
        .build_global()?;
    Ok(())
}

/// What was said about licences; without downloads there is nothing to say.
#[cfg(feature = "hub")]
use download::Consent;
#[cfg(not(feature = "hub"))]
#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct Consent {}

/// The prior that `--prior` names: `mini`, what stands at a path, or a repository in Hugging Face's cache or on the hub; with
/// the parts that are given in place of its own. Says which file each part comes from where that can be asked.
fn prior(name: &str, parts: &parts::Parts, consent: Consent) -> anyhow::Result<Folder> {
    let prior = find_prior(name, &parts.given(), consent)?;
    for source in prior.sources() {
        eprintln!("prior: {source}");
    }
    Ok(prior)
}

fn find_prior(name: &str, given: &Given, consent: Consent) -> anyhow::Result<Folder> {
    match name {
        "mini" => Ok(embedded::mini_prior().with_parts(given)?),
        _ if table3::Model::named(name).is_some() && !std::path::Path::new(name).exists() => {
            anyhow::bail!(
                "{name} is not embedded; give its diffusers folder or safetensors checkpoint"
            )
        }
        path if std::path::Path::new(path).exists() => Ok(Folder::open_with(path.as_ref(), given)?),
        id => match Repository::parse(id) {
            Some(repository) => of_repository(&repository, given, consent),
            None => Ok(Folder::open_with(id.as_ref(), given)?),
        },
    }
}

#[cfg(feature = "hub")]
use download::prior as of_repository;

/// The prior of a repository in Hugging Face's cache.
#[cfg(not(feature = "hub"))]
fn of_repository(repository: &Repository, given: &Given, _: Consent) -> anyhow::Result<Folder> {
    let id = repository.to_string();
    if repository.snapshot().is_none() && !repository.folder().is_some_and(|folder| folder.is_dir())
    {
        anyhow::bail!(
            "{id} is no file, no folder and nothing in Hugging Face's cache; give a prior's folder or safetensors file, or build reclair without `--no-default-features` to download it"
        );
    }
    Ok(Folder::open_with(id.as_ref(), given)?)
}

/// The adapter that `--adapter` names; mini's own where none is given for mini.
fn adapter(name: Option<&str>, prior: &str) -> Option<Folder> {
    match name {
        Some("none") => None,
        Some(folder) => Some(Folder::Disk(folder.into())),
        None => (prior == "mini").then(embedded::mini_adapter),
    }
}

/// Refuses an option outside its range.
fn in_range(option: &str, value: f64, low: f64, high: f64) -> anyhow::Result<()> {
    anyhow::ensure!(
        (low..=high).contains(&value),
        "{option} {value} is not possible; give {low} to {high}"
    );
    Ok(())
}
