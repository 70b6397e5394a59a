//! What a run writes: its checkpoint, which is there twice while it is written, and its result.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use priors::{folder::Folder, vae::AutoencoderKl, weights::Weights};
use restore::adapter::ENCODER_FOLDER;

use crate::{
    Error, checkpoint,
    config::{Stage, TrainConfig},
    disk::{CACHE_LESS, enough},
    objective::{encoder_of, folder_of},
    step::averages,
};

/// A tensor's entry in a file's header, its name aside, bytes.
const ENTRY: usize = 100;

/// Sizes of what a run writes, bytes; pictures, log and report aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// One checkpoint: values, both moments, and the average where there is one.
    pub(crate) checkpoint: u64,
    /// The trained networks, and what is copied beside them so that the folder is whole.
    pub(crate) result: u64,
}

impl Output {
    /// Of the run of `config` that trains tensors of these names and shapes.
    ///
    /// # Errors
    /// A configuration of the model that cannot be read.
    pub(crate) fn of(config: &TrainConfig, shapes: &[(String, Vec<usize>)]) -> Result<Self, Error> {
        let tensor = |(name, shape): &(String, Vec<usize>)| {
            (4 * shape.iter().product::<usize>() + name.len() + ENTRY) as u64
        };
        let values: u64 = shapes.iter().map(tensor).sum();
        Ok(Self {
            checkpoint: values * if averages(config) { 4 } else { 3 },
            result: values + beside(config, shapes)?,
        })
    }

    /// Refuses to begin where `free` bytes are too few for two checkpoints and the result, less what is in `out` already, and
    /// `latents`, bytes that the run is still to write of them.
    ///
    /// # Errors
    /// Too little room.
    pub(crate) fn check_room(
        &self,
        out: &Path,
        latents: u64,
        free: Option<u64>,
    ) -> Result<(), Error> {
        let there = checkpoint::bytes(out)
            + files(&out.join("prior"), &|_| true)
            + files(&out.join("adapter"), &|_| true);
        let missing = (2 * self.checkpoint + self.result).saturating_sub(there);
        // A finished run, too, writes its checkpoint again beside the one that is there.
        let bytes = missing.max(self.checkpoint);
        let twice = "two checkpoints (the next is written beside the last)";
        let (what, advice) = match latents {
            0 => (
                format!("{twice} and the result"),
                "free some, or give `out` on another disk",
            ),
            _ => (format!("{twice}, the result and latents"), CACHE_LESS),
        };
        enough(out, &what, bytes.saturating_add(latents), free, advice)
    }
}

/// What is copied into the result, as far as it is there.
fn beside(config: &TrainConfig, shapes: &[(String, Vec<usize>)]) -> Result<u64, Error> {
    let copied = |folder: Option<PathBuf>| folder.map_or(0, |folder| files(&folder, &|_| true));
    let encoder = || copied(encoder_of(config).map(|folder| folder.join(ENCODER_FOLDER)));
    match config.stage {
        Stage::Adapter => return Ok(encoder()),
        Stage::Encoder => return Ok(copied(config.adapter_model.clone())),
        Stage::Vae | Stage::Prior | Stage::Joint => {}
    }
    let parts = shapes.iter().filter_map(|(name, _)| name.split('.').next());
    let mut written: BTreeSet<String> = parts.map(Folder::weights_file).collect();
    let mut bytes = encoder();
    let folder = folder_of(config)?;
    let file = "vae/config.json";
    if config.vae_model.is_some() && folder.has(file) {
        written.insert(Folder::weights_file("vae"));
        let w = Weights::blank(&Device::flex());
        AutoencoderKl::from_json(&folder.json(file)?, &folder.path(file), &w)?;
        bytes += 4 * w.count() as u64;
    }
    let rest = files(&config.model, &|path| {
        let file = path.strip_prefix(&config.model).unwrap_or(path);
        !written.iter().any(|written| Path::new(written) == file)
    });
    Ok(bytes + rest)
}

/// Bytes of the files below `folder` that are wanted; none where there is none.
fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |path: PathBuf| {
        if path.is_dir() {
            files(&path, wanted)
        } else if wanted(&path) {
            std::fs::metadata(&path).map_or(0, |about| about.len())
        } else {
            0
        }
    };
    entries.map(|entry| size(entry.path())).sum()
}
