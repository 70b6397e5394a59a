//! T5's sentence-piece tokenizer, from a model's own `tokenizer.json`: the text, an end token, padding.

use std::path::Path;

use tokenizers::Tokenizer;

use super::Tokens;
use crate::Error;

const END: &str = "</s>";
const PAD: &str = "<pad>";

/// The tokenizer of a T5 encoder.
#[derive(Clone, Debug)]
pub struct T5Tokenizer {
    tokenizer: Tokenizer,
    end: u32,
    pad: u32,
    length: usize,
}

impl T5Tokenizer {
    /// From the contents of `tokenizer.json`; `origin` names it in errors and every prompt becomes `length` tokens.
    ///
    /// # Errors
    /// A file that is no tokenizer of T5's.
    pub fn new(json: &[u8], length: usize, origin: &Path) -> Result<Self, Error> {
        let bad = |why: String| {
            Error::input(
                origin,
                format!("is no usable T5 tokenizer ({why}); copy it again"),
            )
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|why| bad(why.to_string()))?;
        // Files may ask for a length of their own; here it is the caller's.
        tokenizer
            .with_truncation(None)
            .map_err(|why| bad(why.to_string()))?
            .with_padding(None);
        let id = |token: &str| {
            let id = tokenizer.token_to_id(token);
            id.ok_or_else(|| bad(format!("no token {token}")))
        };
        let (end, pad) = (id(END)?, id(PAD)?);
        Ok(Self {
            tokenizer,
            end,
            pad,
            length: length.max(1),
        })
    }

    /// The largest token id of the vocabulary.
    pub fn largest_id(&self) -> u32 {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().unwrap_or(0)
    }

    /// The token ids of `prompt`, cut to the length.
    pub fn encode(&self, prompt: &str) -> Tokens {
        let encoding = self.tokenizer.encode(prompt, false);
        let mut ids = encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .unwrap_or_default();
        let dropped = ids.len().saturating_sub(self.length - 1);
        ids.truncate(self.length - 1);
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Tokens { ids, dropped }
    }
}
