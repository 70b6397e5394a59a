//! Parts of a prior that stand beside its checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{origin::Origin, wanted::Wanted};
use crate::{
    Error,
    folder::safetensors_below,
    kind::Kind,
    weights::{SafetensorsFile, View},
};

/// Where ComfyUI's `models` keep parts.
const PLACES: [&str; 3] = ["vae", "text_encoders", "clip"];

/// Where they keep checkpoints.
pub(crate) const CHECKPOINTS: [&str; 3] = ["checkpoints", "diffusion_models", "unet"];

/// What was found beside a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The parts.
    pub(super) parts: BTreeMap<&'static str, View>,
    /// Files that fit and were not taken, and why.
    pub(super) passed_over: Vec<String>,
}

/// The parts `wanted`, from the files beside `path`. What is not found is left out.
///
/// # Errors
/// Two files for one part whose names do not say which is the model's.
pub(super) fn find(path: &Path, wanted: &[Wanted]) -> Result<Found, Error> {
    let mut found = Found::default();
    if wanted.is_empty() {
        return Ok(found);
    }
    let mut views: BTreeMap<&'static str, Vec<(View, Option<Origin>)>> = BTreeMap::new();
    for candidate in candidates(path) {
        // What is beside may be anything; only what can be read matters.
        let Ok(file) = SafetensorsFile::open(&candidate) else {
            continue;
        };
        let what = Kind::of_file(&file);
        let encoder = matches!(what, Kind::ClipL | Kind::ClipG | Kind::T5 | Kind::Unknown);
        if what != Kind::Vae && !encoder {
            continue;
        }
        let origin = Origin::of(&file);
        let file = Arc::new(file);
        for wanted in wanted {
            // Files in 8 bit stand beside their 16-bit originals.
            if let Some(view) = wanted.in_file(&file).filter(readable) {
                views.entry(wanted.part).or_default().push((view, origin));
            }
        }
    }
    for wanted in wanted {
        let views = views.remove(wanted.part).unwrap_or_default();
        if let Some(view) = choose(path, wanted, views, &mut found.passed_over)? {
            found.parts.insert(wanted.part, view);
        }
    }
    Ok(found)
}

fn readable(view: &View) -> bool {
    let mut keys = view.keys();
    keys.all(|key| view.readable(key))
}

/// The folders that hold what belongs to the checkpoint at `path`: its own, the one above, ComfyUI's `models`.
pub(super) fn roots(path: &Path) -> Vec<PathBuf> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut roots = vec![folder.to_owned(), folder.join("..")];
    // checkpoints/SDXL/mine/x.safetensors
    let whole = folder.canonicalize().unwrap_or(folder.to_owned());
    let named = |folder: &&Path| {
        let name = folder.file_name().unwrap_or_default();
        CHECKPOINTS.iter().any(|checkpoints| name == *checkpoints)
    };
    let checkpoints = whole.ancestors().take(4).find(named);
    roots.extend(checkpoints.and_then(Path::parent).map(Path::to_owned));
    roots
}

/// Safetensors files that may be parts, each once, sorted.
fn candidates(path: &Path) -> BTreeSet<PathBuf> {
    let own = path.canonicalize().ok();
    let roots = roots(path);
    let mut files = safetensors_below(&roots[0], 0);
    for root in &roots {
        for place in PLACES {
            files.extend(safetensors_below(&root.join(place), 2));
        }
    }
    let whole = |path: PathBuf| path.canonicalize().ok();
    let files = files.into_iter().filter_map(whole);
    files.filter(|file| Some(file) != own.as_ref()).collect()
}

/// The one of `views` that is the model's.
fn choose(
    path: &Path,
    wanted: &Wanted,
    mut views: Vec<(View, Option<Origin>)>,
    passed_over: &mut Vec<String>,
) -> Result<Option<View>, Error> {
    let own = if wanted.of_unet {
        Origin::Sdxl
    } else {
        Origin::Sd3
    };
    // One text encoder serves several models.
    if wanted.part == "vae" {
        for (view, origin) in &views {
            if let Some(other) = origin.filter(|origin| *origin != own) {
                passed_over.push(format!(
                    "{}: is not taken for the autoencoder, as its name or header says {}; if it is {}'s, give it with --vae",
                    view.path().display(),
                    other.name(),
                    own.name()
                ));
            }
        }
        views.retain(|(_, origin)| origin.is_none_or(|origin| origin == own));
    }
    let named = |view: &(View, Option<Origin>)| view.1 == Some(own);
    if views.iter().filter(|view| named(view)).count() == 1 {
        views.retain(named);
    }
    match &views[..] {
        [] => Ok(None),
        [(view, _)] => Ok(Some(view.clone())),
        _ => {
            let names = views
                .iter()
                .map(|(view, _)| view.path().display().to_string());
            let option = if wanted.part == "vae" {
                "--vae"
            } else {
                "--text-encoder"
            };
            let what = format!(
                "{} could be any of {}; give one of them with {option}",
                wanted.part,
                names.collect::<Vec<_>>().join(", ")
            );
            Err(Error::input(path, what))
        }
    }
}
