//! From a prompt to what a prior is told: its text encoders, each with its tokenizer.
//!
//! ```text
//! single   text = CLIP's final norm                   pooled = its end token's, where the prior takes one
//! SDXL     text = [L, G]                             pooled = G's projection
//! SD3      text = [[L, G, 0], T5] along the tokens   pooled = [L's projection, G's projection]
//! ```
//!
//! `L` and `G` are CLIP's states before the last layer, side by side; without T5 its tokens are zero. A prompt
//! longer than CLIP's 75 words is encoded in pieces whose tokens follow each other; the pooled vector is that of
//! the first piece, and T5 reads 256 tokens. Null text is zero for SDXL (`force_zeros_for_empty_prompt`) and the
//! encoded empty string for the others. A transformer may listen to a single CLIP as well: mini's does.
//!
//! Source: `encode_prompt` of diffusers' pipelines, for prompts of one piece.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{
    clip::{ClipText, Encoded as ClipEncoded},
    flow::Conditioning,
    t5::T5Encoder,
    tokenizer::{ClipTokenizer, T5Tokenizer},
};

/// Tokens that T5 reads, or zeros in their place.
pub const T5_TOKENS: usize = 256;

/// A CLIP encoder with its tokenizer.
#[derive(Clone, Debug)]
pub struct Clip {
    /// The encoder.
    pub encoder: ClipText,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
}

/// A T5 encoder with its tokenizer.
#[derive(Clone, Debug)]
pub struct T5 {
    /// The encoder.
    pub encoder: T5Encoder,
    /// Its tokenizer.
    pub tokenizer: T5Tokenizer,
}

/// What an empty prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Null {
    /// Zeros.
    Zero,
    /// The encoded empty string.
    Encoded,
}

/// The text encoders of a prior.
#[derive(Clone, Debug)]
pub enum TextEncoders {
    /// One CLIP (mini).
    Single(Box<Clip>),
    /// SDXL's CLIP-L and bigG.
    Sdxl {
        /// CLIP-L and bigG.
        clips: Box<[Clip; 2]>,
        /// What an empty prompt is.
        null: Null,
    },
    /// SD3's CLIP-L and bigG, and T5.
    Sd3 {
        /// CLIP-L and bigG.
        clips: Box<[Clip; 2]>,
        /// T5, where there is one.
        t5: Option<Box<T5>>,
        /// Width of the joined tokens.
        width: usize,
    },
}

impl Clip {
    /// The encoding of a prompt in at least `pieces` pieces.
    fn encode(&self, prompt: &str, pieces: usize) -> ClipEncoded {
        let mut chunks = self.tokenizer.encode_in_chunks(prompt);
        while chunks.len() < pieces {
            chunks.push(self.tokenizer.encode("").ids);
        }
        self.encoder.forward(&chunks)
    }
}

/// Pieces `[b, n, d]` one after the other, `[1, b n, d]`.
fn in_a_row(x: Tensor<3>) -> Tensor<3> {
    let [b, n, d] = x.dims();
    x.reshape([1, b * n, d])
}

/// Both encoders' tokens side by side, and their pooled vectors of the first piece.
fn both(clips: &[Clip; 2], prompt: &str, pieces: usize) -> (Tensor<3>, [Tensor<2>; 2]) {
    let encoded = [0, 1].map(|i| clips[i].encode(prompt, pieces));
    let text = encoded.each_ref().map(|e| in_a_row(e.penultimate()));
    let pooled = encoded.map(|e| e.pooled.narrow(0, 0, 1));
    (Tensor::cat(text.into(), 2), pooled)
}

fn zeros(shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::zeros(shape, (device, DType::F32))
}

/// A prompt's encoding.
#[derive(Clone, Debug)]
pub struct Encoding {
    /// Tokens, `[1, n, d]`.
    pub text: Tensor<3>,
    /// The pooled vector, `[1, d]`, where the prior takes one.
    pub pooled: Option<Tensor<2>>,
}

impl Encoding {
    /// The conditioning of a batch, a row of `time_ids` for each prompt where the prior takes sizes: see
    /// [`Conditioning::time_ids`].
    ///
    /// # Panics
    /// If the prompts were read in different numbers of pieces.
    pub fn join(batch: Vec<Self>, time_ids: Option<&[[f32; 6]]>) -> Conditioning {
        let (text, pooled): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.text, one.pooled)).unzip();
        let pooled: Vec<Tensor<2>> = pooled.into_iter().flatten().collect();
        let text = Tensor::cat(text, 0);
        let sizes = |rows: &[[f32; 6]]| {
            let data = TensorData::new(rows.concat(), [rows.len(), 6]);
            Tensor::from_data(data, (&text.device(), DType::F32))
        };
        Conditioning {
            time_ids: time_ids.map(sizes),
            pooled: (!pooled.is_empty()).then(|| Tensor::cat(pooled, 0)),
            text,
        }
    }
}

/// What SDXL is told about a picture of this height and width that is seen whole: its size, no crop, its size.
pub fn uncropped(size: [usize; 2]) -> [f32; 6] {
    let [h, w] = size.map(|side| side as f32);
    [h, w, 0.0, 0.0, h, w]
}

impl TextEncoders {
    /// The conditioning of a batch of prompts for pictures of this height and width in pixels, and what the user
    /// should know about how they were read. An empty prompt is the null text; SDXL is told the size that it sees,
    /// uncropped.
    pub fn conditioning(&self, prompts: &[&str], size: [usize; 2]) -> (Conditioning, Vec<String>) {
        let pieces = self.pieces(prompts);
        let mut notes = vec![];
        if pieces > 1 {
            notes.push(format!(
                "the prompt is longer than the text encoder and is read in {pieces} pieces"
            ));
        }
        let encoded = prompts
            .iter()
            .map(|prompt| self.encode(prompt, pieces, &mut notes))
            .collect();
        let sizes = vec![uncropped(size); prompts.len()];
        let sizes = self.takes_sizes().then_some(sizes.as_slice());
        (Encoding::join(encoded, sizes), notes)
    }

    /// Whether the prior is told sizes: SDXL is.
    pub fn takes_sizes(&self) -> bool {
        matches!(self, Self::Sdxl { .. })
    }

    /// In how many pieces a batch of these prompts is read.
    pub fn pieces(&self, prompts: &[&str]) -> usize {
        let of = |prompt: &&str| {
            let chunks = |clip: &Clip| clip.tokenizer.encode_in_chunks(prompt).len();
            self.clips().map(chunks).max()
        };
        prompts.iter().filter_map(of).max().unwrap_or(1)
    }

    /// How many tokens of a prompt T5 does not read; CLIP reads all of them, in pieces.
    pub fn dropped(&self, prompt: &str) -> usize {
        match self {
            Self::Sd3 { t5: Some(t5), .. } => t5.tokenizer.encode(prompt).dropped,
            Self::Single(_) | Self::Sdxl { .. } | Self::Sd3 { t5: None, .. } => 0,
        }
    }

    /// How many tokens a piece adds to an encoding.
    pub fn piece_tokens(&self) -> usize {
        let clip = self.clips().next();
        clip.map_or(0, |clip| clip.tokenizer.encode("").ids.len())
    }

    /// One prompt's encoding in at least `pieces` pieces; what the user should know is added to `notes`.
    pub fn encode(&self, prompt: &str, pieces: usize, notes: &mut Vec<String>) -> Encoding {
        let (text, pooled) = match self {
            Self::Single(clip) => {
                let encoded = clip.encode(prompt, pieces);
                let pooled = encoded.pooled.narrow(0, 0, 1);
                (in_a_row(encoded.last), Some(pooled))
            }
            Self::Sdxl { clips, null } => {
                let (text, [_, pooled]) = both(clips, prompt, pieces);
                if prompt.is_empty() && *null == Null::Zero {
                    (text.zeros_like(), Some(pooled.zeros_like()))
                } else {
                    (text, Some(pooled))
                }
            }
            Self::Sd3 { clips, t5, width } => {
                let (text, pooled) = both(clips, prompt, pieces);
                let [_, n, d] = text.dims();
                let device = text.device();
                let text = Tensor::cat(vec![text, zeros([1, n, width - d], &device)], 2);
                let long = match t5 {
                    Some(t5) => t5.encode(prompt, notes),
                    None => zeros([1, T5_TOKENS, *width], &device),
                };
                let text = Tensor::cat(vec![text, long], 1);
                (text, Some(Tensor::cat(pooled.into(), 1)))
            }
        };
        Encoding { text, pooled }
    }

    /// The CLIP encoders, in order.
    pub fn clips(&self) -> impl Iterator<Item = &Clip> {
        match self {
            Self::Single(clip) => std::slice::from_ref(&**clip).iter(),
            Self::Sdxl { clips, .. } | Self::Sd3 { clips, .. } => clips.iter(),
        }
    }
}

impl T5 {
    /// A prompt's tokens, `[1, n, d]`.
    fn encode(&self, prompt: &str, notes: &mut Vec<String>) -> Tensor<3> {
        let tokens = self.tokenizer.encode(prompt);
        if tokens.dropped > 0 {
            notes.push(format!(
                "T5 reads the prompt up to {} tokens, without the last {}; the other encoders read all of it",
                tokens.ids.len(),
                tokens.dropped
            ));
        }
        self.encoder.forward(&[tokens.ids])
    }
}
