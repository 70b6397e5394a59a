//! What tensors a part of a prior has, from its configuration alone.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, TensorData};

use super::{ENCODER_FILE, Folder, NETWORK_FILE};
use crate::{
    Error, any::AnyPrior, clip::ClipText, t5::T5Encoder, vae::AutoencoderKl, weights::Weights,
};

/// Names and shapes of tensors.
pub type Shapes = BTreeMap<String, Vec<usize>>;

impl Folder {
    /// The weights file of the sub-folder `part`.
    pub fn weights_file(part: &str) -> String {
        let name = match part.starts_with("text_encoder") {
            true => ENCODER_FILE,
            false => NETWORK_FILE,
        };
        format!("{part}/{name}")
    }

    /// Names and shapes of the tensors of the sub-folder `part`: the network, `vae`, `text_encoder` and so on.
    ///
    /// # Errors
    /// A missing or unsupported configuration.
    pub fn shapes(&self, part: &str) -> Result<Shapes, Error> {
        let w = Weights::blank(&Device::flex());
        let file = format!("{part}/config.json");
        let (json, path) = (self.json(&file)?, self.path(&file));
        match part {
            "vae" => drop(AutoencoderKl::from_json(&json, &path, &w)?),
            "text_encoder" | "text_encoder_2" => drop(ClipText::from_json(&json, &path, &w)?),
            "text_encoder_3" => drop(T5Encoder::from_json(&json, &path, &w)?),
            _ => drop(AnyPrior::from_folder(self, &w)?),
        }
        Ok(w.shapes())
    }

    /// The tensors of the sub-folder `part` as they are loaded, for whoever stores them elsewhere.
    ///
    /// # Errors
    /// Weights that do not fit the part's configuration.
    pub fn stored(&self, part: &str) -> Result<StoredPart, Error> {
        let file = Self::weights_file(part);
        let (view, edit, shapes) = (self.view(&file)?, self.edit(&file), self.shapes(part)?);
        if let [first, ..] = &view.unused(&shapes)[..] {
            let what = format!(
                "{first} and perhaps others are not part of this network; this file does not fit its config.json"
            );
            return Err(Error::weights(view.path(), what));
        }
        for (name, shape) in &shapes {
            let got = view.shape(name);
            if got.as_ref() != Some(shape) {
                let what = format!(
                    "tensor {name} should be {shape:?} and is {got:?}; this file does not fit its config.json"
                );
                return Err(Error::weights(view.path(), what));
            }
        }
        Ok(StoredPart { view, edit, shapes })
    }
}

/// One part's tensors, under diffusers' names.
#[derive(Clone, Debug)]
pub struct StoredPart {
    view: crate::weights::View,
    edit: Option<std::sync::Arc<dyn crate::weights::Edit>>,
    shapes: Shapes,
}

impl StoredPart {
    /// Names and shapes.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// The type a tensor is stored in.
    pub fn dtype(&self, name: &str) -> DType {
        self.view.dtype(name).unwrap_or(DType::F32)
    }

    /// A tensor, changed where the folder is edited.
    ///
    /// # Errors
    /// A tensor of a type that is not supported.
    pub fn tensor(&self, name: &str) -> Result<TensorData, Error> {
        let Some(data) = self.view.data(name)? else {
            let what = format!("tensor {name} is missing; download or copy the file again");
            return Err(Error::weights(self.view.path(), what));
        };
        Ok(match &self.edit {
            Some(edit) => edit.edit(name, data),
            None => data,
        })
    }

    /// The file it is in.
    pub fn path(&self) -> &std::path::Path {
        self.view.path()
    }
}
