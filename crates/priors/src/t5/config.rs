//! The T5 encoder's configuration, from `text_encoder_3/config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, json};

/// `T5EncoderModel` of version 1.1 (gated activation).
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct T5Config {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub d_model: usize,
    /// Width of a head.
    pub(super) d_kv: usize,
    /// Inner width of the feed-forward.
    pub(super) d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    pub(super) num_heads: usize,
    #[serde(default = "buckets")]
    pub(super) relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    pub(super) relative_attention_max_distance: usize,
    pub(super) layer_norm_epsilon: f64,
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

impl T5Config {
    /// Reads `config.json`, refusing what would change the arithmetic unseen.
    ///
    /// # Errors
    /// A model that is no T5 encoder of version 1.1.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        json::only(value, origin, "model_type", &[json!("t5")])?;
        if value.get("feed_forward_proj") != Some(&json!("gated-gelu")) {
            let what =
                "only \"feed_forward_proj\": \"gated-gelu\" is supported; use T5 of version 1.1";
            return Err(Error::unsupported(origin, what));
        }
        let config: Self = json::config(value, origin)?;
        let sizes = [
            config.vocab_size,
            config.d_model,
            config.d_kv,
            config.d_ff,
            config.num_heads,
        ];
        json::sizes(&sizes, config.num_layers, origin)?;
        json::epsilon(config.layer_norm_epsilon, "layer_norm_epsilon", origin)?;
        let buckets = config.relative_attention_num_buckets;
        if buckets < 4
            || !buckets.is_multiple_of(4)
            || config.relative_attention_max_distance <= buckets / 4
        {
            let what = "the relative positions make no sense; take config.json from the model's own folder";
            return Err(Error::input(origin, what));
        }
        Ok(config)
    }
}
