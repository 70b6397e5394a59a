//! The MM-DiT's configuration, from diffusers' `transformer/config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, json};

/// `SD3Transformer2DModel`: SD3, SD3.5-medium and SD3.5-large.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct MmDitConfig {
    /// Channels of the latent that enters.
    pub in_channels: usize,
    /// Channels of the prediction, where they differ.
    out_channels: Option<usize>,
    /// Side of the square of latent positions that becomes one token.
    pub patch_size: usize,
    /// Blocks.
    pub num_layers: usize,
    attention_head_dim: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the text tokens.
    pub joint_attention_dim: usize,
    caption_projection_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Rows and columns of the stored table of positions, in tokens.
    pub pos_embed_max_size: usize,
    #[serde(default)]
    dual_attention_layers: Vec<usize>,
    #[serde(default)]
    qk_norm: Option<String>,
}

impl MmDitConfig {
    /// Reads `transformer/config.json`, refusing what would change the arithmetic unseen.
    ///
    /// # Errors
    /// A value that is not supported, or sizes that do not fit together.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        json::only(
            value,
            origin,
            "_class_name",
            &[json!("SD3Transformer2DModel")],
        )?;
        json::only(value, origin, "qk_norm", &[Value::Null, json!("rms_norm")])?;
        let config: Self = json::config(value, origin)?;
        let sizes = [
            config.in_channels,
            config.out_channels(),
            config.patch_size,
            config.width(),
            config.joint_attention_dim,
            config.pooled_projection_dim,
            config.pos_embed_max_size,
        ];
        json::sizes(&sizes, config.num_layers, origin)?;
        if config.caption_projection_dim != config.width() {
            let what = "caption_projection_dim is not heads times attention_head_dim; take config.json from the model's own \
                        folder";
            return Err(Error::input(origin, what));
        }
        if let Some(layer) = config
            .dual_attention_layers
            .iter()
            .find(|&&layer| layer >= config.num_layers)
        {
            let what = format!(
                "dual_attention_layers names block {layer} of {}; correct config.json",
                config.num_layers
            );
            return Err(Error::input(origin, what));
        }
        Ok(config)
    }

    /// Channels of the prediction.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Width of the tokens and of the time embedding.
    pub fn width(&self) -> usize {
        self.num_attention_heads
            .saturating_mul(self.attention_head_dim)
    }

    /// Width of a head where queries and keys are normalized.
    pub(super) fn norm_width(&self) -> Option<usize> {
        self.qk_norm.as_ref().map(|_| self.attention_head_dim)
    }

    /// Whether this block's image stream also attends to itself alone.
    pub(super) fn is_dual(&self, block: usize) -> bool {
        self.dual_attention_layers.contains(&block)
    }
}
