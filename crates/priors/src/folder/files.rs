//! The files of a model: a diffusers folder on disk, one in the program, a single file that looks like one, or any of
//! these with tensors changed while they are loaded.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;
use bytes::Bytes;
use serde_json::Value;

use super::{ENCODER_FILE, Given, Replaced, shards};
use crate::{
    Error, json,
    kind::Kind,
    known,
    single_file::{Configs, EncoderNames, PARTS, SingleFile, T5_TOKENIZER, Wanted, part},
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
    /// Another folder, with parts that were given in place of its own.
    Replaced {
        /// The folder.
        folder: Box<Folder>,
        /// What stands in place of its parts.
        parts: Arc<Replaced>,
    },
    /// Another folder, some of whose parts are changed while they are loaded.
    Edited {
        /// The folder.
        folder: Box<Folder>,
        /// What is done to the tensors of a sub-folder, `unet` for example.
        edits: BTreeMap<&'static str, Arc<dyn Edit>>,
    },
}

impl Folder {
    /// The file's path, for messages.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(folder) => folder.join(file),
            Self::Embedded(_) => Path::new("(embedded)").join(file),
            Self::Single(single) => single.path(file),
            Self::Replaced { folder, parts } => match parts.path(file) {
                Some(path) => path.to_owned(),
                None => folder.path(file),
            },
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
            Self::Replaced { folder, parts } => parts.path(file).is_some() || folder.has(file),
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
            Self::Replaced { folder, parts } => match parts.read(file) {
                Some(bytes) => Ok(bytes.clone()),
                None => folder.read(file),
            },
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
            Self::Replaced { folder, parts } => match parts.view(file) {
                Some(view) => Ok(view.clone()),
                None => folder.view(file),
            },
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
            Self::Edited { edits, .. } => edits.get(part(file)).cloned(),
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

    /// Which file each part comes from, where they are not all in one folder, and what was found and is not used: a line each.
    pub fn sources(&self) -> Vec<String> {
        let mut files: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        let mut left_out = &[][..];
        if let Self::Single(single) = self.below() {
            for (part, path) in single.sources() {
                files.entry(path).or_default().push(part);
            }
            left_out = single.left_out();
        }
        if let Some(replaced) = self.replacements() {
            for (part, path) in replaced.sources() {
                files.entry(path).or_default().push(part);
            }
        }
        let line = |(path, parts): (&Path, Vec<&str>)| {
            format!("{} from {}", parts.join(", "), path.display())
        };
        let lines = files.into_iter().map(line);
        let without_t5 = self.lacks_weights_of_t5().then(|| {
            format!(
                "T5 is left out, as {} is missing; prompts are read by the two CLIPs, and T5's tokens are zero",
                self.path(&format!("text_encoder_3/{ENCODER_FILE}")).display()
            )
        });
        let left_out = left_out.iter().cloned().chain(without_t5);
        lines.chain(left_out).collect()
    }

    /// Whether the folder describes a T5 whose weights are not there.
    pub(crate) fn lacks_weights_of_t5(&self) -> bool {
        self.has("text_encoder_3/config.json")
            && !self.has(&format!("text_encoder_3/{ENCODER_FILE}"))
    }

    /// The LoRA file that `name` means where it is no path: in `loras` beside a checkpoint or in ComfyUI's `models`.
    pub fn find_lora(&self, name: &Path) -> Option<PathBuf> {
        let Self::Single(single) = self.below() else {
            return None;
        };
        let mut named = name.as_os_str().to_owned();
        named.push(".safetensors");
        let roots = single.roots();
        let mut places = roots.iter().flat_map(|root| {
            let loras = root.join("loras");
            [loras.join(name), loras.join(&named)]
        });
        places.find(|path| path.is_file())
    }

    /// This folder with the files that are given for some of its parts.
    ///
    /// # Errors
    /// A given file that is no such part or does not fit.
    pub fn with_parts(self, given: &Given) -> Result<Self, Error> {
        let mut configs = Configs::new();
        let mut wanted = Vec::new();
        let of_unet = self.network() == "unet";
        for part in PARTS {
            let file = format!("{part}/config.json");
            if self.has(&file) {
                wanted.extend(Wanted::new(part, of_unet, &self.json(&file)?));
                configs.insert(file.clone(), self.read(&file)?);
            }
        }
        // A transformer's folder may do without T5; the one that is given then has the published configuration.
        let file = "text_encoder_3/config.json";
        let known = known::configs(Kind::Sd3Medium).filter(|_| !of_unet && !self.has(file));
        if let Some(known) = known {
            let config = known.json(file)?;
            let hears = self.json("transformer/config.json")?["joint_attention_dim"].clone();
            if config["d_model"] == hears {
                wanted.extend(Wanted::new("text_encoder_3", of_unet, &config));
                configs.insert(file.to_owned(), known.read(file)?);
            }
        }
        let index = self.path("model_index.json");
        let origin = index.parent().unwrap_or(&index);
        let replaced = given.resolve(&wanted, self.has(T5_TOKENIZER), &configs, origin)?;
        Ok(self.replaced(replaced))
    }

    pub(super) fn replaced(self, parts: Replaced) -> Self {
        if parts.is_empty() {
            return self;
        }
        Self::Replaced {
            folder: Box::new(self),
            parts: Arc::new(parts),
        }
    }

    /// What stands in place of the folder's own parts.
    pub fn replacements(&self) -> Option<&Replaced> {
        match self {
            Self::Replaced { parts, .. } => Some(parts),
            Self::Edited { folder, .. } => folder.replacements(),
            _ => None,
        }
    }

    /// The folder without what is done to it.
    pub fn below(&self) -> &Self {
        match self {
            Self::Edited { folder, .. } | Self::Replaced { folder, .. } => folder.below(),
            other => other,
        }
    }
}
