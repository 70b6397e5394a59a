//! The degradation-robust encoder of an adapter's folder: an encoder that sees through degradations.
//!
//! It is a copy of the prior's encoder, trained so that its latent of a low-quality picture is the prior's latent of the
//! clean one. Where a folder has one it makes `c_lq`: what the adapter sees, what the sampler starts from and what
//! restoration guidance pulls towards. The decoder, and the 1x1 convolution behind the encoder, are the prior's.
//!
//! ```text
//! degradation_robust_encoder/config.json                              the prior's vae/config.json
//! degradation_robust_encoder/diffusion_pytorch_model.safetensors      encoder.*
//! ```
//!
//! Source: Yu et al., SUPIR (2401.13627), section 3.1, which the paper takes it from.

use std::path::Path;

use burn::tensor::{DType, Device};
use priors::{
    folder::{Folder, NETWORK_FILE},
    vae::{AutoencoderKl, VaeConfig},
    weights::{Metadata, Precision, Values, Weights, save_safetensors, write_atomically},
};
use serde_json::Value;

use crate::Error;

/// The encoder's folder in an adapter's.
pub const ENCODER_FOLDER: &str = "degradation_robust_encoder";

/// The encoder's tensors in an adapter's folder.
pub fn encoder_file() -> String {
    format!("{ENCODER_FOLDER}/{NETWORK_FILE}")
}

fn config_file() -> String {
    format!("{ENCODER_FOLDER}/config.json")
}

/// Whether `adapter` has a degradation-robust encoder.
pub fn has_encoder(adapter: &Folder) -> bool {
    adapter.has(&config_file()) || adapter.has(&encoder_file())
}

/// The prior's autoencoder with the encoder of `adapter`, where it has one. Every tensor must be used.
///
/// # Errors
/// A missing or damaged file, or an encoder that was made for another autoencoder.
pub fn open_encoder(
    adapter: &Folder,
    vae: &AutoencoderKl,
    precision: Precision,
    device: &Device,
) -> Result<Option<AutoencoderKl>, Error> {
    if !has_encoder(adapter) {
        return Ok(None);
    }
    let file = config_file();
    let path = adapter.path(&file);
    let config = VaeConfig::from_json(&adapter.json(&file)?, &path)?;
    if config != *vae.config() {
        return Err(Error::Input(format!(
            "{}: the encoder was made for another autoencoder; use the adapter's own prior",
            path.display()
        )));
    }
    let w = adapter.weights(&encoder_file(), precision, device)?;
    let robust = vae.with_encoder(&w)?;
    w.finish()?;
    Ok(Some(robust))
}

/// How many values the encoder of `adapter` holds, where it has one, from its configuration alone.
///
/// # Errors
/// A configuration that is no autoencoder's.
pub fn count_encoder(adapter: &Folder, device: &Device) -> Result<Option<usize>, Error> {
    let file = config_file();
    if !adapter.has(&file) {
        return Ok(None);
    }
    let config = VaeConfig::from_json(&adapter.json(&file)?, &adapter.path(&file))?;
    let w = Weights::blank(device);
    let vae = AutoencoderKl::new(config, &Weights::blank(device))?;
    vae.with_encoder(&w)?;
    Ok(Some(w.count()))
}

/// Writes the encoder into an adapter's folder; `config` is the prior's `vae/config.json`.
///
/// # Errors
/// A folder that cannot be written to.
pub fn save_encoder(
    adapter: &Path,
    config: &Value,
    encoder: &Values,
    dtype: DType,
) -> Result<(), Error> {
    let file = adapter.join(encoder_file());
    save_safetensors(&file, encoder, dtype, &Metadata::new())?;
    let json = serde_json::to_vec_pretty(config).expect("plain JSON");
    Ok(write_atomically(&adapter.join(config_file()), &json)?)
}
