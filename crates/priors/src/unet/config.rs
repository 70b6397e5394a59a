//! The U-Net's configuration, from diffusers' `unet/config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, json};

/// One number for all blocks or one for each.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum PerBlock {
    All(usize),
    Each(Vec<usize>),
}

impl PerBlock {
    fn at(&self, block: usize) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Each(n) => n[block],
        }
    }
}

/// `UNet2DConditionModel`, as far as this program implements it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct UnetConfig {
    /// Channels of the latent that enters.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    layers_per_block: usize,
    #[serde(default = "one")]
    transformer_layers_per_block: PerBlock,
    attention_head_dim: PerBlock,
    /// Width of the text tokens.
    pub cross_attention_dim: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the ResNets' norms.
    pub norm_eps: f64,
    /// `text_time` for SDXL.
    pub addition_embed_type: Option<String>,
    /// Width of each size number's sinusoid (SDXL).
    pub addition_time_embed_dim: Option<usize>,
    /// Pooled text and six sinusoids together (SDXL).
    pub projection_class_embeddings_input_dim: Option<usize>,
}

fn one() -> PerBlock {
    PerBlock::All(1)
}

/// What one level of the U-Net holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) channels: usize,
    /// Transformer layers after each ResNet, zero for none.
    pub(super) transformer_layers: usize,
    pub(super) heads: usize,
}

impl UnetConfig {
    /// Reads `unet/config.json`, refusing what would change the arithmetic unseen.
    ///
    /// # Errors
    /// A value that is not supported, or lists of different lengths.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        for (key, allowed) in honoured() {
            json::only(value, origin, key, &allowed)?;
        }
        let config: Self = json::config(value, origin)?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &Path) -> Result<(), Error> {
        let mut sizes = self.block_out_channels.clone();
        sizes.extend([
            self.cross_attention_dim,
            self.in_channels,
            self.out_channels,
        ]);
        sizes.extend(self.addition_time_embed_dim);
        sizes.extend(self.projection_class_embeddings_input_dim);
        json::sizes(&sizes, self.layers_per_block, origin)?;
        json::epsilon(self.norm_eps, "norm_eps", origin)?;
        let deepest = match &self.transformer_layers_per_block {
            PerBlock::All(n) => *n,
            PerBlock::Each(all) => all.iter().copied().max().unwrap_or(1),
        };
        json::sizes(&sizes, deepest.max(1), origin)?;
        let levels = self.block_out_channels.len();
        let each = |n: &PerBlock| matches!(n, PerBlock::Each(n) if n.len() != levels);
        let uneven = levels == 0
            || self.down_block_types.len() != levels
            || self.up_block_types.len() != levels
            || each(&self.attention_head_dim)
            || each(&self.transformer_layers_per_block);
        if uneven {
            let what = "lists of blocks have different lengths; take config.json from the model's own folder";
            return Err(Error::input(origin, what));
        }
        let known = |types: &[String], plain: &str, cross: &str| {
            types.iter().find(|t| *t != plain && *t != cross).cloned()
        };
        let unknown = known(
            &self.down_block_types,
            "DownBlock2D",
            "CrossAttnDownBlock2D",
        )
        .or(known(
            &self.up_block_types,
            "UpBlock2D",
            "CrossAttnUpBlock2D",
        ));
        if let Some(unknown) = unknown {
            let what = format!("block type {unknown} is not supported; use an SDXL-shaped U-Net");
            return Err(Error::unsupported(origin, what));
        }
        let mirrored = (0..levels).all(|i| {
            self.down_block_types[i].starts_with("Cross")
                == self.up_block_types[levels - 1 - i].starts_with("Cross")
        });
        if !mirrored {
            let what = "up blocks that do not mirror the down blocks are not supported; use an SDXL-shaped U-Net";
            return Err(Error::unsupported(origin, what));
        }
        let added = [
            self.addition_embed_type.is_some(),
            self.addition_time_embed_dim
                .is_some_and(|d| d > 0 && d.is_multiple_of(2)),
            self.projection_class_embeddings_input_dim.is_some(),
        ];
        if added != [true; 3] && added != [false; 3] {
            let what = "addition_embed_type, addition_time_embed_dim and projection_class_embeddings_input_dim belong \
                        together; take config.json from the model's own folder";
            return Err(Error::input(origin, what));
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.attention_head_dim.at(level);
            let fits = channels > 0
                && self.norm_num_groups > 0
                && channels.is_multiple_of(self.norm_num_groups)
                && heads > 0
                && channels.is_multiple_of(heads);
            if !fits {
                let what = format!(
                    "{channels} channels are not divided by the groups or heads; correct config.json"
                );
                return Err(Error::input(origin, what));
            }
        }
        Ok(())
    }

    /// Width of the time embedding.
    pub fn d_emb(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    pub(super) fn layers(&self) -> usize {
        self.layers_per_block
    }

    /// Levels from the latent's resolution downwards.
    pub(super) fn levels(&self) -> Vec<Level> {
        let level = |i: usize| {
            let cross = self.down_block_types[i].starts_with("Cross");
            let layers = self.transformer_layers_per_block.at(i);
            Level {
                channels: self.block_out_channels[i],
                transformer_layers: if cross { layers } else { 0 },
                heads: self.attention_head_dim.at(i),
            }
        };
        (0..self.block_out_channels.len()).map(level).collect()
    }

    /// Transformer layers of the mid block; it always attends.
    pub(super) fn mid_layers(&self) -> usize {
        self.transformer_layers_per_block
            .at(self.block_out_channels.len() - 1)
    }
}

/// Values that this implementation assumes, by key.
fn honoured() -> Vec<(&'static str, Vec<Value>)> {
    let null = Value::Null;
    vec![
        ("_class_name", vec![json!("UNet2DConditionModel")]),
        ("act_fn", vec![json!("silu")]),
        (
            "addition_embed_type",
            vec![null.clone(), json!("text_time")],
        ),
        ("attention_type", vec![json!("default")]),
        ("center_input_sample", vec![json!(false)]),
        ("class_embed_type", vec![null.clone()]),
        ("class_embeddings_concat", vec![json!(false)]),
        ("conv_in_kernel", vec![json!(3)]),
        ("conv_out_kernel", vec![json!(3)]),
        ("cross_attention_norm", vec![null.clone()]),
        ("downsample_padding", vec![json!(1)]),
        ("dual_cross_attention", vec![json!(false)]),
        ("encoder_hid_dim", vec![null.clone()]),
        ("encoder_hid_dim_type", vec![null.clone()]),
        ("flip_sin_to_cos", vec![json!(true)]),
        ("freq_shift", vec![json!(0)]),
        ("mid_block_only_cross_attention", vec![null.clone()]),
        ("mid_block_scale_factor", vec![json!(1), json!(1.0)]),
        ("mid_block_type", vec![json!("UNetMidBlock2DCrossAttn")]),
        ("num_attention_heads", vec![null.clone()]),
        ("num_class_embeds", vec![null.clone()]),
        ("only_cross_attention", vec![json!(false)]),
        ("resnet_out_scale_factor", vec![json!(1), json!(1.0)]),
        ("resnet_skip_time_act", vec![json!(false)]),
        ("resnet_time_scale_shift", vec![json!("default")]),
        ("reverse_transformer_layers_per_block", vec![null.clone()]),
        ("time_cond_proj_dim", vec![null.clone()]),
        ("time_embedding_act_fn", vec![null.clone()]),
        ("time_embedding_dim", vec![null.clone()]),
        ("time_embedding_type", vec![json!("positional")]),
        ("timestep_post_act", vec![null]),
        ("use_linear_projection", vec![json!(true)]),
    ]
}
