//! Finding a prior from a path: a diffusers folder, a checkpoint, Hugging Face's cache, ComfyUI's models.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Folder, Given, NETWORK_FILE,
    cache::{Repository, snapshot_of},
};
use crate::{
    Error,
    kind::Kind,
    single_file::{CHECKPOINTS, SingleFile},
    weights::{PICKLE, SafetensorsFile},
};

impl Folder {
    /// The prior at `path`: a diffusers folder, a safetensors checkpoint, a repository in Hugging Face's cache (its folder, or
    /// its `owner/name` or `owner/name@revision` when nothing else has that path), or ComfyUI's folder of models when it holds one prior.
    ///
    /// # Errors
    /// Nothing there, a pickle, a model that cannot restore, or more than one that can.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, &Given::default())
    }

    /// As [`Folder::open`], with the files that are given for some of its parts.
    ///
    /// # Errors
    /// As [`Folder::open`]; a given file that is no such part or does not fit.
    pub fn open_with(path: &Path, given: &Given) -> Result<Self, Error> {
        if path.is_file() {
            refuse_pickle(path)?;
            let (single, replaced) = SingleFile::open(path, given)?;
            return Ok(Self::Single(Arc::new(single)).replaced(replaced));
        }
        if !path.is_dir() {
            return match cached(path) {
                Some(folder) => Self::open_with(&folder, given),
                None => Err(Error::input(
                    path,
                    "is no file, no folder and nothing in Hugging Face's cache; give a prior's folder or safetensors file",
                )),
            };
        }
        let network = ["unet", "transformer"];
        if network
            .iter()
            .any(|part| path.join(part).join("config.json").is_file())
        {
            let folder = Self::Disk(path.to_owned());
            folder.refuse_others()?;
            return folder.with_parts(given);
        }
        if path.join("snapshots").is_dir() {
            return Self::open_with(&snapshot(path)?, given);
        }
        Self::open_with(&only_prior(path)?, given)
    }

    /// Refuses a diffusers folder of a model that cannot restore, where the header shows which it is.
    fn refuse_others(&self) -> Result<(), Error> {
        let file = format!("{}/{NETWORK_FILE}", self.network());
        if !self.has(&file) {
            return Ok(());
        }
        let view = self.view(&file)?;
        let kind = Kind::of_view(&view);
        if kind.restores() || kind == Kind::Unknown {
            return Ok(());
        }
        Err(Error::unsupported(view.path(), kind.refusal()))
    }
}

/// Refuses a file that may be a pickle, by its name.
pub(super) fn refuse_pickle(path: &Path) -> Result<(), Error> {
    let old = ["ckpt", "pt", "pth", "bin", "pkl"];
    let named = |extension: &OsStr| old.iter().any(|old| extension == *old);
    match path.extension().is_some_and(named) && path.is_file() {
        true => Err(Error::unsupported(path, PICKLE)),
        false => Ok(()),
    }
}

/// The safetensors files in `folder` and in folders `depth` levels below it, sorted.
pub(crate) fn safetensors_below(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 0 {
                files.extend(safetensors_below(&path, depth - 1));
            }
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// What Hugging Face's cache has of `id`: the repository's folder, or the snapshot of the revision that `id` names.
fn cached(id: &Path) -> Option<PathBuf> {
    let repository = Repository::parse(id.to_str()?)?;
    if repository.names_revision() {
        return repository.snapshot();
    }
    let folder = repository.folder()?;
    folder.join("snapshots").is_dir().then_some(folder)
}

/// The snapshot that `refs/main` names, or the only one.
fn snapshot(repository: &Path) -> Result<PathBuf, Error> {
    let snapshots = repository.join("snapshots");
    if let Some(folder) = snapshot_of(repository, "main") {
        return Ok(folder);
    }
    let entries = std::fs::read_dir(&snapshots).map_err(|source| Error::io(&snapshots, source))?;
    let all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    match &all[..] {
        [one] => Ok(one.clone()),
        _ => Err(Error::input(
            repository,
            format!(
                "has {} snapshots and refs/main names none; give one of them",
                all.len()
            ),
        )),
    }
}

/// The only checkpoint that can restore in `folder`, in its `models`, or in their `checkpoints`, `diffusion_models` and `unet` and
/// two levels below these.
fn only_prior(folder: &Path) -> Result<PathBuf, Error> {
    let mut seen: Vec<(PathBuf, Kind)> = Vec::new();
    let mut unreadable = None;
    for root in [folder.to_owned(), folder.join("models")] {
        let below = CHECKPOINTS
            .iter()
            .map(|place| safetensors_below(&root.join(place), 2));
        for files in std::iter::once(safetensors_below(&root, 0)).chain(below) {
            for path in files {
                match SafetensorsFile::open(&path) {
                    Ok(file) => seen.push((path, Kind::of_file(&file))),
                    Err(why) => unreadable = unreadable.or(Some(why)),
                }
            }
        }
    }
    let priors: Vec<&(PathBuf, Kind)> = seen.iter().filter(|(_, kind)| kind.restores()).collect();
    let list = |files: &[&(PathBuf, Kind)]| {
        let line = |(path, kind): &&(PathBuf, Kind)| format!("{} ({kind})", path.display());
        files.iter().map(line).collect::<Vec<_>>().join(", ")
    };
    match (&priors[..], &seen[..]) {
        ([(path, _)], _) => Ok(path.clone()),
        // It may be the prior.
        ([], _) if let Some(why) = unreadable => Err(why),
        ([], [(path, kind)]) => Err(Error::unsupported(path, kind.refusal())),
        ([], []) => Err(Error::input(
            folder,
            "holds no prior; give a diffusers folder, a safetensors checkpoint or ComfyUI's folder of models",
        )),
        ([], seen) => Err(Error::unsupported(
            folder,
            format!(
                "holds no prior, only {}; reclair restores with SDXL or SD3",
                list(&seen.iter().collect::<Vec<_>>())
            ),
        )),
        (several, _) => Err(Error::input(
            folder,
            format!("holds several priors: {}; give one of them", list(several)),
        )),
    }
}
