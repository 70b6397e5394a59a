//! Parts of a prior that stand beside its checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::part_of;
use crate::{
    Error,
    kind::Kind,
    weights::{SafetensorsFile, View},
};

/// Where parts may be, relative to the checkpoint's own folder: in it, under it (Stability's repositories), or beside it
/// (ComfyUI's `models`).
const PLACES: [&str; 7] = [
    "",
    "vae",
    "text_encoders",
    "clip",
    "../vae",
    "../text_encoders",
    "../clip",
];

/// The parts `wanted` of a prior of `kind`, from the files beside `path`. What is not found is left out.
///
/// # Errors
/// Two files for one part whose names do not say which is the model's.
pub(super) fn find(
    path: &Path,
    kind: Kind,
    wanted: &[&'static str],
) -> Result<BTreeMap<&'static str, View>, Error> {
    let mut found: BTreeMap<&'static str, Vec<View>> = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    for candidate in candidates(path) {
        // What is beside may be anything; only what can be read matters.
        let Ok(file) = SafetensorsFile::open(&candidate) else {
            continue;
        };
        let what = Kind::of_file(&file);
        if !matches!(what, Kind::Vae | Kind::ClipL | Kind::ClipG | Kind::T5) {
            continue;
        }
        let file = Arc::new(file);
        for &part in wanted {
            // Files in 8 bit stand beside their 16-bit originals.
            if let Some(view) = part_of(&file, kind, part).filter(readable) {
                found.entry(part).or_default().push(view);
            }
        }
    }
    let chosen = |(part, views)| Ok((part, choose(path, kind, part, views)?));
    found.into_iter().map(chosen).collect()
}

fn readable(view: &View) -> bool {
    let mut keys = view.keys();
    keys.all(|key| view.readable(key))
}

/// Safetensors files in the places, each once, sorted.
fn candidates(path: &Path) -> BTreeSet<PathBuf> {
    let own = path.canonicalize().ok();
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut files = BTreeSet::new();
    for place in PLACES {
        let entries = std::fs::read_dir(folder.join(place)).into_iter().flatten();
        for entry in entries.flatten() {
            let path = entry.path();
            let is_weights = path.extension().is_some_and(|e| e == "safetensors");
            if let Ok(path) = path.canonicalize()
                && is_weights
                && Some(&path) != own.as_ref()
            {
                files.insert(path);
            }
        }
    }
    files
}

fn choose(path: &Path, kind: Kind, part: &str, mut views: Vec<View>) -> Result<View, Error> {
    let named = |view: &View| {
        let name = view.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy().to_lowercase();
        name.contains(if kind == Kind::SdxlBase { "xl" } else { "sd3" })
    };
    if views.len() > 1 && views.iter().filter(|view| named(view)).count() == 1 {
        views.retain(named);
    }
    match &views[..] {
        [view] => Ok(view.clone()),
        _ => {
            let names: Vec<String> = views
                .iter()
                .map(|view| view.path().display().to_string())
                .collect();
            let what = format!(
                "{part} could be any of {}; keep one of them beside this file",
                names.join(", ")
            );
            Err(Error::input(path, what))
        }
    }
}
