//! The trained tensors as a run starts, and what of a prior it does not train.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, Device};
use priors::{
    folder::Folder,
    weights::{Metadata, Values, View, Weights, save_safetensors, write_atomically},
};

use crate::{Error, config::Start};

/// Tensors to go on from: those named with `prefix`, in `file` of `folder`.
pub(crate) struct Stored<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) folder: &'a Folder,
    pub(crate) file: String,
    pub(crate) take: Take,
}

/// Which tensors of a file are gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// All, where the configuration's `start` asks for them; the network must know each.
    All,
    /// Those whose names begin so, always: a network that starts as a copy of another's part.
    Copy(&'static [&'static str]),
}

/// The trained tensors as they start: initial values, overlaid with files as `start` says.
pub(crate) fn start_values(
    start: Start,
    stored: &[Stored<'_>],
    seed: u64,
    device: &Device,
    build: impl Fn(&Weights) -> Result<(), Error>,
) -> Result<Values, Error> {
    let weights = Weights::seeded(seed, device);
    build(&weights)?;
    let mut values = weights.made();
    for Stored {
        prefix,
        folder,
        file,
        take,
    } in stored
    {
        let wanted = match (take, start) {
            (Take::Copy(_), _) | (Take::All, Start::Model) => true,
            (Take::All, Start::Fresh) => false,
            (Take::All, Start::ModelOrFresh) => folder.has(file),
        };
        if wanted {
            overlay(&mut values, prefix, &folder.view(file)?, *take)?;
        }
    }
    Ok(values)
}

fn overlay(values: &mut Values, prefix: &str, view: &View, take: Take) -> Result<(), Error> {
    let misfit = |what: String| {
        Error::Input(format!(
            "{}: tensor {what}; the file does not fit its config.json",
            view.path().display()
        ))
    };
    let mut used = BTreeMap::new();
    for (name, slot) in values {
        let Some(name) = name
            .strip_prefix(prefix)
            .and_then(|name| name.strip_prefix('.'))
        else {
            continue;
        };
        let taken = match take {
            Take::All => true,
            Take::Copy(parts) => parts.iter().any(|part| name.starts_with(part)),
        };
        if !taken {
            continue;
        }
        let data = view.data(name)?;
        let data = data.ok_or_else(|| misfit(format!("{name} is missing")))?;
        if data.shape() != slot.shape() {
            return Err(misfit(format!(
                "{name} should be {:?} and is {:?}",
                slot.shape(),
                data.shape()
            )));
        }
        *slot = data.convert::<f32>();
        used.insert(name.to_owned(), slot.shape().as_slice().to_vec());
    }
    match view.unused(&used).first() {
        Some(name) if take == Take::All => {
            Err(misfit(format!("{name} is not part of this network")))
        }
        _ => Ok(()),
    }
}

/// Writes the part of `folder` that `part` names below `out`, in single precision, which holds every type exactly.
pub(crate) fn write_part(folder: &Folder, part: &str, out: &Path) -> Result<(), Error> {
    let stored = folder.stored(part)?;
    let names = stored.shapes().keys();
    let values = names
        .map(|name| Ok((name.clone(), stored.tensor(name)?.convert::<f32>())))
        .collect::<Result<Values, Error>>()?;
    let file = out.join(Folder::weights_file(part));
    save_safetensors(&file, &values, DType::F32, &Metadata::new())?;
    let config = format!("{part}/config.json");
    Ok(write_atomically(
        &out.join(&config),
        &folder.read(&config)?,
    )?)
}

/// Copies the files of a prior's folder that `out` does not have yet, so that `out` is whole.
pub(crate) fn copy_rest(folder: &Path, out: &Path) -> Result<(), Error> {
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).map_err(|source| Error::io(&at, source))? {
            let path = entry.map_err(|source| Error::io(&at, source))?.path();
            let to = out.join(path.strip_prefix(folder).unwrap_or(&path));
            if path.is_dir() {
                open.push(path);
            } else if !to.exists() {
                let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
                write_atomically(&to, &bytes)?;
            }
        }
    }
    Ok(())
}
