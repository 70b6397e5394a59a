//! `reclair.json` of the adapter that a run has trained.

use std::path::{Component, Path};

use priors::folder::{Folder, NETWORK_FILE, Repository};
use restore::adapter::{ABOUT_FILE, About, PriorId};
use serde_json::{Map, Value};

use crate::{
    Error,
    config::{Stage, TrainConfig},
    objective::folder_of,
};

/// Writes which prior the adapter in the run's folder is for, how it was trained (`training`, of `run.json`), and its licence.
pub(crate) fn write(config: &TrainConfig, training: &Map<String, Value>) -> Result<(), Error> {
    let adapter = config.out.join("adapter");
    // An encoder that was trained for an adapter stands beside it and its file.
    let own = config.stage == Stage::Encoder && adapter.join(ABOUT_FILE).is_file();
    if !adapter.is_dir() || own {
        return Ok(());
    }
    let (prior, name) = if config.stage == Stage::Joint {
        let prior = Folder::Disk(config.out.join("prior"));
        (prior, "the prior trained with it".to_owned())
    } else {
        (folder_of(config)?, name_of(&config.model))
    };
    // An encoder needs no more of a prior than its autoencoder.
    let file = format!("{}/{NETWORK_FILE}", prior.network());
    if !prior.has(&file) {
        return Ok(());
    }
    let about = About {
        prior: PriorId::of(&prior, name)?,
        training: training.clone(),
        licence: config.licence.clone(),
    };
    Ok(about.save(&adapter)?)
}

/// What a prior at `path` is called: `owner/name` in Hugging Face's cache, else the file's or folder's own name.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or(path.to_owned());
    let part = |part: Component<'_>| {
        let name = part.as_os_str().to_str()?.strip_prefix("models--")?;
        Some(name.replacen("--", "/", 1))
    };
    if let Some(id) = whole.components().find_map(part) {
        return id;
    }
    match path
        .to_str()
        .filter(|_| !path.exists())
        .and_then(Repository::parse)
    {
        Some(repository) => repository.to_string(),
        None => whole
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priors_are_called_without_their_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = folder
            .path()
            .join("models--stabilityai--sdxl/snapshots/abc");
        std::fs::create_dir_all(&cache).expect("makes the folder");
        assert_eq!(name_of(&cache), "stabilityai/sdxl");
        let file = folder.path().join("mine.safetensors");
        std::fs::write(&file, "").expect("writes");
        assert_eq!(name_of(&file), "mine.safetensors");
        assert_eq!(name_of(&folder.path().join("gone/sdxl")), "sdxl");
    }
}
