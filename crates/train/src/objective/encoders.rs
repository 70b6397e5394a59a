//! Where the text of a batch comes from: the prior's own encoders as they are, or a CLIP that trains with it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
};

use priors::{
    any::AnyPrior,
    folder::Folder,
    model::PriorModel,
    text::{Encoding, TextEncoders},
    tokenizer::{ClipTokenizer, learn},
    weights::write_atomically,
};
use serde_json::Value;

use super::{
    prompts::{Prompts, disk_bytes},
    text_cache::TextCache,
};
use crate::{Error, config::TrainConfig, data::Photos, walk::Text};

/// Where the text comes from.
#[derive(Debug)]
pub(super) enum Encoders {
    /// From the prior's own encoders, as they are.
    Frozen(Box<TextEncoders>),
    /// From what these said before.
    Cached(Box<TextCache>),
    /// In a rehearsal of [`Self::Cached`]: from encoders that read one prompt for all of its number of pieces.
    Rehearsed {
        encoders: Box<TextEncoders>,
        read: Mutex<HashMap<usize, Encoding>>,
    },
    /// From a single CLIP that trains.
    Trained {
        json: Value,
        tokenizer: Box<ClipTokenizer>,
    },
}

impl Encoders {
    /// What stands for a cache in a rehearsal.
    pub(super) fn rehearsed(encoders: TextEncoders) -> Self {
        let empty = encoders.encode("", 1, &mut vec![]);
        Self::Rehearsed {
            encoders: Box::new(encoders),
            read: Mutex::new(HashMap::from([(1, empty)])),
        }
    }

    /// The text encoder that trains with `prior`, and its tokenizer.
    ///
    /// # Errors
    /// A prior that listens to more than a single CLIP, missing or unsupported files.
    pub(super) fn trained(
        config: &TrainConfig,
        folder: &Folder,
        prior: &AnyPrior,
    ) -> Result<Self, Error> {
        if !PriorModel::has_single_text_encoder(folder, prior)? {
            let what = "this stage trains priors with a single text encoder; use stage = \"adapter\" with this prior";
            return Err(Error::Input(what.into()));
        }
        let json = folder.json("text_encoder/config.json")?;
        let length = json
            .get("max_position_embeddings")
            .and_then(Value::as_u64)
            .unwrap_or(77) as usize;
        let tokenizer = Box::new(tokenizer(config, folder, &json, length)?);
        Ok(Self::Trained { json, tokenizer })
    }

    /// What the user should know about how `captions` are read; a cache says it itself, where it is filled.
    pub(super) fn notes(&self, captions: Vec<String>) -> Vec<String> {
        match self {
            Self::Frozen(encoders) => Prompts::of(encoders, captions).notes,
            Self::Cached(_) | Self::Rehearsed { .. } => vec![],
            Self::Trained { tokenizer, .. } => {
                let captions: BTreeSet<String> = captions.into_iter().collect();
                let is_cut = |caption: &&String| tokenizer.encode(caption).dropped > 0;
                let (cut, all) = (captions.iter().filter(is_cut).count(), captions.len());
                let note =
                    format!("{cut} of {all} captions are longer than the text encoder and are cut");
                if cut > 0 { vec![note] } else { vec![] }
            }
        }
    }

    /// What a cache of `captions` takes on disk, bytes, in a rehearsal of one.
    pub(super) fn disk_bytes(&self, captions: Vec<String>, batch: usize) -> u64 {
        let Self::Rehearsed { encoders, read } = self else {
            return 0;
        };
        let one = &read.lock().expect("no panic while held")[&1];
        let prompts = Prompts::of(encoders, captions);
        disk_bytes(encoders, one, &prompts.readings(batch))
    }

    /// The text of a batch; `time_ids` is what a prior that takes sizes is told about each sample.
    ///
    /// # Errors
    /// A cache that cannot be read or written.
    pub(super) fn text(&self, prompts: &[&str], time_ids: &[[f32; 6]]) -> Result<Text, Error> {
        Ok(match self {
            Self::Frozen(encoders) => {
                let pieces = encoders.pieces(prompts);
                let encode = |prompt: &&str| read(encoders, prompt, pieces);
                let batch = prompts.iter().map(encode).collect();
                let time_ids = encoders.takes_sizes().then_some(time_ids);
                Text::Encoded(Encoding::join(batch, time_ids))
            }
            Self::Rehearsed { encoders, read } => {
                let pieces = encoders.pieces(prompts);
                let mut read = read.lock().expect("no panic while held");
                let encoding = read
                    .entry(pieces)
                    .or_insert_with(|| encoders.encode("", pieces, &mut vec![]));
                let batch = vec![encoding.clone(); prompts.len()];
                let time_ids = encoders.takes_sizes().then_some(time_ids);
                Text::Encoded(Encoding::join(batch, time_ids))
            }
            Self::Cached(cache) => Text::Encoded(cache.conditioning(prompts, time_ids)?),
            Self::Trained { tokenizer, .. } => {
                let ids = prompts.iter().map(|prompt| tokenizer.encode(prompt).ids);
                Text::Ids(ids.collect())
            }
        })
    }
}

/// A prompt by frozen encoders, as `restore` reads it whatever the run's precision: T5 overflows f16.
pub(super) fn read(encoders: &TextEncoders, prompt: &str, pieces: usize) -> Encoding {
    kernels::with_stored_products(|| encoders.encode(prompt, pieces, &mut vec![]))
}

/// The model's tokenizer, or one learned from the captions where the model has no vocabulary yet.
fn tokenizer(
    config: &TrainConfig,
    folder: &Folder,
    text_json: &Value,
    length: usize,
) -> Result<ClipTokenizer, Error> {
    let settings = folder.json("tokenizer/tokenizer_config.json")?;
    // A resumed run goes on with the vocabulary it has learned.
    for folder in [folder, &Folder::Disk(config.out.join("prior"))] {
        if folder.has("tokenizer/vocab.json") && folder.has("tokenizer/merges.txt") {
            let vocab = folder.read("tokenizer/vocab.json")?;
            let merges = folder.read("tokenizer/merges.txt")?;
            return Ok(ClipTokenizer::new(
                &vocab,
                &merges,
                &settings,
                length,
                &folder.path("tokenizer"),
            )?);
        }
    }
    let size = text_json
        .get("vocab_size")
        .and_then(Value::as_u64)
        .unwrap_or(0) as usize;
    let mut texts = Photos::open(&config.data, config.seed)?.captions();
    // Often enough that each of its words becomes one token.
    texts.extend(vec![
        "low quality, low resolution, blurry, noisy, compressed"
            .to_owned();
        64
    ]);
    let (vocab, merges) = learn(&texts, size)?;
    let out = config.out.join("prior/tokenizer");
    write_atomically(&out.join("vocab.json"), vocab.as_bytes())?;
    write_atomically(&out.join("merges.txt"), merges.as_bytes())?;
    Ok(ClipTokenizer::new(
        vocab.as_bytes(),
        merges.as_bytes(),
        &settings,
        length,
        &out,
    )?)
}
