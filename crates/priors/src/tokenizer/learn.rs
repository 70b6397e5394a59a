//! Learning a byte-pair vocabulary from texts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    pre_tokenizers::byte_level::ByteLevel,
};

use super::clip::{END, START, normalized, unlearned};
use crate::Error;

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
}
