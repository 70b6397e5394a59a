//! One block of the MM-DiT (`JointTransformerBlock`): joint attention and a feed-forward for each stream.
//!
//! ```text
//! [shift, scale, gate, shift', scale', gate'] = Linear(SiLU(emb))        for each stream
//! x = x + gate  Attention(LN(x) (1 + scale) + shift)                     over both streams
//! x = x + gate' FF(LN(x) (1 + scale') + shift')
//! ```
//!
//! The last block's text is only attended to: it has `[scale, shift]` (this order) and nothing after. With
//! dual attention the image stream has three more parts for a second attention to itself alone.

use burn::tensor::Tensor;

use super::{
    MmDitConfig,
    attention::{ImageAttention, JointAttention, Sizes, Text},
};
use crate::{
    Error,
    nn::{Bias, Linear, Tap},
    weights::{Init, Weights},
};

/// Epsilon of the layer norms, which have no weights of their own.
const EPS: f64 = 1e-6;

/// `Linear(SiLU(emb))` in `N` parts of width `d`; a new one is zero (Peebles and Xie, 2212.09748): its block passes its input on.
#[derive(Clone, Debug)]
pub(super) struct Modulation<const N: usize> {
    linear: Linear,
}

impl<const N: usize> Modulation<N> {
    pub(super) fn new(w: &Weights, d: usize) -> Result<Self, Error> {
        let linear = Linear::with_init(&w.at("linear"), d, N * d, Bias::With, Init::Zeros)?;
        Ok(Self { linear })
    }

    /// The parts for `emb` `[b, d]`, `[b, d]` each.
    pub(super) fn of(&self, emb: &Tensor<2>) -> [Tensor<2>; N] {
        let d = emb.dims()[1];
        let all = self.linear.forward(kernels::silu(emb.clone()));
        std::array::from_fn(|i| all.clone().narrow(1, i * d, d))
    }
}

/// `LN(x) (1 + scale) + shift` for `x` `[b, n, d]`.
pub(super) fn norm(x: Tensor<3>, scale: Tensor<2>, shift: Tensor<2>) -> Tensor<3> {
    kernels::layer_norm_adaptive(x, scale, shift, EPS)
}

/// `W2 gelu(W1 x)` with the hyperbolic tangent, four times as wide inside.
#[derive(Clone, Debug)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(w: &Weights, d: usize) -> Result<Self, Error> {
        Ok(Self {
            proj: Linear::new(&w.at("net.0.proj"), d, 4 * d, Bias::With)?,
            out: Linear::new(&w.at("net.2"), 4 * d, d, Bias::With)?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(kernels::gelu_tanh(self.proj.forward(x)))
    }
}

/// How the image stream is modulated, and its second attention.
#[derive(Clone, Debug)]
enum Image {
    Single(Modulation<6>),
    Dual(Modulation<9>, Box<ImageAttention>),
}

/// How the text stream is modulated, and what follows its attention.
#[derive(Clone, Debug)]
enum TextStream {
    On(Modulation<6>, Box<FeedForward>),
    Ends(Modulation<2>),
}

/// One block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    image: Image,
    text: TextStream,
    attn: JointAttention,
    ff: FeedForward,
}

impl Block {
    pub(super) fn new(w: &Weights, config: &MmDitConfig, i: usize) -> Result<Self, Error> {
        let d = config.width();
        let sizes = Sizes {
            d,
            heads: config.num_attention_heads,
            norm: config.norm_width(),
        };
        let (norm1, norm1_context) = (w.at("norm1"), w.at("norm1_context"));
        let image = if config.is_dual(i) {
            let attn2 = ImageAttention::new(&w.at("attn2"), sizes)?;
            Image::Dual(Modulation::new(&norm1, d)?, Box::new(attn2))
        } else {
            Image::Single(Modulation::new(&norm1, d)?)
        };
        let last = i + 1 == config.num_layers;
        let text = if last {
            TextStream::Ends(Modulation::new(&norm1_context, d)?)
        } else {
            let ff = FeedForward::new(&w.at("ff_context"), d)?;
            TextStream::On(Modulation::new(&norm1_context, d)?, Box::new(ff))
        };
        let goes = if last { Text::Ends } else { Text::On };
        Ok(Self {
            image,
            text,
            attn: JointAttention::new(&w.at("attn"), sizes, goes)?,
            ff: FeedForward::new(&w.at("ff"), d)?,
        })
    }

    /// Applies the block to `image` `[b, n, d]` and `text` `[b, m, d]` with `emb` `[b, d]`.
    pub(super) fn forward(
        &self,
        image: Tensor<3>,
        text: Tensor<3>,
        emb: &Tensor<2>,
        tap: &dyn Tap,
    ) -> (Tensor<3>, Tensor<3>) {
        let ([shift, scale, gate, shift_ff, scale_ff, gate_ff], dual) = match &self.image {
            Image::Single(modulation) => (modulation.of(emb), None),
            Image::Dual(modulation, attn2) => {
                let [a, b, c, d, e, f, shift, scale, gate] = modulation.of(emb);
                let alone = attn2.forward(norm(image.clone(), scale, shift), tap);
                ([a, b, c, d, e, f], Some((gate, alone)))
            }
        };
        let image_in = norm(image.clone(), scale, shift);
        let (y, text) = match &self.text {
            TextStream::Ends(modulation) => {
                let [scale, shift] = modulation.of(emb);
                let text_in = norm(text.clone(), scale, shift);
                (self.attn.forward(image_in, text_in, tap).0, text)
            }
            TextStream::On(modulation, ff) => {
                let [shift, scale, gate, shift_ff, scale_ff, gate_ff] = modulation.of(emb);
                let text_in = norm(text.clone(), scale, shift);
                let (y, text_y) = self.attn.forward(image_in, text_in, tap);
                let text_y = text_y.expect("the text goes on");
                let text = kernels::add_gated(text, gate, text_y);
                let inner = ff.forward(norm(text.clone(), scale_ff, shift_ff));
                (y, kernels::add_gated(text, gate_ff, inner))
            }
        };
        let mut image = kernels::add_gated(image, gate, y);
        if let Some((gate, alone)) = dual {
            image = kernels::add_gated(image, gate, alone);
        }
        let inner = self.ff.forward(norm(image.clone(), scale_ff, shift_ff));
        (kernels::add_gated(image, gate_ff, inner), text)
    }
}
