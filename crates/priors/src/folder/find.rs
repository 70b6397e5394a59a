//! Finding a prior from a path: a diffusers folder, a checkpoint, Hugging Face's cache, ComfyUI's models.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Folder, NETWORK_FILE,
    cache::{Repository, snapshot_of},
};
use crate::{
    Error,
    kind::Kind,
    single_file::SingleFile,
    weights::{PICKLE, SafetensorsFile},
};

impl Folder {
    /// The prior at `path`: a diffusers folder, a safetensors checkpoint, a repository in Hugging Face's cache (its folder, or
    /// its `owner/name` or `owner/name@revision` when nothing else has that path), or ComfyUI's folder of models when it holds one prior.
    ///
    /// # Errors
    /// Nothing there, a pickle, a model that cannot restore, or more than one that can.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_file() {
            let old = ["ckpt", "pt", "pth", "bin", "pkl"];
            if path
                .extension()
                .is_some_and(|e| old.iter().any(|old| e == *old))
            {
                return Err(Error::unsupported(path, PICKLE));
            }
            return Ok(Self::Single(Arc::new(SingleFile::open(path)?)));
        }
        if !path.is_dir() {
            return match cached(path) {
                Some(folder) => Self::open(&folder),
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
            return Ok(folder);
        }
        if path.join("snapshots").is_dir() {
            return Self::open(&snapshot(path)?);
        }
        Self::open(&only_prior(path)?)
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

/// The only checkpoint that can restore in `folder`, in its `models`, or in their `checkpoints`, `diffusion_models` and `unet`.
fn only_prior(folder: &Path) -> Result<PathBuf, Error> {
    let mut seen: Vec<(PathBuf, Kind)> = Vec::new();
    let mut unreadable = None;
    for root in [folder.to_owned(), folder.join("models")] {
        for place in ["", "checkpoints", "diffusion_models", "unet"] {
            let mut files: Vec<PathBuf> = std::fs::read_dir(root.join(place))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
                .collect();
            files.sort();
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
