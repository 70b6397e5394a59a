//! `reclair export`: a LoRA in the form of other programs, or a prior, with LoRA merged into its weights if you like, as a
//! diffusers folder or as one file.

mod folder;

use std::path::PathBuf;

use anyhow::ensure;
use burn::tensor::DType;
use clap::{Parser, ValueEnum};
use priors::single_file::write_single_file;
use restore::lora::{Form, LoraFile, PriorShapes, write_lora};

use super::{lora::LoraArg, table3::Model};

/// Arguments of `export`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The prior that the LoRA was made for: as `restore --prior`; for --form also `sdxl` and `sd3`.
    #[arg(long, default_value = "mini")]
    prior: String,
    #[command(flatten)]
    parts: super::parts::Parts,
    /// An adapter folder, for its LoRA.
    #[arg(long, value_name = "DIR", conflicts_with = "lora")]
    adapter: Option<PathBuf>,
    /// A LoRA file and the strength that is written into it; with --merged several or none.
    #[arg(
        long,
        value_name = "FILE[:STRENGTH]",
        required_unless_present_any = ["adapter", "merged"]
    )]
    lora: Vec<LoraArg>,
    /// Whose names the new LoRA file has.
    #[arg(long, value_enum, required_unless_present = "merged")]
    form: Option<Name>,
    /// Write the prior instead, with the LoRA in its weights.
    #[arg(long, conflicts_with = "form")]
    merged: bool,
    /// How --merged lays out the prior.
    #[arg(long, value_enum, requires = "merged", default_value_t = Layout::Folder)]
    layout: Layout,
    /// The new file; a folder for `peft` and for --merged in diffusers' layout.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// diffusers' folder.
    Folder,
    /// One safetensors file in Stability's names, as ComfyUI reads it; for SDXL and SD3.
    SingleFile,
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
            let prior = super::prior(&args.prior, &args.parts, super::Consent::default())?;
            ensure!(
                !args.output.exists(),
                "{}: exists; give a new place",
                args.output.display()
            );
            let merged = super::lora::merged(prior, &files)?;
            match args.layout {
                Layout::Folder => folder::write(&merged, &args.output)?,
                Layout::SingleFile => write_single_file(&merged, &args.output)?,
            }
            eprintln!("{}", args.output.display());
            return Ok(());
        }
        Some(Name::Kohya) => Form::Kohya,
        Some(Name::Diffusers) => Form::Diffusers,
        Some(Name::Peft) => Form::Peft,
    };
    let prior = match Model::named(&args.prior) {
        Some(model) => {
            args.parts.refuse(&args.prior)?;
            model.folder()
        }
        None => super::prior(&args.prior, &args.parts, super::Consent::default())?,
    };
    let shapes = PriorShapes::of(&prior)?;
    ensure!(
        files.len() == 1,
        "{} LoRA files do not become one; give one, or all of them with --merged",
        files.len()
    );
    let file = LoraFile::open(&files[0].path, &shapes)?;
    eprintln!("lora {}: {}", files[0].path.display(), file.report);
    let mut updates = file.updates;
    for update in updates.values_mut().flat_map(|part| part.values_mut()) {
        update.alpha *= files[0].strength;
    }
    write_lora(&args.output, &updates, &shapes, form, DType::F32)?;
    eprintln!("{}", args.output.display());
    Ok(())
}
