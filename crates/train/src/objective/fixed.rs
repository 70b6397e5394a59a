//! What stays as it is while a run trains: loaded for the run, blank for its plan.

use burn::tensor::{DType, Device};
use priors::{
    any::{AnyPrior, Architecture},
    folder::{Folder, Given, NETWORK_FILE},
    weights::{Precision, Weights},
};

use crate::{
    Error,
    config::{Stage, TrainConfig},
};

/// Whether what stays fixed is loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fixed {
    Loaded,
    /// Zeros that take no memory, for a rehearsal; what trains starts fresh, from no file.
    Blank,
}

impl Fixed {
    /// The weights as `precision` would hand them out, or zeros of that type.
    pub(super) fn precision(self, precision: Precision, folder: &Folder) -> Precision {
        match (self, precision) {
            (Self::Loaded, precision) => precision,
            (Self::Blank, Precision::F32) => Precision::Blank(DType::F32),
            (Self::Blank, _) => Precision::Blank(stored_dtype(folder)),
        }
    }
}

/// The folder of the model, with the parts that are named in place of its own. One that stays as it is may be a checkpoint; of
/// a folder the encoder's stage needs `vae/` alone.
pub(crate) fn folder_of(config: &TrainConfig) -> Result<Folder, Error> {
    let open = match config.stage {
        Stage::Adapter => true,
        Stage::Encoder => !config.model.join("vae/config.json").is_file(),
        Stage::Vae | Stage::Prior | Stage::Joint => false,
    };
    let given = Given {
        vae: config.vae_model.clone(),
        text_encoders: config.text_encoder_models.clone(),
    };
    Ok(if open {
        Folder::open_with(&config.model, &given)?
    } else {
        Folder::Disk(config.model.clone()).with_parts(&given)?
    })
}

/// The type that the network of `folder` is stored in; the one SDXL and SD3 are published in where there are no weights.
pub(crate) fn stored_dtype(folder: &Folder) -> DType {
    let network = Architecture::of(folder).folder();
    let blank = Weights::blank(&Device::flex());
    let dtype = AnyPrior::from_folder(folder, &blank).ok().and_then(|_| {
        let view = folder.view(&format!("{network}/{NETWORK_FILE}")).ok()?;
        view.dtype(blank.shapes().keys().next()?)
    });
    match dtype {
        Some(DType::F64) => DType::F32,
        Some(dtype) => dtype,
        None => DType::F16,
    }
}
