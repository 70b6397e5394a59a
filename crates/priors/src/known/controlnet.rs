//! What a ControlNet would hold, for the comparison of the paper's Table 3. Counts only.
//!
//! Source: `ControlNetModel` and `SD3ControlNetModel` of diffusers; the trims are those that give the paper's counts.

use std::collections::BTreeMap;

use burn::tensor::Device;

use crate::{
    Error,
    mmdit::{MmDit, MmDitConfig},
    weights::Weights,
};

/// What of the U-Net's way down and middle a ControlNet copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trim {
    /// diffusers' ControlNet: all of it, the embeddings of time and sizes, and convolutions over a hint picture.
    Stock,
    /// The paper's 839 M: this many ResNets in each level, this many transformer layers after each; the embeddings and
    /// the latent hint are the prior's own.
    Copy {
        /// ResNets of each level.
        layers: Vec<usize>,
        /// Transformer layers after a ResNet of each level.
        depths: Vec<usize>,
    },
}

/// The number after `part` in a tensor's name.
fn number(parts: &[&str], part: &str) -> Option<usize> {
    let at = parts.iter().position(|p| *p == part)?;
    parts.get(at + 1)?.parse().ok()
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Parameters of a ControlNet for the U-Net with these tensors.
///
/// Each output of the copy ends in a 1x1 convolution that starts from zero.
pub fn controlnet_of_unet(shapes: &BTreeMap<String, Vec<usize>>, trim: &Trim) -> usize {
    let keeps = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        match (parts[0], trim) {
            ("conv_in" | "mid_block", _) => true,
            ("time_embedding" | "add_embedding", Trim::Stock) => true,
            ("down_blocks", Trim::Stock) => true,
            ("down_blocks", Trim::Copy { layers, depths }) => {
                let level = number(&parts, "down_blocks").unwrap_or(0);
                let below = |n: Option<usize>, limits: &[usize]| {
                    n.is_none_or(|n| limits.get(level).is_some_and(|&limit| n < limit))
                };
                let layer = number(&parts, "resnets").or(number(&parts, "attentions"));
                below(layer, layers) && below(number(&parts, "transformer_blocks"), depths)
            }
            _ => false,
        }
    };
    let mut count = 0;
    // Every output for the way up: the first convolution's, each ResNet's and each downsampler's.
    let mut outputs = Vec::new();
    for (name, shape) in shapes.iter().filter(|(name, _)| keeps(name)) {
        count += size(shape);
        let ends = [".conv2.bias", ".downsamplers.0.conv.bias"];
        let down = name.starts_with("down_blocks") && ends.iter().any(|end| name.ends_with(end));
        if down || name == "conv_in.bias" || name == "mid_block.resnets.1.conv2.bias" {
            outputs.push(shape[0]);
        }
    }
    count += outputs.iter().map(|c| c * c + c).sum::<usize>();
    if *trim == Trim::Stock {
        let c = shapes.get("conv_in.bias").map_or(0, |shape| shape[0]);
        let hint = [3, 16, 16, 32, 32, 96, 96, 256, c];
        count += hint
            .windows(2)
            .map(|c| 9 * c[0] * c[1] + c[1])
            .sum::<usize>();
    }
    count
}

/// Parameters of a ControlNet of `blocks` joint blocks for an SD3 transformer.
///
/// [`Trim::Stock`] is diffusers' with its own embedders and one linear map from zero for each block; a copy shares the
/// prior's patch and context embedders, its last block has no context output, and one more map stands before it.
///
/// # Errors
/// A configuration of absurd size.
pub fn controlnet_of_transformer(
    config: &MmDitConfig,
    blocks: usize,
    trim: &Trim,
) -> Result<usize, Error> {
    let stock = *trim == Trim::Stock;
    // One block more than diffusers copies, so that none of these is the last with its shorter context stream.
    let mut cut = config.clone();
    cut.num_layers = if stock { blocks + 1 } else { blocks };
    let d = config.width();
    let copied = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        match parts[0] {
            "transformer_blocks" => {
                number(&parts, "transformer_blocks").is_some_and(|i| i < blocks)
            }
            "time_text_embed" => true,
            "context_embedder" => stock,
            "pos_embed" => stock && parts[1] == "proj",
            _ => false,
        }
    };
    let w = Weights::blank(&Device::flex());
    MmDit::new(cut, &w)?;
    let shapes = w.shapes();
    let own: usize = shapes
        .iter()
        .filter(|(name, _)| copied(name))
        .map(|(_, shape)| size(shape))
        .sum();
    // diffusers embeds the picture and the low-quality latent with a patch embedding each.
    let patch: usize = shapes
        .iter()
        .filter(|(name, _)| name.starts_with("pos_embed.proj"))
        .map(|(_, shape)| size(shape))
        .sum();
    let zeros = if stock { blocks } else { blocks + 1 };
    Ok(own + zeros * (d * d + d) + if stock { patch } else { 0 })
}
