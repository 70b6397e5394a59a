//! `reclair export`: a LoRA in the form of other programs, or a prior with LoRA merged into its weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use burn::tensor::{DType, Device};
use clap::{Parser, ValueEnum};
use priors::{
    clip::ClipText,
    folder::{ENCODER_FILE, Folder, NETWORK_FILE},
    vae::AutoencoderKl,
    weights::{Metadata, Stored, Weights, write_atomically, write_safetensors},
};
use restore::lora::{Form, LoraFile, network_shapes, write_lora};
use walkdir::WalkDir;

use super::{lora::LoraArg, table3::Model};

/// Arguments of `export`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The prior that the LoRA was made for: as `restore --prior`; for --form also `sdxl` and `sd3`.
    #[arg(long, default_value = "mini")]
    prior: String,
    /// An adapter folder, for its LoRA.
    #[arg(long, value_name = "DIR", conflicts_with = "lora")]
    adapter: Option<PathBuf>,
    /// A LoRA file and the strength that is written into it; with --merged several.
    #[arg(
        long,
        value_name = "FILE[:STRENGTH]",
        required_unless_present = "adapter"
    )]
    lora: Vec<LoraArg>,
    /// Whose names the new LoRA file has.
    #[arg(long, value_enum, required_unless_present = "merged")]
    form: Option<Name>,
    /// Write the prior's folder with the LoRA in its weights instead.
    #[arg(long, conflicts_with = "form")]
    merged: bool,
    /// The new file; a folder for `peft` and --merged.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Most other programs; Stability's block names.
    Kohya,
    /// diffusers' load_lora_weights.
    Diffusers,
    /// PEFT's folder.
    Peft,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let files: Vec<LoraArg> = match &args.adapter {
        Some(folder) => vec![LoraArg {
            path: folder.clone(),
            strength: 1.0,
        }],
        None => args.lora.clone(),
    };
    let form = match args.form {
        None => {
            let prior = super::prior(&args.prior, super::Consent::default())?;
            ensure!(
                !args.output.exists(),
                "{}: exists; give a new folder",
                args.output.display()
            );
            return write_merged(&super::lora::merged(prior, &files)?, &args.output);
        }
        Some(Name::Kohya) => Form::Kohya,
        Some(Name::Diffusers) => Form::Diffusers,
        Some(Name::Peft) => Form::Peft,
    };
    let prior = match Model::named(&args.prior) {
        Some(model) => model.folder(),
        None => super::prior(&args.prior, super::Consent::default())?,
    };
    let shapes = network_shapes(&prior)?;
    ensure!(
        files.len() == 1,
        "{} LoRA files do not become one; give one, or all of them with --merged",
        files.len()
    );
    let file = LoraFile::open(&files[0].path, &shapes)?;
    eprintln!("lora {}: {}", files[0].path.display(), file.report);
    let mut updates = file.updates;
    for update in updates.values_mut() {
        update.alpha *= files[0].strength;
    }
    write_lora(&args.output, &updates, &shapes, form, DType::F32)?;
    eprintln!("{}", args.output.display());
    Ok(())
}

/// Writes a diffusers folder with the weights as they are loaded; everything else is copied.
fn write_merged(prior: &Folder, output: &Path) -> anyhow::Result<()> {
    let network = prior.network();
    let file = format!("{network}/{NETWORK_FILE}");
    write_weights(prior, &file, &network_shapes(prior)?, output)?;
    match prior.below() {
        Folder::Disk(folder) => {
            for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name() {
                let entry = entry?;
                let inside = entry.path().strip_prefix(folder)?;
                let weights = inside.starts_with(network)
                    && inside.file_name().is_some_and(|name| name != "config.json");
                if entry.file_type().is_file() && !weights {
                    let to = output.join(inside);
                    std::fs::create_dir_all(to.parent().unwrap_or(output))?;
                    std::fs::copy(entry.path(), to)?;
                }
            }
        }
        Folder::Embedded(files) => {
            for (name, bytes) in files.iter().filter(|(name, _)| *name != file) {
                write_atomically(&output.join(name), bytes)?;
            }
        }
        Folder::Single(single) => {
            for (name, bytes) in single.configs() {
                if prior.has(name) {
                    write_atomically(&output.join(name), bytes)?;
                }
            }
            for part in single.parts().filter(|part| *part != network) {
                let name = if part == "vae" {
                    NETWORK_FILE
                } else {
                    ENCODER_FILE
                };
                write_weights(
                    prior,
                    &format!("{part}/{name}"),
                    &part_shapes(prior, part)?,
                    output,
                )?;
            }
            eprintln!(
                "a checkpoint holds no tokenizer: reclair uses CLIP's own, other programs want tokenizer/ from the model's folder"
            );
        }
        Folder::Edited { .. } => unreachable!("below what is edited"),
    }
    eprintln!("{}", output.display());
    Ok(())
}

/// Names and shapes of an autoencoder or text encoder; T5's are the file's own.
fn part_shapes(prior: &Folder, part: &str) -> anyhow::Result<BTreeMap<String, Vec<usize>>> {
    let w = Weights::blank(&Device::flex());
    let file = format!("{part}/config.json");
    let (json, path) = (prior.json(&file)?, prior.path(&file));
    match part {
        "vae" => drop(AutoencoderKl::from_json(&json, &path, &w)?),
        "text_encoder" | "text_encoder_2" => drop(ClipText::from_json(&json, &path, &w)?),
        _ => {
            let view = prior.view(&format!("{part}/{ENCODER_FILE}"))?;
            let shape = |key: &str| Some((key.to_owned(), view.shape(key)?));
            return Ok(view.keys().filter_map(shape).collect());
        }
    }
    Ok(w.shapes())
}

/// Writes one network's tensors under diffusers' names, in the types they are stored in.
fn write_weights(
    prior: &Folder,
    file: &str,
    shapes: &BTreeMap<String, Vec<usize>>,
    output: &Path,
) -> anyhow::Result<()> {
    let (view, edit) = (prior.view(file)?, prior.edit(file));
    let unused = view.unused(shapes);
    ensure!(
        unused.is_empty(),
        "{}: {} tensors are not part of this network, {} among them; this file does not fit its config.json",
        view.path().display(),
        unused.len(),
        unused[0]
    );
    let mut header = BTreeMap::new();
    for (name, shape) in shapes {
        let got = view.shape(name);
        ensure!(
            got.as_ref() == Some(shape),
            "{}: tensor {name} should be {shape:?} and is {got:?}; this file does not fit its config.json",
            view.path().display()
        );
        let stored = Stored {
            dtype: view.dtype(name).unwrap_or(DType::F32),
            shape: shape.clone(),
        };
        header.insert(name.clone(), stored);
    }
    let tensor = |name: &str| {
        let data = view.data(name)?.expect("its shape is known");
        Ok(match &edit {
            Some(edit) => edit.edit(name, data),
            None => data,
        })
    };
    write_safetensors(&output.join(file), &header, &Metadata::new(), tensor)?;
    Ok(())
}
