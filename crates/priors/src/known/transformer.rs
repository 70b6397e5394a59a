//! Names and shapes of the SD3 transformer's tensors, from its `config.json` alone.
//!
//! Source: `SD3Transformer2DModel` of diffusers. The last block's context stream ends in its attention; SD3.5 medium
//! has a second attention over the picture's tokens in some blocks, SD3.5 norms queries and keys.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, json};

/// What of `transformer/config.json` decides the shapes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Side of a token in latent rows.
    pub patch_size: usize,
    /// Joint blocks.
    pub num_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Width of the text tokens.
    pub joint_attention_dim: usize,
    /// Width of the text tokens inside; the transformer's own.
    pub caption_projection_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Side of the table of positions in tokens.
    pub pos_embed_max_size: usize,
    /// `rms_norm` in SD3.5.
    #[serde(default)]
    pub qk_norm: Option<String>,
    /// Blocks with a second attention.
    #[serde(default)]
    pub dual_attention_layers: Vec<usize>,
}

impl TransformerConfig {
    /// Reads `transformer/config.json`.
    ///
    /// # Errors
    /// Another model's configuration, or one beyond any known size.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        json::only(
            value,
            origin,
            "_class_name",
            &["SD3Transformer2DModel".into()],
        )?;
        json::only(value, origin, "qk_norm", &[Value::Null, "rms_norm".into()])?;
        let config: Self = json::config(value, origin)?;
        let sides = [
            config.in_channels,
            config.out_channels,
            config.patch_size,
            config.num_layers,
            config.num_attention_heads,
            config.attention_head_dim,
            config.joint_attention_dim,
            config.caption_projection_dim,
            config.pooled_projection_dim,
            config.pos_embed_max_size,
        ];
        if sides.iter().any(|&n| n == 0 || n > 1 << 16) || config.num_layers > 1000 {
            let what = "has a width or a number of blocks beyond any known transformer; correct it";
            return Err(Error::input(origin, what));
        }
        Ok(config)
    }

    /// Width.
    pub fn d(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// Names under a prefix with their shapes.
struct Names(BTreeMap<String, Vec<usize>>);

impl Names {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.insert(name.into(), shape.to_vec());
    }

    fn linear(&mut self, name: &str, d_in: usize, d_out: usize) {
        self.add(format!("{name}.weight"), &[d_out, d_in]);
        self.add(format!("{name}.bias"), &[d_out]);
    }

    fn mlp(&mut self, name: &str, d_in: usize, d: usize) {
        self.linear(&format!("{name}.linear_1"), d_in, d);
        self.linear(&format!("{name}.linear_2"), d, d);
    }

    fn feed_forward(&mut self, name: &str, d: usize) {
        self.linear(&format!("{name}.net.0.proj"), d, 4 * d);
        self.linear(&format!("{name}.net.2"), 4 * d, d);
    }

    fn block(&mut self, config: &TransformerConfig, i: usize) {
        let d = config.d();
        let name = format!("transformer_blocks.{i}");
        let (last, dual) = (
            i + 1 == config.num_layers,
            config.dual_attention_layers.contains(&i),
        );
        self.linear(
            &format!("{name}.norm1.linear"),
            d,
            if dual { 9 * d } else { 6 * d },
        );
        self.linear(
            &format!("{name}.norm1_context.linear"),
            d,
            if last { 2 * d } else { 6 * d },
        );
        let mut projections = vec![
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
        ];
        if !last {
            projections.push("to_add_out");
            self.feed_forward(&format!("{name}.ff_context"), d);
        }
        for projection in projections {
            self.linear(&format!("{name}.attn.{projection}"), d, d);
        }
        if dual {
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.linear(&format!("{name}.attn2.{projection}"), d, d);
            }
        }
        if config.qk_norm.is_some() {
            let head = [config.attention_head_dim];
            for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
                self.add(format!("{name}.attn.{norm}.weight"), &head);
            }
            for norm in ["norm_q", "norm_k"] {
                if dual {
                    self.add(format!("{name}.attn2.{norm}.weight"), &head);
                }
            }
        }
        self.feed_forward(&format!("{name}.ff"), d);
    }
}

/// Every tensor of the transformer that `config` describes, the stored table of positions among them.
pub fn transformer_shapes(config: &TransformerConfig) -> BTreeMap<String, Vec<usize>> {
    let (d, p) = (config.d(), config.patch_size);
    let positions = config.pos_embed_max_size * config.pos_embed_max_size;
    let mut names = Names(BTreeMap::new());
    names.add("pos_embed.pos_embed", &[1, positions, d]);
    names.add("pos_embed.proj.weight", &[d, config.in_channels, p, p]);
    names.add("pos_embed.proj.bias", &[d]);
    names.mlp("time_text_embed.timestep_embedder", 256, d);
    names.mlp(
        "time_text_embed.text_embedder",
        config.pooled_projection_dim,
        d,
    );
    names.linear(
        "context_embedder",
        config.joint_attention_dim,
        config.caption_projection_dim,
    );
    for i in 0..config.num_layers {
        names.block(config, i);
    }
    names.linear("norm_out.linear", d, 2 * d);
    names.linear("proj_out", d, p * p * config.out_channels);
    names.0
}
