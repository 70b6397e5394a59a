//! From prompts to token ids: CLIP's byte pairs and T5's sentence pieces, from a model's own files.

mod clip;
mod learn;
mod t5;

pub use clip::ClipTokenizer;
pub use learn::learn;
pub use t5::T5Tokenizer;

/// A prompt as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The text between the model's own marks, padded: always the encoder's full length.
    pub ids: Vec<u32>,
    /// How many tokens of the prompt did not fit.
    pub dropped: usize,
}
