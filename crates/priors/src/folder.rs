//! A model's diffusers folder, on disk or embedded in the program.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use bytes::Bytes;
use serde_json::Value;

use crate::{
    Error, json,
    weights::{Precision, Weights},
};

/// Where a model's files are.
#[derive(Clone, Debug)]
pub enum Folder {
    /// On disk.
    Disk(PathBuf),
    /// In the program: relative path and contents of every file.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Folder {
    /// The file's path, for messages.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(folder) => folder.join(file),
            Self::Embedded(_) => Path::new("(embedded)").join(file),
        }
    }

    /// Whether the folder holds this file.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Self::Disk(folder) => folder.join(file).is_file(),
            Self::Embedded(files) => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// The file's contents; a file on disk is mapped.
    ///
    /// # Errors
    /// A missing or unreadable file.
    pub fn read(&self, file: &str) -> Result<Bytes, Error> {
        let missing = || {
            let what = "is missing; give a folder in diffusers' layout (unet or transformer, vae, text_encoder, tokenizer, scheduler)";
            Error::input(self.path(file), what)
        };
        match self {
            Self::Disk(_) if !self.has(file) => Err(missing()),
            Self::Disk(folder) => {
                let path = folder.join(file);
                kernels::map_file(&path).map_err(|source| Error::io(path, source))
            }
            Self::Embedded(files) => {
                let found = files
                    .iter()
                    .find(|(name, _)| *name == file)
                    .ok_or_else(missing)?;
                Ok(Bytes::from_static(found.1))
            }
        }
    }

    /// The file's contents as JSON.
    ///
    /// # Errors
    /// A missing file or one that is not JSON.
    pub fn json(&self, file: &str) -> Result<Value, Error> {
        json::parse(&self.read(file)?, &self.path(file))
    }

    /// The tensors of a safetensors file.
    ///
    /// # Errors
    /// A missing file or one that is no safetensors file.
    pub fn weights(
        &self,
        file: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Weights, Error> {
        Weights::from_bytes(self.read(file)?, &self.path(file), precision, device)
    }
}

/// The weights file of a network in a diffusers folder.
pub const NETWORK_FILE: &str = "diffusion_pytorch_model.safetensors";

/// The weights file of a text encoder in a diffusers folder.
pub const ENCODER_FILE: &str = "model.safetensors";
