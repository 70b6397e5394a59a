//! Which pictures a command works on and where each result goes; one bad picture stops no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use walkdir::WalkDir;

/// One picture to work on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// The file to read.
    pub(super) input: PathBuf,
    /// The file to write.
    pub(super) output: PathBuf,
    /// Its path below the folder that was given: its name in progress and records; the stem seeds what `degrade` draws.
    pub(super) name: String,
}

/// The jobs of `inputs` (files or folders) for `output`.
///
/// Into a folder, results are named `STEM.png` (`STEM.EXT.png` where two share a stem), below the same subfolders as their inputs. `output` is
/// a folder when it is one, ends in a slash, or has to hold more than one picture. Files of a folder
/// that are no pictures by name are skipped and said.
///
/// # Errors
/// An input that does not exist, nothing to do, two inputs with one output, or an output that is an input.
pub(super) fn jobs(inputs: &[PathBuf], output: &Path) -> anyhow::Result<Vec<Job>> {
    let many = inputs.len() > 1 || inputs.iter().any(|input| input.is_dir());
    let slash = output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let into_folder = many || slash || output.is_dir();
    if into_folder && output.is_file() {
        bail!(
            "{}: is a file, and more than one picture would go there; give a folder",
            output.display()
        );
    }
    let mut jobs = Vec::new();
    for input in inputs {
        if input.is_dir() {
            from_folder(input, output, &mut jobs)?;
        } else {
            let name = input
                .file_name()
                .map(PathBuf::from)
                .unwrap_or_else(|| input.clone());
            let output = if into_folder {
                output.join(name.with_extension("png"))
            } else {
                output.to_owned()
            };
            jobs.push(Job {
                input: input.clone(),
                output,
                name: name.to_string_lossy().into_owned(),
            });
        }
    }
    ensure!(
        !jobs.is_empty(),
        "no pictures in what was given; name JPEG, PNG, WebP, BMP or TIFF files"
    );
    keep_apart(&mut jobs)?;
    keep_originals(&jobs)?;
    Ok(jobs)
}

/// Refuses to write over a picture that is to be read.
fn keep_originals(jobs: &[Job]) -> anyhow::Result<()> {
    let inputs: BTreeSet<PathBuf> = jobs
        .iter()
        .filter_map(|job| job.input.canonicalize().ok())
        .collect();
    for job in jobs {
        let output = job.output.canonicalize().ok();
        ensure!(
            !output.is_some_and(|output| inputs.contains(&output)),
            "{}: is one of the pictures to read and would be written over; choose another output",
            job.output.display()
        );
    }
    Ok(())
}

/// Two pictures of one stem keep their extensions: `a.jpg` and `a.png` become `a.jpg.png` and `a.png.png`.
fn keep_apart(jobs: &mut [Job]) -> anyhow::Result<()> {
    let mut count: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for job in jobs.iter() {
        *count.entry(job.output.clone()).or_default() += 1;
    }
    let mut seen = BTreeSet::new();
    for job in jobs {
        if count[&job.output] > 1 {
            let extension = job.input.extension().unwrap_or_default().to_string_lossy();
            job.output.set_extension(format!("{extension}.png"));
        }
        ensure!(
            seen.insert(job.output.clone()),
            "{} and another picture would both become {}; give them one at a time",
            job.input.display(),
            job.output.display()
        );
    }
    Ok(())
}

fn from_folder(folder: &Path, output: &Path, jobs: &mut Vec<Job>) -> anyhow::Result<()> {
    let mut skipped = Vec::new();
    // Results of an earlier run are not pictures to work on.
    let results = output.canonicalize().ok();
    let is_results =
        |path: &Path| path != folder && results.is_some() && path.canonicalize().ok() == results;
    let entries = WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !(entry.file_type().is_dir() && is_results(entry.path())));
    for entry in entries {
        let entry = entry.with_context(|| {
            format!("{}: cannot be searched; check its rights", folder.display())
        })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let below = entry.path().strip_prefix(folder).unwrap_or(entry.path());
        if pixels::io::is_picture_name(entry.path()) {
            jobs.push(Job {
                input: entry.path().to_owned(),
                output: output.join(below.with_extension("png")),
                name: below.to_string_lossy().into_owned(),
            });
        } else {
            skipped.push(below.display().to_string());
        }
    }
    if !skipped.is_empty() {
        let some = skipped[..skipped.len().min(3)].join(", ");
        eprintln!(
            "skipped {} files that are no pictures by name: {some}",
            skipped.len()
        );
    }
    Ok(())
}

/// Does `work` for every job; a failure is said and the others go on.
///
/// # Errors
/// That some failed, and how many.
pub(super) fn each(
    jobs: &[Job],
    mut work: impl FnMut(&Job) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failed = 0;
    for job in jobs {
        if let Err(error) = work(job) {
            failed += 1;
            eprintln!("error: {error:#}");
        }
    }
    ensure!(
        failed == 0,
        "{failed} of {} pictures failed; the others are done",
        jobs.len()
    );
    Ok(())
}

/// Makes the folder a result goes into.
///
/// # Errors
/// A folder that cannot be made.
pub(super) fn make_folder_for(output: &Path) -> anyhow::Result<()> {
    if let Some(folder) = output
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).with_context(|| {
            format!(
                "{}: cannot be made; choose another output",
                folder.display()
            )
        })?;
    }
    Ok(())
}
