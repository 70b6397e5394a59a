//! The files of a model: a diffusers folder on disk, one in the program, a single file that looks like one, or any of
//! these with a network's tensors changed while they are loaded.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;
use bytes::Bytes;
use serde_json::Value;

use super::shards;
use crate::{
    Error, json,
    single_file::{EncoderNames, SingleFile},
    tokenizer::ClipTokenizer,
    weights::{Edit, Precision, SafetensorsFile, View, Weights},
};

/// Where a model's files are.
#[derive(Clone, Debug)]
pub enum Folder {
    /// On disk.
    Disk(PathBuf),
    /// In the program: relative path and contents of every file.
    Embedded(&'static [(&'static str, &'static [u8])]),
    /// A checkpoint of another program, under diffusers' names.
    Single(Arc<SingleFile>),
    /// Another folder, whose network `part` (`unet` for example) is changed while it is loaded.
    Edited {
        /// The folder.
        folder: Box<Folder>,
        /// The sub-folder of the network.
        part: &'static str,
        /// What is done to its tensors.
        edit: Arc<dyn Edit>,
    },
}

impl Folder {
    /// The file's path, for messages.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(folder) => folder.join(file),
            Self::Embedded(_) => Path::new("(embedded)").join(file),
            Self::Single(single) => single.path(file),
            Self::Edited { folder, .. } => folder.path(file),
        }
    }

    /// Whether the folder holds this file; weights also when they are stored in shards or in a variant.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Self::Disk(folder) if shards::is_weights(file) => shards::find(folder, file).is_some(),
            Self::Disk(folder) => folder.join(file).is_file(),
            Self::Embedded(files) => files.iter().any(|(name, _)| *name == file),
            Self::Single(single) => single.has(file),
            Self::Edited { folder, .. } => folder.has(file),
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
            Self::Disk(folder) if !folder.join(file).is_file() => Err(missing()),
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
            Self::Single(single) => single.read(file),
            Self::Edited { folder, .. } => folder.read(file),
        }
    }

    /// The file's contents as JSON.
    ///
    /// # Errors
    /// A missing file or one that is not JSON.
    pub fn json(&self, file: &str) -> Result<Value, Error> {
        json::parse(&self.read(file)?, &self.path(file))
    }

    /// The tensors of a weights file, or of its shards or variant, without a device.
    ///
    /// # Errors
    /// As [`Folder::weights`].
    pub fn view(&self, file: &str) -> Result<View, Error> {
        match self {
            Self::Disk(folder) => {
                let view = shards::open(folder, file)?;
                // Older versions of transformers saved what is no parameter.
                let encoder = file.starts_with("text_encoder");
                Ok(if encoder {
                    view.renamed(Arc::new(EncoderNames::Own))
                } else {
                    view
                })
            }
            Self::Embedded(_) => {
                let file = SafetensorsFile::from_bytes(self.read(file)?, &self.path(file))?;
                Ok(View::plain(vec![file]))
            }
            Self::Single(single) => single.view(file),
            Self::Edited { folder, .. } => folder.view(file),
        }
    }

    /// The tensors of a weights file, or of its shards or variant; blank ones without a file.
    ///
    /// # Errors
    /// A missing file or one that is no safetensors file.
    pub fn weights(
        &self,
        file: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Weights, Error> {
        if let Precision::Blank(dtype) = precision {
            return Ok(Weights::blank_of(dtype, device));
        }
        let weights = Weights::from_view(self.view(file)?, precision, device);
        Ok(match self.edit(file) {
            Some(edit) => weights.edited(edit),
            None => weights,
        })
    }

    /// What is done to the tensors of `file` while they are loaded.
    pub fn edit(&self, file: &str) -> Option<Arc<dyn Edit>> {
        match self {
            Self::Edited { part, edit, .. } if file.split('/').next() == Some(*part) => {
                Some(edit.clone())
            }
            _ => None,
        }
    }

    /// The sub-folder of the network: `transformer` or `unet`.
    pub fn network(&self) -> &'static str {
        if self.has("transformer/config.json") {
            "transformer"
        } else {
            "unet"
        }
    }

    /// The CLIP tokenizer in the sub-folder `part` for an encoder of `length` positions: from `vocab.json` and
    /// `merges.txt`, else from `tokenizer.json`; OpenAI's where there is no vocabulary.
    ///
    /// # Errors
    /// Missing files, or files that do not fit together.
    pub fn clip_tokenizer(&self, part: &str, length: usize) -> Result<ClipTokenizer, Error> {
        let file = |name: &str| format!("{part}/{name}");
        let config = self.json(&file("tokenizer_config.json"))?;
        if !self.has(&file("vocab.json")) && !self.has(&file("merges.txt")) {
            let whole = file("tokenizer.json");
            return if self.has(&whole) {
                ClipTokenizer::from_json(&self.read(&whole)?, &config, length, &self.path(&whole))
            } else {
                ClipTokenizer::embedded(&config, length)
            };
        }
        ClipTokenizer::new(
            &self.read(&file("vocab.json"))?,
            &self.read(&file("merges.txt"))?,
            &config,
            length,
            &self.path(part),
        )
    }

    /// A line about what was found with a checkpoint and is not used.
    pub fn left_out(&self) -> Option<String> {
        match self.below() {
            Self::Single(single) => single.left_out(),
            _ => None,
        }
    }

    /// The folder without what is done to it.
    pub fn below(&self) -> &Self {
        match self {
            Self::Edited { folder, .. } => folder.below(),
            other => other,
        }
    }
}
