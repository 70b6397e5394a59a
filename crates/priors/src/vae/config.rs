//! The autoencoder's configuration, from diffusers' `vae/config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, json};

/// `AutoencoderKL`, as far as this program implements it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct VaeConfig {
    /// Channels that enter the first convolution: `3 patch_size^2`.
    pub in_channels: usize,
    /// Channels that leave the last convolution: `3 patch_size^2`.
    pub out_channels: usize,
    /// Side of the square of pixels that is folded into channels before the encoder and unfolded after the decoder
    /// (as in Wan 2.2's autoencoder). SDXL's and SD3's autoencoders work on single pixels.
    #[serde(default = "one")]
    pub patch_size: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// ResNets of a level in the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// The latent's scale.
    pub scaling_factor: f64,
    /// The latent's shift, before scaling.
    #[serde(default, deserialize_with = "zero_if_null")]
    pub shift_factor: f64,
    /// Whether a 1x1 convolution ends the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution begins the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the mid blocks attend.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn one() -> usize {
    1
}

fn groups() -> usize {
    32
}

fn yes() -> bool {
    true
}

fn zero_if_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl VaeConfig {
    /// Reads `vae/config.json`, refusing what would change the arithmetic unseen.
    ///
    /// # Errors
    /// A value that is not supported.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        json::only(value, origin, "_class_name", &[json!("AutoencoderKL")])?;
        json::only(value, origin, "act_fn", &[json!("silu")])?;
        json::only(value, origin, "latents_mean", &[Value::Null])?;
        json::only(value, origin, "latents_std", &[Value::Null])?;
        let plain = |key: &str, block: &str| {
            let Some(types) = value.get(key).and_then(Value::as_array) else {
                return Ok(());
            };
            match types.iter().find(|t| *t != block) {
                None => Ok(()),
                Some(t) => {
                    let what =
                        format!("block type {t} is not supported; use an AutoencoderKL of {block}");
                    Err(Error::unsupported(origin, what))
                }
            }
        };
        plain("down_block_types", "DownEncoderBlock2D")?;
        plain("up_block_types", "UpDecoderBlock2D")?;
        let config: Self = json::config(value, origin)?;
        let groups = config.norm_num_groups;
        let divided = |c: &usize| *c > 0 && groups > 0 && c.is_multiple_of(groups);
        let mut sizes = config.block_out_channels.clone();
        sizes.extend([
            config.in_channels,
            config.out_channels,
            config.latent_channels,
        ]);
        sizes.push(config.patch_size.max(1));
        json::sizes(&sizes, config.layers_per_block, origin)?;
        json::within(config.scaling_factor, 1e-6..=1e6, "scaling_factor", origin)?;
        json::within(config.shift_factor, -1e6..=1e6, "shift_factor", origin)?;
        if config.block_out_channels.is_empty() || !config.block_out_channels.iter().all(divided) {
            let what =
                "block_out_channels must be multiples of norm_num_groups; correct config.json";
            return Err(Error::input(origin, what));
        }
        let folded = config
            .patch_size
            .checked_pow(2)
            .and_then(|n| n.checked_mul(3));
        if config.patch_size == 0
            || folded != Some(config.in_channels)
            || folded != Some(config.out_channels)
            || config.latent_channels == 0
        {
            let what = "only pictures of three channels are supported (in_channels and out_channels 3 patch_size^2); use another autoencoder";
            return Err(Error::unsupported(origin, what));
        }
        Ok(config)
    }
}
