//! `reclair download OWNER/NAME`: a prior from the Hugging Face hub, its licence shown first.

use std::io::{IsTerminal, Write};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use priors::folder::{Folder, Given, Repository};
use reclair::hub::{Hub, Listing};

/// Arguments of `download`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The model's repository: OWNER/NAME, or OWNER/NAME@REVISION for a branch, tag or commit.
    #[arg(value_name = "OWNER/NAME[@REVISION]")]
    repository: String,
    #[command(flatten)]
    consent: Consent,
}

/// What the user said about licences before being asked.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Consent {
    /// Accept the licence of a prior that is downloaded, which is shown, without being asked.
    #[arg(long)]
    accept_license: bool,
}

/// Runs it; prints where the prior is.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let repository = Repository::parse(&args.repository).ok_or_else(|| {
        anyhow::anyhow!(
            "{} is no model's name on the hub; give OWNER/NAME, or OWNER/NAME@REVISION",
            args.repository
        )
    })?;
    let folder = prior(&repository, &Given::default(), args.consent)?;
    writeln!(std::io::stdout(), "{}", folder.path("").display())?;
    Ok(())
}

/// The prior of a repository, downloaded where the cache has not all of it, with the parts that are given in place of its own.
pub(super) fn prior(
    repository: &Repository,
    given: &Given,
    consent: Consent,
) -> anyhow::Result<Folder> {
    let id = repository.to_string();
    match Folder::open(id.as_ref()) {
        Ok(folder) if folder.lacks().is_none() => {
            return Ok(Folder::open_with(id.as_ref(), given)?);
        }
        Err(why @ priors::Error::Unsupported { .. }) => return Err(why.into()),
        // Not there, or what a broken download left.
        _ => (),
    }
    Ok(Folder::open_with(&fetch(repository, consent)?, given)?)
}

fn fetch(repository: &Repository, consent: Consent) -> anyhow::Result<std::path::PathBuf> {
    let hub = Hub::from_env().map_err(|why| anyhow::anyhow!("{repository}: {why}"))?;
    let listing = hub.listing(repository)?;
    show(&listing);
    agree(&listing, consent)?;
    let bar = ProgressBar::new(listing.bytes());
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go  {msg}",
    )?);
    let snapshot = hub.download(&listing, &mut |bytes, file| {
        bar.set_position(bytes);
        bar.set_message(file.to_owned());
    });
    bar.finish_and_clear();
    Ok(snapshot?)
}

/// What will be downloaded, and its licence.
fn show(listing: &Listing) {
    let licence = &listing.licence;
    eprintln!(
        "{} at {}: {} files, {:.2} GB",
        listing.repository.id(),
        listing.commit,
        listing.files.len(),
        listing.bytes() as f64 / 1e9
    );
    let name = licence.name.as_deref().unwrap_or("not stated");
    match &licence.link {
        Some(link) => eprintln!("licence: {name} ({link})"),
        None => eprintln!("licence: {name}"),
    }
    if let Some(text) = &licence.text {
        eprintln!("\n{}\n", text.trim());
    }
}

/// Asks on a terminal; elsewhere the user must have said so before.
fn agree(listing: &Listing, consent: Consent) -> anyhow::Result<()> {
    if consent.accept_license {
        return Ok(());
    }
    let id = &listing.repository;
    anyhow::ensure!(
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        "{id} is not in Hugging Face's cache; to download it under the licence above give `reclair download {id} --accept-license`"
    );
    eprint!("Accept this licence and download? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    anyhow::ensure!(
        yes,
        "{id} was not downloaded, as its licence was not accepted; give a prior's folder or file that you have"
    );
    Ok(())
}
