//! The T5 encoder (`T5EncoderModel`, version 1.1) as a sequence of blocks.
//!
//! ```text
//! x = x + O softmax(q kT + bias) v       q, k, v of RMS(x); no scale; bias by relative position, the first block's for all
//! x = x + Wo (gelu(W0 y) W1 y)           y = RMS(x)
//! ```
//!
//! Padding is attended to, as SD3's pipeline does it. Activations are f32: in half precision the feed-forward of
//! the largest T5 overflows.
//!
//! Source: Raffel et al., T5 (1910.10683); Shazeer, GLU variants (2002.05202); names and arithmetic of transformers.

mod config;
mod positions;

use std::path::Path;

use burn::tensor::Tensor;
use serde_json::Value;

pub use config::T5Config;

use crate::{
    Error,
    nn::{Bias, Embedding, Linear, RmsNorm},
    weights::Weights,
};
use positions::RelativePositions;

#[derive(Clone, Debug)]
struct Block {
    layer_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    ff_layer_norm: RmsNorm,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

/// The encoder.
#[derive(Clone, Debug)]
pub struct T5Encoder {
    config: T5Config,
    shared: Embedding,
    positions: RelativePositions,
    blocks: Vec<Block>,
    final_layer_norm: RmsNorm,
}

impl T5Encoder {
    /// Builds the encoder that `config.json` describes from `w`.
    ///
    /// # Errors
    /// An unsupported configuration, a missing tensor or one of another shape.
    pub fn from_json(value: &Value, origin: &Path, w: &Weights) -> Result<Self, Error> {
        Self::new(T5Config::from_json(value, origin)?, w)
    }

    /// Builds the encoder from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: T5Config, w: &Weights) -> Result<Self, Error> {
        let (d, eps) = (config.d_model, config.layer_norm_epsilon);
        let encoder = w.at("encoder");
        let block = |i| Block::new(&encoder.at(format!("block.{i}")), &config);
        let positions = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            shared: Embedding::new(&w.at("shared"), config.vocab_size, d)?,
            positions: RelativePositions::new(&positions, &config)?,
            blocks: (0..config.num_layers)
                .map(block)
                .collect::<Result<_, _>>()?,
            final_layer_norm: RmsNorm::new(&encoder.at("final_layer_norm"), d, eps)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Encodes prompts of token ids, all of one length, `[b, n, d]`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Tensor<3> {
        self.forward_seen(ids, &mut |_, _| ())
    }

    /// As [`T5Encoder::forward`], showing the embedding (block 0) and each block's output (1, 2, ..) to `see`.
    pub fn forward_seen(
        &self,
        ids: &[Vec<u32>],
        see: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> Tensor<3> {
        let mut x = self.shared.forward(ids);
        see(0, &x);
        let bias = self.positions.bias(x.dims()[1]);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &bias);
            see(i + 1, &x);
        }
        self.final_layer_norm.forward(x)
    }
}

impl Block {
    fn new(w: &Weights, config: &T5Config) -> Result<Self, Error> {
        let (d, inner, eps) = (config.d_model, config.d_ff, config.layer_norm_epsilon);
        let heads = config.num_heads * config.d_kv;
        let (attention, ff) = (w.at("layer.0"), w.at("layer.1"));
        let of = |name: &str| {
            Linear::new(
                &attention.at("SelfAttention").at(name),
                d,
                heads,
                Bias::Without,
            )
        };
        let dense = ff.at("DenseReluDense");
        Ok(Self {
            layer_norm: RmsNorm::new(&attention.at("layer_norm"), d, eps)?,
            q: of("q")?,
            k: of("k")?,
            v: of("v")?,
            o: Linear::new(&attention.at("SelfAttention.o"), heads, d, Bias::Without)?,
            ff_layer_norm: RmsNorm::new(&ff.at("layer_norm"), d, eps)?,
            wi_0: Linear::new(&dense.at("wi_0"), d, inner, Bias::Without)?,
            wi_1: Linear::new(&dense.at("wi_1"), d, inner, Bias::Without)?,
            wo: Linear::new(&dense.at("wo"), inner, d, Bias::Without)?,
        })
    }

    /// Applies the block to `x` `[b, n, d]` with `bias` `[1, k, n, n]`.
    fn forward(&self, x: Tensor<3>, bias: &Tensor<4>) -> Tensor<3> {
        let normal = self.layer_norm.forward(x.clone());
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|linear| linear.forward(normal.clone()));
        // T5 does not scale its logits.
        let y = kernels::attention_biased(q, k, v, 1.0, bias.clone());
        let x = x + self.o.forward(y);
        let normal = self.ff_layer_norm.forward(x.clone());
        let gate = kernels::gelu_tanh(self.wi_0.forward(normal.clone()));
        x + self.wo.forward(gate * self.wi_1.forward(normal))
    }
}
