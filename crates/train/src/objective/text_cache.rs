//! Encodings of prompts on disk: frozen text encoders read each prompt once and then leave the memory.
//!
//! An encoding is a file of its own, named by SHA-256 of the encoders (configurations, vocabularies, weights), the
//! prompt and the number of pieces it was read in; so a folder serves any run with these encoders, and never another.
//! A prompt that was not foreseen is read when it comes, by encoders that are opened for it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use burn::tensor::{DType, Device, Tensor};
use priors::{
    any::AnyPrior,
    flow::Conditioning,
    folder::{ENCODER_FILE, Folder},
    model::PriorModel,
    text::{Encoding, TextEncoders},
    weights::{Metadata, Precision, SafetensorsFile, Values, save_safetensors},
};
use sha2::{Digest, Sha256};

use super::{
    Said, encoders,
    prompts::{Prompts, disk_bytes},
};
use crate::{Error, config::TrainConfig, data::hex, disk::check_room};

/// How often [`TextCache::fill`] says how far it is.
const NOTE: Duration = Duration::from_secs(30);

/// The parts that decide what a prompt becomes.
const PARTS: [(&str, &str); 3] = [
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
    ("text_encoder_3", "tokenizer_3"),
];

/// Encodings on disk, and where the encoders are that make them.
#[derive(Debug)]
pub(super) struct TextCache {
    place: PathBuf,
    model: Folder,
    /// Without weights in memory: it says which encoders it listens to.
    network: AnyPrior,
    /// Of the encoders.
    hash: String,
    /// Of every prompt that was foreseen: in how many pieces it is read.
    pieces: Mutex<HashMap<String, usize>>,
    takes_sizes: bool,
    batch: usize,
    device: Device,
}

impl TextCache {
    /// The cache of the run `config`, whose frozen prior is `network` of `model`.
    ///
    /// # Errors
    /// Missing files of the text encoders.
    pub(super) fn new(
        config: &TrainConfig,
        model: &Folder,
        network: &AnyPrior,
        device: &Device,
    ) -> Result<Self, Error> {
        Ok(Self {
            place: config.out.join("text"),
            hash: hash(model)?,
            model: model.clone(),
            network: network.clone(),
            pieces: Mutex::default(),
            takes_sizes: match network {
                AnyPrior::Unet(unet) => unet.config().addition_embed_type.is_some(),
                AnyPrior::MmDit(_) => false,
            },
            batch: config.optimise.batch,
            device: device.clone(),
        })
    }

    fn encoders(&self) -> Result<TextEncoders, Error> {
        Ok(PriorModel::open_text(
            &self.model,
            &self.network,
            Precision::Stored,
            &self.device,
        )?)
    }

    /// Reads every prompt that training can ask for and that was not read before: `captions`, the empty one and the
    /// words for degradations; ends early at `stop`.
    ///
    /// # Errors
    /// Encoders that cannot be opened, a disk that is full or would be.
    pub(super) fn fill(
        &self,
        captions: Vec<String>,
        stop: &AtomicBool,
        say: &mut dyn FnMut(Said),
    ) -> Result<(), Error> {
        let encoders = self.encoders()?;
        let prompts = Prompts::of(&encoders, captions);
        let mut wanted = prompts.readings(self.batch);
        let all = wanted.len();
        wanted.retain(|(prompt, pieces)| !self.file(prompt, *pieces).is_file());
        if !wanted.is_empty() {
            let one = encoders.encode("", 1, &mut vec![]);
            let bytes = disk_bytes(&encoders, &one, &wanted);
            check_room(&self.place, "encoded prompts", bytes)?;
            say(Said::Progress(format!(
                "{} of {all} prompts are still to be read, into {:.3} GB in {}",
                wanted.len(),
                bytes as f64 / 1e9,
                self.place.display()
            )));
        }
        let (count, mut said) = (wanted.len(), Instant::now());
        for (i, (prompt, pieces)) in wanted.into_iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            self.store(&encoders, prompt, pieces)?;
            if said.elapsed() > NOTE {
                said = Instant::now();
                say(Said::Progress(format!("{} of {count} prompts read", i + 1)));
            }
        }
        let notes = prompts.notes.into_iter();
        notes.for_each(|note| say(Said::Note(note)));
        *self.pieces.lock().expect("no panic while held") = prompts.pieces;
        Ok(())
    }

    /// The conditioning of a batch, with the rows of `time_ids` where the prior takes sizes.
    ///
    /// # Errors
    /// A damaged file, encoders that cannot be opened, a full disk.
    pub(super) fn conditioning(
        &self,
        prompts: &[&str],
        time_ids: &[[f32; 6]],
    ) -> Result<Conditioning, Error> {
        let known: Option<usize> = {
            let pieces = self.pieces.lock().expect("no panic while held");
            let known = prompts.iter().map(|prompt| pieces.get(*prompt).copied());
            known
                .collect::<Option<Vec<_>>>()
                .map(|pieces| pieces.into_iter().max().unwrap_or(1))
        };
        let mut encoders = None;
        let pieces = match known {
            Some(pieces) => pieces,
            None => encoders.insert(self.encoders()?).pieces(prompts),
        };
        let mut batch = Vec::new();
        for prompt in prompts {
            batch.push(match self.load(prompt, pieces)? {
                Some(encoding) => encoding,
                None => {
                    let encoders = match &mut encoders {
                        Some(encoders) => encoders,
                        none => none.insert(self.encoders()?),
                    };
                    self.store(encoders, prompt, pieces)?
                }
            });
        }
        Ok(Encoding::join(batch, self.takes_sizes.then_some(time_ids)))
    }

    fn file(&self, prompt: &str, pieces: usize) -> PathBuf {
        let mut key = Sha256::new();
        key.update(&self.hash);
        key.update(pieces.to_le_bytes());
        key.update(prompt);
        let name = hex(&key.finalize());
        self.place.join(format!("{name}.safetensors"))
    }

    fn load(&self, prompt: &str, pieces: usize) -> Result<Option<Encoding>, Error> {
        let path = self.file(prompt, pieces);
        if !path.is_file() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path)?;
        let of = |name: &str| file.data(name).filter(|data| data.dtype() == DType::F32);
        let text = of("text").filter(|data| data.shape().num_dims() == 3);
        let pooled = of("pooled").filter(|data| data.shape().num_dims() == 2);
        let Some(text) = text else {
            return Err(Error::Input(format!(
                "{}: holds no encoded prompt; delete it",
                path.display()
            )));
        };
        Ok(Some(Encoding {
            text: Tensor::from_data(text, &self.device),
            pooled: pooled.map(|data| Tensor::from_data(data, &self.device)),
        }))
    }

    fn store(
        &self,
        encoders: &TextEncoders,
        prompt: &str,
        pieces: usize,
    ) -> Result<Encoding, Error> {
        let encoding = encoders::read(encoders, prompt, pieces);
        let mut values = Values::from([("text".to_owned(), encoding.text.to_data())]);
        if let Some(pooled) = &encoding.pooled {
            values.insert("pooled".to_owned(), pooled.to_data());
        }
        let path = self.file(prompt, pieces);
        save_safetensors(&path, &values, DType::F32, &Metadata::new())?;
        Ok(encoding)
    }
}

/// SHA-256 of everything that decides what a prompt becomes.
fn hash(model: &Folder) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for (encoder, tokenizer) in PARTS {
        let config = format!("{encoder}/config.json");
        // A T5 may be described and its weights left away.
        let weights = model.has(&format!("{encoder}/{ENCODER_FILE}"));
        if !model.has(&config) || (encoder == "text_encoder_3" && !weights) {
            continue;
        }
        hash.update(model.read(&config)?);
        let view = model.view(&format!("{encoder}/{ENCODER_FILE}"))?;
        view.feed(&mut |bytes| hash.update(bytes));
        for file in [
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.json",
        ] {
            let file = format!("{tokenizer}/{file}");
            hash.update(&file);
            if model.has(&file) {
                hash.update(model.read(&file)?);
            }
        }
    }
    // Whether the empty prompt is zero.
    if model.has("model_index.json") {
        hash.update(model.read("model_index.json")?);
    }
    Ok(hex(&hash.finalize()))
}
