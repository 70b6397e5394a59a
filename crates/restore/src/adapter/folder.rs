//! An adapter's folder: Restoration Adapter, LoRA, and what prior they belong to.
//!
//! ```text
//! restoration_adapter/config.json
//! restoration_adapter/diffusion_pytorch_model.safetensors
//! pytorch_lora_weights.safetensors        optional, diffusers' keys
//! degradation_robust_encoder/             optional, see [`super::open_encoder`]
//! reclair.json                            optional, see [`super::About`]
//! ```

use std::path::Path;

use burn::tensor::{DType, Device};
use priors::{
    any::AnyPrior,
    folder::{Folder, NETWORK_FILE},
    weights::{
        Metadata, Precision, SafetensorsFile, Values, Weights, save_safetensors, write_atomically,
    },
};
use serde_json::json;

use super::{AdapterConfig, RestorationAdapter};
use crate::{
    Error,
    lora::{Alphas, Lora, LoraConfig, METADATA, self_attention_targets, target_modules},
};

const CONFIG: &str = "restoration_adapter/config.json";
/// LoRA's file in an adapter's folder.
pub const LORA_FILE: &str = "pytorch_lora_weights.safetensors";

/// A loaded adapter.
#[derive(Clone, Debug)]
pub struct AdapterFolder {
    /// The Restoration Adapter.
    pub adapter: RestorationAdapter,
    /// LoRA, where the folder has it.
    pub lora: Option<Lora>,
}

impl AdapterFolder {
    /// Loads the adapter of `folder` for `prior`. Every tensor of every file must be used.
    ///
    /// # Errors
    /// A missing file, or an adapter that was made for another prior.
    pub fn open(
        folder: &Folder,
        prior: &AnyPrior,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, Error> {
        let w = folder.weights(
            &format!("restoration_adapter/{NETWORK_FILE}"),
            precision,
            device,
        )?;
        let json = folder.json(CONFIG)?;
        let adapter = RestorationAdapter::from_json(&json, &folder.path(CONFIG), prior, &w)?;
        w.finish()?;
        let lora = if folder.has(LORA_FILE) {
            Some(open_adapter_lora(folder, prior, precision, device)?)
        } else {
            None
        };
        Ok(Self { adapter, lora })
    }

    /// Writes an adapter folder; LoRA is named by `unet.<module>.lora_A.weight`, for a transformer
    /// `transformer.<module>.lora_A.weight`.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn save(
        folder: &Path,
        adapter_config: &AdapterConfig,
        adapter: &Values,
        lora: Option<&LoraConfig>,
        lora_values: &Values,
        dtype: DType,
    ) -> Result<(), Error> {
        let part = folder.join("restoration_adapter");
        save_safetensors(&part.join(NETWORK_FILE), adapter, dtype, &Metadata::new())?;
        let json = serde_json::to_vec_pretty(adapter_config).expect("plain JSON");
        write_atomically(&part.join("config.json"), &json)?;
        if let Some(config) = lora {
            let kind = adapter_config.kind();
            let prefix = kind.folder();
            let about = json!({
                format!("{prefix}.r"): config.rank,
                format!("{prefix}.lora_alpha"): config.alpha,
                format!("{prefix}.target_modules"): target_modules(kind),
            });
            let metadata = Metadata::from([(METADATA.to_owned(), about.to_string())]);
            save_safetensors(&folder.join(LORA_FILE), lora_values, dtype, &metadata)?;
        }
        Ok(())
    }
}

/// The LoRA in `folder`, an adapter's, for `prior`. Every tensor must be used.
///
/// # Errors
/// A missing or damaged file, or a LoRA that was made for another prior.
pub fn open_adapter_lora(
    folder: &Folder,
    prior: &AnyPrior,
    precision: Precision,
    device: &Device,
) -> Result<Lora, Error> {
    let path = folder.path(LORA_FILE);
    let header = SafetensorsFile::from_bytes(folder.read(LORA_FILE)?, &path)?;
    let bad = |what: String| Error::Input(format!("{}: {what}", path.display()));
    let alphas = Alphas::of_header(&header, prior.kind().folder())?;
    if alphas.differ() {
        return Err(bad(
            "has modules of different alphas; take it out of the folder and give it with --lora"
                .to_owned(),
        ));
    }
    let mut names = header.names().iter();
    let first = names.find(|name| name.ends_with("lora_A.weight"));
    let rank = match first.map(|name| (name, header.shape(name).unwrap_or_default())) {
        Some((_, &[rank, _])) if rank > 0 => rank,
        Some((name, shape)) => {
            return Err(bad(format!(
                "{name} is {shape:?} and no matrix; download or copy it again"
            )));
        }
        None => {
            return Err(bad(
                "holds no LoRA; download or copy it again, or delete it".to_owned(),
            ));
        }
    };
    let prefix = prior.kind().folder();
    let alpha = alphas.of_module("", rank).unwrap_or(rank as f64);
    let shapes = Weights::blank(device);
    prior.rebuilt(&shapes)?;
    let w = folder.weights(LORA_FILE, precision, device)?;
    let lora = Lora::new(
        &LoraConfig { rank, alpha },
        &self_attention_targets(&shapes.shapes()),
        &w.at(prefix),
    )?;
    w.finish()?;
    Ok(lora)
}
