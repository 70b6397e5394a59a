//! The degradation-robust encoder that makes the low-quality latents of a denoising run.

use std::path::PathBuf;

use burn::tensor::Device;
use priors::{
    folder::Folder,
    vae::AutoencoderKl,
    weights::{Precision, Weights},
};
use restore::adapter::{ENCODER_FOLDER, has_encoder, open_encoder};

use super::fixed::Fixed;
use crate::{
    Error,
    config::{Start, TrainConfig},
};

/// The adapter's folder whose encoder a run uses: `encoder_model`, else `adapter_model` where that has one.
pub(crate) fn encoder_of(config: &TrainConfig) -> Option<PathBuf> {
    let of_adapter = || {
        let folder = config.adapter_model.clone()?;
        (config.start != Start::Fresh && has_encoder(&Folder::Disk(folder.clone())))
            .then_some(folder)
    };
    config.encoder_model.clone().or_else(of_adapter)
}

/// The autoencoder with that encoder, and where it is from. A rehearsal reads no weights, and can come before the encoder is
/// trained.
///
/// # Errors
/// A folder without an encoder, a damaged one, one for another autoencoder.
pub(super) fn robust(
    config: &TrainConfig,
    fixed: Fixed,
    vae: &AutoencoderKl,
    device: &Device,
) -> Result<Option<(AutoencoderKl, PathBuf)>, Error> {
    let Some(path) = encoder_of(config) else {
        return Ok(None);
    };
    let folder = Folder::Disk(path.clone());
    let precision = fixed.precision(Precision::F32, &folder);
    match open_encoder(&folder, vae, precision, device)? {
        Some(robust) => Ok(Some((robust, path))),
        None if fixed == Fixed::Blank => {
            let robust = vae.with_encoder(&Weights::blank(device))?;
            Ok(Some((robust, path)))
        }
        None => Err(Error::Input(format!(
            "{}: holds no {ENCODER_FOLDER}; train one with stage = \"encoder\"",
            path.display()
        ))),
    }
}
