//! CLIP's byte-pair tokenizer, from a model's own `vocab.json` and `merges.txt` or `tokenizer.json`, or with OpenAI's vocabulary for
//! checkpoints that come without (the crate `instant-clip-tokenizer` has it).
//!
//! NFC, white space collapsed, lower case; split into contractions, letters, single digits and the
//! rest; byte level; merges with `</w>` at a word's end; between start and end tokens; padded.
//! The arithmetic is the `tokenizers` crate's; here is how CLIP sets it up.

use std::{
    fmt::{self, Debug, Formatter},
    path::Path,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use serde_json::{Value, json};
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

use super::Tokens;
use crate::Error;

pub(super) const START: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// OpenAI's vocabulary, read once.
static OPENAI: LazyLock<Arc<instant_clip_tokenizer::Tokenizer>> =
    LazyLock::new(|| Arc::new(instant_clip_tokenizer::Tokenizer::new()));

/// What turns a prompt into tokens.
#[derive(Clone)]
enum Vocabulary {
    /// A model's own vocabulary.
    Own(Box<Tokenizer>),
    /// OpenAI's, after this normalizer.
    OpenAi(Box<Tokenizer>, Arc<instant_clip_tokenizer::Tokenizer>),
}

impl Debug for Vocabulary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "own vocabulary",
            Self::OpenAi(..) => "OpenAI's vocabulary",
        })
    }
}

/// The tokenizer of one text encoder.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    vocabulary: Vocabulary,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
}

impl ClipTokenizer {
    /// From the contents of `vocab.json`, `merges.txt` and `tokenizer_config.json`; `origin` names
    /// their folder in errors and `length` is the encoder's number of positions.
    ///
    /// # Errors
    /// Files that do not fit together.
    pub fn new(
        vocab: &[u8],
        merges: &[u8],
        config: &Value,
        length: usize,
        origin: &Path,
    ) -> Result<Self, Error> {
        let bad = |why: String| unusable(origin, &why);
        let vocab: Value = serde_json::from_slice(vocab).map_err(|why| bad(why.to_string()))?;
        let merges = std::str::from_utf8(merges).map_err(|why| bad(why.to_string()))?;
        let merges: Vec<&str> = merges
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
            .collect();
        Self::build(&vocab, &merges, config, length, origin)
    }

    /// From the contents of `tokenizer.json`, which holds the vocabulary and the merges, and of `tokenizer_config.json`.
    ///
    /// # Errors
    /// A tokenizer of another kind than CLIP's.
    pub fn from_json(
        whole: &[u8],
        config: &Value,
        length: usize,
        origin: &Path,
    ) -> Result<Self, Error> {
        let bad = |why: &str| unusable(origin, why);
        let whole: Value = serde_json::from_slice(whole).map_err(|why| bad(&why.to_string()))?;
        let model = &whole["model"];
        for (key, wanted) in [("type", "BPE"), ("end_of_word_suffix", "</w>")] {
            if model.get(key).is_some_and(|got| got != wanted) {
                return Err(bad(&format!("its {key} is not {wanted}")));
            }
        }
        let merges = model["merges"].as_array().ok_or_else(|| bad("no merges"))?;
        // "a b", or ["a", "b"] as newer versions write it.
        let merge = |merge: &Value| match merge {
            Value::String(line) => Some(line.clone()),
            Value::Array(pair) => match &pair[..] {
                [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
                _ => None,
            },
            _ => None,
        };
        let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
        let merges = merges.ok_or_else(|| bad("a merge is no pair"))?;
        let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
        Self::build(&model["vocab"], &merges, config, length, origin)
    }

    fn build(
        vocab: &Value,
        merges: &[&str],
        config: &Value,
        length: usize,
        origin: &Path,
    ) -> Result<Self, Error> {
        let bad = |why: String| unusable(origin, &why);
        if length < 2 {
            return Err(bad(format!("room for {length} tokens only")));
        }
        let id = |token: &str| {
            let id = vocab
                .get(token)
                .and_then(Value::as_u64)
                .and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| bad(format!("no token {token}")))
        };
        let (start, end) = (id(START)?, id(END)?);
        let pad = id(pad_token(config))?;
        let special = [(start, START), (end, END)];
        let tokenizer = Tokenizer::from_str(&description(vocab, merges, &special).to_string())
            .map_err(|why| bad(why.to_string()))?;
        Ok(Self {
            vocabulary: Vocabulary::Own(Box::new(tokenizer)),
            start,
            end,
            pad,
            length,
        })
    }

    /// With OpenAI's vocabulary of 49,408 tokens, padded as `tokenizer_config.json` says.
    ///
    /// # Errors
    /// A padding token other than the end or `!`, or an encoder of less than two positions.
    pub fn embedded(config: &Value, length: usize) -> Result<Self, Error> {
        let bad = |why: &str| Error::unsupported("tokenizer_config.json", why);
        let openai = OPENAI.clone();
        let (start, end) = (openai.start_of_text(), openai.end_of_text());
        let (start, end) = (u32::from(start.to_u16()), u32::from(end.to_u16()));
        let pad = match pad_token(config) {
            END => end,
            "!" => 0,
            _ => {
                return Err(bad(
                    "pads with a token other than the end or \"!\"; give a folder with its vocabulary",
                ));
            }
        };
        if length < 2 {
            return Err(bad(
                "belongs to an encoder without room for a prompt; use another model",
            ));
        }
        let normalizer = unlearned().map_err(|why| bad(&why))?;
        Ok(Self {
            vocabulary: Vocabulary::OpenAi(Box::new(normalizer), openai),
            start,
            end,
            pad,
            length,
        })
    }

    /// The largest token id of the vocabulary.
    pub fn largest_id(&self) -> u32 {
        match &self.vocabulary {
            Vocabulary::Own(own) => own.get_vocab(true).into_values().max().unwrap_or(0),
            Vocabulary::OpenAi(..) => self.end,
        }
    }

    /// The token ids of `prompt`, cut to the encoder's length.
    pub fn encode(&self, prompt: &str) -> Tokens {
        let words = self.words(prompt);
        let kept = words.len().min(self.length - 2);
        Tokens {
            ids: self.framed(&words[..kept]),
            dropped: words.len() - kept,
        }
    }

    /// The token ids of all of `prompt`, in as many pieces of the encoder's length as it takes: at least one.
    pub fn encode_in_chunks(&self, prompt: &str) -> Vec<Vec<u32>> {
        let (words, room) = (self.words(prompt), self.length - 2);
        if words.is_empty() || room == 0 {
            return vec![self.framed(&[])];
        }
        words.chunks(room).map(|words| self.framed(words)).collect()
    }

    /// Tokens of the text alone.
    fn words(&self, prompt: &str) -> Vec<u32> {
        match &self.vocabulary {
            Vocabulary::Own(own) => {
                let encoding = own.encode(prompt, false);
                encoding
                    .map(|encoding| encoding.get_ids().to_vec())
                    .unwrap_or_default()
            }
            Vocabulary::OpenAi(normalizer, openai) => {
                let mut tokens = Vec::new();
                openai.encode(normalized(normalizer, prompt).get(), &mut tokens);
                tokens
                    .into_iter()
                    .map(|token| token.to_u16().into())
                    .collect()
            }
        }
    }

    /// Start, `words`, end, padding.
    fn framed(&self, words: &[u32]) -> Vec<u32> {
        let mut ids = vec![self.start];
        ids.extend(words);
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        ids
    }
}

fn unusable(origin: &Path, why: &str) -> Error {
    Error::input(
        origin,
        format!("holds no usable CLIP vocabulary ({why}); copy it again"),
    )
}

/// The token that fills a prompt up.
fn pad_token(config: &Value) -> &str {
    match config.get("pad_token") {
        Some(Value::String(pad)) => pad,
        Some(Value::Object(pad)) => pad.get("content").and_then(Value::as_str).unwrap_or(END),
        _ => END,
    }
}

/// A tokenizer without a vocabulary, for what it does before merging.
pub(super) fn unlearned() -> Result<Tokenizer, String> {
    let empty = description(&json!({ END: 0 }), &[], &[]).to_string();
    Tokenizer::from_str(&empty).map_err(|why| why.to_string())
}

/// NFC, white space collapsed, lower case.
pub(super) fn normalized(tokenizer: &Tokenizer, text: &str) -> NormalizedString {
    let mut text = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        // None of the three steps can fail.
        normalizer.normalize(&mut text).unwrap_or_default();
    }
    text
}

/// The tokenizer as the `tokenizers` crate's own JSON.
fn description(vocab: &Value, merges: &[&str], special: &[(u32, &str)]) -> Value {
    let added = |&(id, content): &(u32, &str)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().map(added).collect::<Vec<_>>(),
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocab, "merges": merges,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::learn;

    #[test]
    fn a_learned_vocabulary_encodes_any_text() {
        let texts = vec!["low quality photo".to_owned(); 4];
        let (vocab, merges) = learn(&texts, 600).expect("learns");
        let tokenizer = ClipTokenizer::new(
            vocab.as_bytes(),
            merges.as_bytes(),
            &Value::Null,
            16,
            Path::new("test"),
        )
        .expect("fits together");
        let known = tokenizer.encode("Low  QUALITY photo");
        assert_eq!(known.dropped, 0);
        assert_eq!(known.ids, tokenizer.encode("low quality photo").ids);
        assert!(
            known.ids.iter().filter(|&&id| id != tokenizer.end).count() <= 4,
            "{:?}",
            known.ids
        );
        let other = tokenizer.encode("žluťoučký 写真 42");
        assert_eq!(other.ids.len(), 16);
        assert!(other.dropped > 0 || other.ids.contains(&tokenizer.end));
    }

    #[test]
    fn a_long_prompt_says_how_much_was_dropped() {
        let (vocab, merges) = learn(&["a".to_owned()], 520).expect("learns");
        let tokenizer = ClipTokenizer::new(
            vocab.as_bytes(),
            merges.as_bytes(),
            &Value::Null,
            8,
            Path::new("test"),
        )
        .expect("fits together");
        let tokens = tokenizer.encode("a a a a a a a a");
        assert_eq!((tokens.ids.len(), tokens.dropped), (8, 2));
    }

    #[test]
    fn a_long_prompt_is_whole_in_its_chunks() {
        let (vocab, merges) = learn(&["a".to_owned()], 520).expect("learns");
        let tokenizer = ClipTokenizer::new(
            vocab.as_bytes(),
            merges.as_bytes(),
            &Value::Null,
            8,
            Path::new("test"),
        )
        .expect("fits together");
        let short = "a b c";
        assert_eq!(
            tokenizer.encode_in_chunks(short),
            [tokenizer.encode(short).ids]
        );
        assert_eq!(tokenizer.encode_in_chunks(""), [tokenizer.encode("").ids]);
        let chunks = tokenizer.encode_in_chunks("a b c d e f g h i j k l m");
        let pieces = ["a b c d e f", "g h i j k l", "m"];
        assert_eq!(chunks, pieces.map(|piece| tokenizer.encode(piece).ids));
    }
}
