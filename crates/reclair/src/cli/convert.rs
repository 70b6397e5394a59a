//! `reclair convert FOLDER -o OUT --dtype f16`: a prior's or adapter's folder in another number format.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use burn::tensor::DType;
use clap::{Parser, ValueEnum};
use priors::weights::{Metadata, SafetensorsFile, Values, save_safetensors, write_atomically};
use walkdir::WalkDir;

/// Arguments of `convert`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// A prior's or adapter's folder.
    folder: PathBuf,
    /// The new folder.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The number format of the tensors.
    #[arg(long, value_enum, default_value_t = Dtype::F16)]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

/// Runs it: safetensors files are converted, everything else is copied.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.folder.is_dir(),
        "{}: is no folder; give a prior's or an adapter's",
        args.folder.display()
    );
    let dtype = match args.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    };
    for entry in WalkDir::new(&args.folder).sort_by_file_name() {
        let entry =
            entry.with_context(|| format!("{}: cannot be searched", args.folder.display()))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let to = args.output.join(entry.path().strip_prefix(&args.folder)?);
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            convert(entry.path(), &to, dtype)?;
        } else {
            write_atomically(&to, &std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

fn convert(from: &Path, to: &Path, dtype: DType) -> anyhow::Result<()> {
    let file = SafetensorsFile::open(from)?;
    let mut values = Values::new();
    for name in file.names() {
        let data = file.data(name);
        let data = data.with_context(|| {
            format!(
                "{}: {name} is of a type that cannot be converted",
                from.display()
            )
        })?;
        values.insert(name.clone(), data);
    }
    let metadata: Metadata = file.all_metadata();
    Ok(save_safetensors(to, &values, dtype, &metadata)?)
}
