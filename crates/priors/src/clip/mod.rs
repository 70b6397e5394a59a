//! The CLIP text encoder (`CLIPTextModel`, `CLIPTextModelWithProjection`) as a sequence of layers.
//!
//! Token and position embeddings, pre-norm layers with causal attention, a final norm. Pipelines take
//! different outputs from it: SDXL and SD3 the state before the last layer, without the final norm; a single
//! encoder (Stable Diffusion 1 and mini) the final norm's output.
//!
//! Source: Radford et al., CLIP (2103.00020); tensor names and arithmetic of transformers.

use std::path::Path;

use burn::tensor::Tensor;
use kernels::Mask;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Error, json,
    nn::{Bias, Embedding, LayerNorm, Linear},
    weights::Weights,
};

/// The text encoder's configuration, from `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct ClipConfig {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest prompt in tokens.
    pub max_position_embeddings: usize,
    hidden_act: Act,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Width of the pooled projection.
    pub projection_dim: Option<usize>,
    /// The token that ends a prompt; 2 is a historic value that means "the largest id".
    pub eos_token_id: i64,
    architectures: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Act {
    QuickGelu,
    Gelu,
}

impl ClipConfig {
    /// Reads `text_encoder/config.json`.
    ///
    /// # Errors
    /// A model that is no CLIP text encoder.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        json::only(value, origin, "model_type", &["clip_text_model".into()])?;
        let config: Self = json::config(value, origin)?;
        let sizes = [
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.max_position_embeddings,
            config.projection_dim.unwrap_or(1),
        ];
        json::sizes(&sizes, config.num_hidden_layers, origin)?;
        json::epsilon(config.layer_norm_eps, "layer_norm_eps", origin)?;
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(Error::input(
                origin,
                "heads do not divide hidden_size; correct config.json",
            ));
        }
        Ok(config)
    }

    /// Width of the pooled vector.
    pub fn pooled_width(&self) -> usize {
        if self.projects() {
            self.projection_dim.unwrap_or(self.hidden_size)
        } else {
            self.hidden_size
        }
    }

    fn projects(&self) -> bool {
        let architectures = self.architectures.iter().flatten();
        architectures
            .into_iter()
            .any(|name| name == "CLIPTextModelWithProjection")
    }
}

#[derive(Clone, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// What the encoder says about a batch of prompts.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The embedding, then each layer's output, without the final norm, `[b, n, d]` each.
    pub hidden: Vec<Tensor<3>>,
    /// The final norm's output, `[b, n, d]`.
    pub last: Tensor<3>,
    /// The final norm's output at each prompt's end, projected where the model projects, `[b, d]`.
    pub pooled: Tensor<2>,
}

impl Encoded {
    /// What enters the last layer, without the final norm, `[b, n, d]`: what SDXL and SD3 read.
    pub fn penultimate(&self) -> Tensor<3> {
        self.hidden[self.hidden.len().saturating_sub(2)].clone()
    }
}

/// The text encoder.
#[derive(Clone, Debug)]
pub struct ClipText {
    config: ClipConfig,
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipText {
    /// Builds the encoder that `config.json` describes from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn from_json(value: &Value, origin: &Path, w: &Weights) -> Result<Self, Error> {
        Self::new(ClipConfig::from_json(value, origin)?, w)
    }

    /// Builds the encoder from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: ClipConfig, w: &Weights) -> Result<Self, Error> {
        // transformers 5 writes the plain class without the prefix that all older files have.
        let prefixed = w.at("text_model");
        let first = "embeddings.token_embedding.weight";
        let model = if !prefixed.has(first) && w.has(first) {
            w.clone()
        } else {
            prefixed
        };
        let embeddings = model.at("embeddings");
        let (d, eps) = (config.hidden_size, config.layer_norm_eps);
        let table = |name: &str, rows| Embedding::new(&embeddings.at(name), rows, d);
        let layer = |i| Layer::new(&model.at(format!("encoder.layers.{i}")), &config);
        let projection = || {
            Linear::new(
                &w.at("text_projection"),
                d,
                config.pooled_width(),
                Bias::Without,
            )
        };
        Ok(Self {
            token_embedding: table("token_embedding", config.vocab_size)?,
            position_embedding: table("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers)
                .map(layer)
                .collect::<Result<_, _>>()?,
            final_layer_norm: LayerNorm::new(&model.at("final_layer_norm"), d, eps)?,
            text_projection: config.projects().then(projection).transpose()?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Encodes prompts of token ids, all of one length of at most `max_position_embeddings`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Encoded {
        let n = ids.first().map_or(0, Vec::len);
        assert!(
            n <= self.config.max_position_embeddings,
            "{n} tokens, at most {}",
            self.config.max_position_embeddings
        );
        let positions = self.position_embedding.first(n);
        let tokens = self.token_embedding.forward(ids);
        let mut hidden = vec![tokens + positions.unsqueeze::<3>()];
        for layer in &self.layers {
            let x = hidden[hidden.len() - 1].clone();
            hidden.push(layer.forward(x, &self.config));
        }
        let last = self
            .final_layer_norm
            .forward(hidden[hidden.len() - 1].clone());
        let pooled = self.pool(&last, ids);
        Encoded {
            hidden,
            last,
            pooled,
        }
    }

    fn pool(&self, last: &Tensor<3>, ids: &[Vec<u32>]) -> Tensor<2> {
        let d = self.config.hidden_size;
        let end = |ids: &Vec<u32>| {
            let first = |wanted: u32| ids.iter().position(|&id| id == wanted).unwrap_or(0);
            if self.config.eos_token_id == 2 {
                first(ids.iter().copied().max().unwrap_or(0))
            } else {
                first(self.config.eos_token_id as u32)
            }
        };
        let rows: Vec<Tensor<2>> = ids
            .iter()
            .enumerate()
            .map(|(i, ids)| {
                last.clone()
                    .slice([i..i + 1, end(ids)..end(ids) + 1])
                    .reshape([1, d])
            })
            .collect();
        let pooled = Tensor::cat(rows, 0);
        match &self.text_projection {
            Some(projection) => projection.forward(pooled),
            None => pooled,
        }
    }
}

impl Layer {
    fn new(w: &Weights, config: &ClipConfig) -> Result<Self, Error> {
        let (d, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps,
        );
        let attention = |name: &str| Linear::new(&w.at("self_attn").at(name), d, d, Bias::With);
        Ok(Self {
            layer_norm1: LayerNorm::new(&w.at("layer_norm1"), d, eps)?,
            q_proj: attention("q_proj")?,
            k_proj: attention("k_proj")?,
            v_proj: attention("v_proj")?,
            out_proj: attention("out_proj")?,
            layer_norm2: LayerNorm::new(&w.at("layer_norm2"), d, eps)?,
            fc1: Linear::new(&w.at("mlp.fc1"), d, inner, Bias::With)?,
            fc2: Linear::new(&w.at("mlp.fc2"), inner, d, Bias::With)?,
        })
    }

    fn forward(&self, x: Tensor<3>, config: &ClipConfig) -> Tensor<3> {
        let normal = self.layer_norm1.forward(x.clone());
        let q = self.q_proj.forward(normal.clone());
        let key = self.k_proj.forward(normal.clone());
        let value = self.v_proj.forward(normal);
        let y = crate::nn::attend(
            q,
            key,
            value,
            config.num_attention_heads,
            Mask::Causal,
            self.q_proj.dtype(),
        );
        let x = x + self.out_proj.forward(y);
        let inner = self.fc1.forward(self.layer_norm2.forward(x.clone()));
        let inner = match config.hidden_act {
            Act::QuickGelu => kernels::quick_gelu(inner),
            Act::Gelu => kernels::gelu(inner),
        };
        x + self.fc2.forward(inner)
    }
}
