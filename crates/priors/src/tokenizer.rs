//! CLIP's byte-pair tokenizer, from a model's own `vocab.json` and `merges.txt`, or with OpenAI's vocabulary for
//! checkpoints that come without (the crate `instant-clip-tokenizer` has it).
//!
//! NFC, white space collapsed, lower case; split into contractions, letters, single digits and the
//! rest; byte level; merges with `</w>` at a word's end; between start and end tokens; padded.
//! The arithmetic is the `tokenizers` crate's; here is how CLIP sets it up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Debug, Formatter},
    path::Path,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use serde_json::{Map, Value, json};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer, pre_tokenizers::byte_level::ByteLevel,
};

use crate::Error;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// OpenAI's vocabulary, read once.
static OPENAI: LazyLock<Arc<instant_clip_tokenizer::Tokenizer>> =
    LazyLock::new(|| Arc::new(instant_clip_tokenizer::Tokenizer::new()));

/// What turns a prompt into tokens.
#[derive(Clone)]
enum Words {
    /// A model's own vocabulary.
    Own(Box<Tokenizer>),
    /// OpenAI's, after this normalizer.
    OpenAi(Box<Tokenizer>, Arc<instant_clip_tokenizer::Tokenizer>),
}

impl Debug for Words {
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
    words: Words,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
}

/// A prompt as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Start, the words, end, padding: always the encoder's full length.
    pub ids: Vec<u32>,
    /// How many tokens of the prompt did not fit.
    pub dropped: usize,
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
        let bad = |why: String| {
            Error::input(
                origin,
                format!("holds no usable CLIP vocabulary ({why}); copy it again"),
            )
        };
        if length < 2 {
            return Err(bad(format!("room for {length} tokens only")));
        }
        let vocab: Value = serde_json::from_slice(vocab).map_err(|why| bad(why.to_string()))?;
        let merges = std::str::from_utf8(merges).map_err(|why| bad(why.to_string()))?;
        let merges: Vec<&str> = merges
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
            .collect();
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
        let tokenizer = Tokenizer::from_str(&description(&vocab, &merges, &special).to_string())
            .map_err(|why| bad(why.to_string()))?;
        Ok(Self {
            words: Words::Own(Box::new(tokenizer)),
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
            words: Words::OpenAi(Box::new(normalizer), openai),
            start,
            end,
            pad,
            length,
        })
    }

    /// The largest token id of the vocabulary.
    pub fn largest_id(&self) -> u32 {
        match &self.words {
            Words::Own(own) => own.get_vocab(true).into_values().max().unwrap_or(0),
            Words::OpenAi(..) => self.end,
        }
    }

    /// The token ids of `prompt`.
    pub fn encode(&self, prompt: &str) -> Tokens {
        let words = match &self.words {
            Words::Own(own) => {
                let encoding = own.encode(prompt, false);
                encoding
                    .map(|encoding| encoding.get_ids().to_vec())
                    .unwrap_or_default()
            }
            Words::OpenAi(normalizer, openai) => {
                let mut tokens = Vec::new();
                openai.encode(normalized(normalizer, prompt).get(), &mut tokens);
                tokens
                    .into_iter()
                    .map(|token| token.to_u16().into())
                    .collect()
            }
        };
        let kept = words.len().min(self.length - 2);
        let mut ids = vec![self.start];
        ids.extend(&words[..kept]);
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Tokens {
            ids,
            dropped: words.len() - kept,
        }
    }
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
fn unlearned() -> Result<Tokenizer, String> {
    let empty = description(&json!({ END: 0 }), &[], &[]).to_string();
    Tokenizer::from_str(&empty).map_err(|why| why.to_string())
}

/// NFC, white space collapsed, lower case.
fn normalized(tokenizer: &Tokenizer, text: &str) -> NormalizedString {
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

/// Learns a vocabulary of at most `size` tokens from `texts`; returns `vocab.json` and `merges.txt`.
///
/// The 256 bytes and their word-final forms come first, so that any text can be encoded. Then the most
/// frequent pair of neighbours is merged, again and again; of equally frequent pairs the first in order,
/// so that the same texts give the same vocabulary (the library's own trainer does not).
///
/// # Errors
/// What the tokenizer says about the texts.
pub fn learn(texts: &[String], size: usize) -> Result<(String, String), Error> {
    let mut tokens: Vec<String> = alphabet().map(String::from).collect();
    tokens.extend(alphabet().map(|c| format!("{c}</w>")));
    let room = size.saturating_sub(tokens.len() + 2);
    let mut words = words(texts)?;
    let mut merges: Vec<(String, String)> = Vec::new();
    let mut known: BTreeSet<String> = tokens.iter().cloned().collect();
    while merges.len() < room {
        let Some((a, b)) = most_frequent_pair(&words) else {
            break;
        };
        let joined = format!("{a}{b}");
        for (word, _) in &mut words {
            merge(word, &a, &b, &joined);
        }
        if known.insert(joined.clone()) {
            tokens.push(joined);
        }
        merges.push((a, b));
    }
    tokens.extend([START, END].map(str::to_owned));
    let vocab: Map<String, Value> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let lines: String = merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
    Ok((
        Value::Object(vocab).to_string(),
        format!("#version: 0.2\n{lines}"),
    ))
}

/// The 256 characters that stand for bytes, in order.
fn alphabet() -> impl Iterator<Item = char> {
    ByteLevel::alphabet()
        .into_iter()
        .collect::<BTreeSet<char>>()
        .into_iter()
}

/// Every word as its symbols, the last one word-final, with how often it occurs.
fn words(texts: &[String]) -> Result<Vec<(Vec<String>, usize)>, Error> {
    let bad = |why: String| {
        Error::input(
            "captions",
            format!("give no vocabulary ({why}); correct them"),
        )
    };
    let tokenizer = unlearned().map_err(bad)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in texts {
        let mut parts = PreTokenizedString::from(normalized(&tokenizer, text));
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer
                .pre_tokenize(&mut parts)
                .map_err(|why| bad(why.to_string()))?;
        }
        for (word, ..) in parts.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            *counts.entry(word.to_owned()).or_default() += 1;
        }
    }
    let symbols = |word: String| -> Vec<String> {
        let mut symbols: Vec<String> = word.chars().map(String::from).collect();
        if let Some(last) = symbols.last_mut() {
            last.push_str("</w>");
        }
        symbols
    };
    Ok(counts
        .into_iter()
        .map(|(word, count)| (symbols(word), count))
        .collect())
}

/// The pair that stands together most often, at least twice.
fn most_frequent_pair(words: &[(Vec<String>, usize)]) -> Option<(String, String)> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (word, count) in words {
        for pair in word.windows(2) {
            *counts.entry((&pair[0], &pair[1])).or_default() += count;
        }
    }
    let most = counts.values().copied().max().filter(|&most| most > 1)?;
    let (pair, _) = counts.into_iter().find(|(_, count)| *count == most)?;
    Some((pair.0.to_owned(), pair.1.to_owned()))
}

/// Joins every `a b` of a word.
fn merge(word: &mut Vec<String>, a: &str, b: &str, joined: &str) {
    let mut i = 0;
    while i + 1 < word.len() {
        if word[i] == a && word[i + 1] == b {
            word[i] = joined.to_owned();
            word.remove(i + 1);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_same_texts_give_the_same_vocabulary() {
        let texts: Vec<String> = ["a cat and a hat", "the cat sat", "that hat"]
            .map(str::to_owned)
            .into();
        let first = learn(&texts, 540).expect("learns");
        for _ in 0..5 {
            assert_eq!(learn(&texts, 540).expect("learns"), first);
        }
        let merges: Vec<&str> = first.1.lines().skip(1).collect();
        assert_eq!(merges[0], "a t</w>", "six words end in it");
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
}
