//! Multi-head attention, the GEGLU feed-forward and the U-Net's transformer layer.

use burn::tensor::{DType, Tensor};
use kernels::Mask;

use super::{Bare, Bias, LayerNorm, Linear, Tap};
use crate::{Error, weights::Weights};

/// Multi-head attention of tokens over a context.
#[derive(Clone, Debug)]
pub struct Attention {
    heads: usize,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    /// Queries from width `d`, keys and values from width `d_context`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(
        w: &Weights,
        d: usize,
        d_context: usize,
        heads: usize,
        qkv_bias: Bias,
    ) -> Result<Self, Error> {
        assert!(
            d.is_multiple_of(heads),
            "{heads} heads do not divide width {d}"
        );
        Ok(Self {
            heads,
            to_q: Linear::new(&w.at("to_q"), d, d, qkv_bias)?,
            to_k: Linear::new(&w.at("to_k"), d_context, d, qkv_bias)?,
            to_v: Linear::new(&w.at("to_v"), d_context, d, qkv_bias)?,
            to_out: Linear::new(&w.at("to_out.0"), d, d, Bias::With)?,
        })
    }

    /// Attends from `x` `[b, n, d]` to `context` `[b, m, d_context]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>, tap: &dyn Tap) -> Tensor<3> {
        let q = self.to_q.tapped(x, tap);
        let key = self.to_k.tapped(context.clone(), tap);
        let value = self.to_v.tapped(context, tap);
        let y = attend(q, key, value, self.heads, Mask::None, self.to_q.dtype());
        self.to_out.tapped(y, tap)
    }

    /// Attends from `x` to itself, without a tap.
    pub fn to_itself(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward(x.clone(), x, &Bare)
    }
}

/// Attention of tokens of width `d` in heads, the logits over the root of a head's width; `weights` is the type of the weights that
/// made the operands.
pub(crate) fn attend(
    q: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
    mask: Mask,
    weights: DType,
) -> Tensor<3> {
    let scale = 1.0 / ((q.dims()[2] / heads) as f64).sqrt();
    kernels::attention(q, key, value, heads, scale, mask, weights)
}

/// GEGLU: `W2 (h * gelu(g))` with `[h, g] = W1 x`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// Inner width four times `d`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d: usize) -> Result<Self, Error> {
        let proj = Linear::new(&w.at("net.0.proj"), d, 8 * d, Bias::With)?;
        let out = Linear::new(&w.at("net.2"), 4 * d, d, Bias::With)?;
        Ok(Self { proj, out })
    }

    /// Applies it to `x` `[b, n, d]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out.forward(kernels::geglu(self.proj.forward(x)))
    }
}

/// `BasicTransformerBlock`: self-attention, cross-attention, feed-forward, each after a layer norm.
#[derive(Clone, Debug)]
pub struct TransformerLayer {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerLayer {
    /// Width `d`, text of width `d_context`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d: usize, d_context: usize, heads: usize) -> Result<Self, Error> {
        Ok(Self {
            norm1: LayerNorm::new(&w.at("norm1"), d, 1e-5)?,
            attn1: Attention::new(&w.at("attn1"), d, d, heads, Bias::Without)?,
            norm2: LayerNorm::new(&w.at("norm2"), d, 1e-5)?,
            attn2: Attention::new(&w.at("attn2"), d, d_context, heads, Bias::Without)?,
            norm3: LayerNorm::new(&w.at("norm3"), d, 1e-5)?,
            ff: FeedForward::new(&w.at("ff"), d)?,
        })
    }

    /// Applies the layer to `x` `[b, n, d]` with `text` `[b, m, d_context]`.
    pub fn forward(&self, x: Tensor<3>, text: &Tensor<3>, tap: &dyn Tap) -> Tensor<3> {
        let normal = self.norm1.forward(x.clone());
        let x = kernels::add(x, self.attn1.forward(normal.clone(), normal, tap));
        let normal = self.norm2.forward(x.clone());
        let x = kernels::add(x, self.attn2.forward(normal, text.clone(), tap));
        let normal = self.norm3.forward(x.clone());
        kernels::add(x, self.ff.forward(normal))
    }
}
