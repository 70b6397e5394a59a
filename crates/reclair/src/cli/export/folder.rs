//! A prior as a diffusers folder, its weights as they are loaded.

use std::{collections::BTreeMap, path::Path};

use priors::{
    folder::{Folder, StoredPart},
    weights::{Metadata, Stored, write_atomically, write_safetensors},
};
use walkdir::WalkDir;

/// Parts of a folder besides the network.
const OTHERS: [&str; 4] = ["vae", "text_encoder", "text_encoder_2", "text_encoder_3"];

/// T5's tokenizer, which a checkpoint has beside it.
const T5_TOKENIZER: &str = "tokenizer_3/tokenizer.json";

/// Writes `prior` to the folder `output`: parts that are changed, given or of a checkpoint under diffusers' names, everything else
/// copied.
pub(super) fn write(prior: &Folder, output: &Path) -> anyhow::Result<()> {
    let network = prior.network();
    let below = prior.below();
    let single = matches!(below, Folder::Single(_));
    let written: Vec<&str> = std::iter::once(network)
        .chain(OTHERS)
        .filter(|part| prior.has(&format!("{part}/config.json")))
        .filter(|part| {
            let given = prior.replacements().is_some_and(|given| given.has(part));
            let edited = prior.edit(&Folder::weights_file(part)).is_some();
            *part == network || single || given || edited
        })
        .collect();
    for part in &written {
        let config = format!("{part}/config.json");
        write_part(
            &prior.stored(part)?,
            &output.join(Folder::weights_file(part)),
        )?;
        write_atomically(&output.join(&config), &prior.read(&config)?)?;
    }
    let rewritten = |file: &Path| written.iter().any(|part| file.starts_with(part));
    match below {
        Folder::Disk(folder) => {
            for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name() {
                let entry = entry?;
                let inside = entry.path().strip_prefix(folder)?;
                if entry.file_type().is_file() && !rewritten(inside) {
                    let to = output.join(inside);
                    std::fs::create_dir_all(to.parent().unwrap_or(output))?;
                    std::fs::copy(entry.path(), to)?;
                }
            }
        }
        Folder::Embedded(files) => {
            for (name, bytes) in files.iter().filter(|(name, _)| !rewritten(name.as_ref())) {
                write_atomically(&output.join(name), bytes)?;
            }
        }
        Folder::Single(single) => {
            for (name, bytes) in single.configs().filter(|(name, _)| prior.has(name)) {
                write_atomically(&output.join(name), bytes)?;
            }
            if prior.has(T5_TOKENIZER) {
                write_atomically(&output.join(T5_TOKENIZER), &prior.read(T5_TOKENIZER)?)?;
            }
            eprintln!(
                "a checkpoint holds no tokenizer: reclair uses CLIP's own, other programs want tokenizer/ from the model's folder"
            );
        }
        Folder::Edited { .. } | Folder::Replaced { .. } => unreachable!("below what is changed"),
    }
    Ok(())
}

/// Writes one part's tensors in the types they are stored in.
fn write_part(part: &StoredPart, file: &Path) -> anyhow::Result<()> {
    let stored = |(name, shape): (&String, &Vec<usize>)| {
        let stored = Stored {
            dtype: part.dtype(name),
            shape: shape.clone(),
        };
        (name.clone(), stored)
    };
    let header: BTreeMap<String, Stored> = part.shapes().iter().map(stored).collect();
    write_safetensors(file, &header, &Metadata::new(), |name| part.tensor(name))?;
    Ok(())
}
