//! Finding a network's weights in a diffusers folder: one file, shards with an index, or a 16-bit variant.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Error, json,
    weights::{PICKLE, SafetensorsFile, View},
};

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// File name of every tensor.
    weight_map: BTreeMap<String, String>,
}

/// Whether `file` names weights.
pub(super) fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors")
}

/// What may stand in place of `<stem>.safetensors`, the best first.
fn places(file: &str) -> Vec<String> {
    let stem = file.trim_end_matches(".safetensors");
    let mut places = vec![file.to_owned(), format!("{file}.index.json")];
    for variant in ["fp16", "bf16"] {
        places.extend([
            format!("{stem}.{variant}.safetensors"),
            format!("{stem}.safetensors.index.{variant}.json"),
            format!("{stem}.{variant}.safetensors.index.json"),
        ]);
    }
    places
}

/// The weights or index file that stands for `file`.
pub(super) fn find(folder: &Path, file: &str) -> Option<PathBuf> {
    places(file)
        .into_iter()
        .map(|place| folder.join(place))
        .find(|path| path.is_file())
}

/// Whether `found`, weights or an index of shards, has all its files beside it.
pub(super) fn are_there(found: &Path) -> bool {
    if found
        .extension()
        .is_some_and(|extension| extension == "safetensors")
    {
        return true;
    }
    let index = std::fs::read(found).ok();
    let index = index.and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok());
    index.is_some_and(|index| {
        let there = |name: &String| found.with_file_name(name).is_file();
        index
            .weight_map
            .values()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .all(there)
    })
}

/// Opens the weights that stand for `file`, all shards of them.
///
/// # Errors
/// Missing weights, a pickle, an index that does not fit its shards, files that are no safetensors files.
pub(super) fn open(folder: &Path, file: &str) -> Result<View, Error> {
    let Some(path) = find(folder, file) else {
        let wanted = folder.join(file);
        let stem = wanted.with_extension("");
        let old = stem.with_file_name("pytorch_model");
        let pickles = [stem, old].map(|path| path.with_extension("bin"));
        return Err(match pickles.into_iter().find(|path| path.is_file()) {
            Some(pickle) => Error::unsupported(pickle, PICKLE),
            None => Error::input(
                wanted,
                "is missing, and so are its .index.json and .fp16 variant; give a whole folder in diffusers' layout",
            ),
        });
    };
    if path
        .extension()
        .is_some_and(|extension| extension == "safetensors")
    {
        return Ok(View::plain(vec![SafetensorsFile::open(&path)?]));
    }
    let bytes = kernels::map_file(&path).map_err(|source| Error::io(&path, source))?;
    let index: Index = json::config(&json::parse(&bytes, &path)?, &path)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let mut files = BTreeMap::new();
    for name in names {
        if name.contains(['/', '\\']) || !is_weights(name) {
            let what = format!(
                "names the shard {name:?}, which is no safetensors file beside it; download or copy it again"
            );
            return Err(Error::input(&path, what));
        }
        let shard = path.with_file_name(name);
        if !shard.is_file() {
            let what =
                format!("names the shard {name:?}, which is not beside it; download it again");
            return Err(Error::input(&path, what));
        }
        files.insert(name, SafetensorsFile::open(&shard)?);
    }
    if files.is_empty() {
        return Err(Error::input(
            &path,
            "names no shard; download or copy it again",
        ));
    }
    let misplaced = index
        .weight_map
        .iter()
        .find(|(tensor, file)| !files[file].has(tensor));
    if let Some((tensor, file)) = misplaced {
        let what = format!(
            "says that {file} holds {tensor}, which it does not; download the shards again"
        );
        return Err(Error::weights(&path, what));
    }
    Ok(View::plain(files.into_values().collect()))
}
