//! Where Stability's own SDXL files keep the U-Net's tensors.
//!
//! Source: `convert_ldm_unet_checkpoint` of diffusers. `input_blocks.0` is the first convolution; after it each level
//! has its ResNets, with their transformers, and one more entry for the way down or up.

use crate::weights::{Naming, Piece};

/// Names of a U-Net with this many ResNets in each level on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnetNames {
    /// `layers_per_block`.
    pub layers: usize,
}

/// Modules outside of the blocks.
const OUTSIDE: [(&str, &str); 7] = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// Parts of a ResNet.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

impl UnetNames {
    /// Stability's names of the module `name` (a tensor's name without `.weight`); of an upsampler's two, one exists.
    pub fn modules(&self, name: &str) -> Vec<String> {
        if let Some((_, original)) = OUTSIDE.iter().find(|(ours, _)| *ours == name) {
            return vec![(*original).to_owned()];
        }
        let parts: Vec<&str> = name.split('.').collect();
        let number = |i: usize| parts.get(i).and_then(|part| part.parse::<usize>().ok());
        // What follows the first `n` parts, with a ResNet's parts renamed.
        let rest = |n: usize, resnet: bool| {
            let rest = parts.get(n..).unwrap_or_default().join(".");
            let renamed = RESNET.iter().find(|(ours, _)| resnet && *ours == rest);
            renamed.map_or(rest.clone(), |(_, original)| (*original).to_owned())
        };
        let entry = self.layers + 1;
        match parts[..] {
            ["mid_block", what @ ("resnets" | "attentions"), ..] => {
                let at = match (what, number(2)) {
                    ("attentions", _) => 1,
                    (_, Some(j)) => 2 * j,
                    _ => return vec![],
                };
                vec![format!("middle_block.{at}.{}", rest(3, what == "resnets"))]
            }
            ["down_blocks", _, what, ..] => {
                let (Some(i), Some(j)) = (number(1), number(3)) else {
                    return vec![];
                };
                let at = i.saturating_mul(entry).saturating_add(j).saturating_add(1);
                match what {
                    "resnets" => vec![format!("input_blocks.{at}.0.{}", rest(4, true))],
                    "attentions" => vec![format!("input_blocks.{at}.1.{}", rest(4, false))],
                    "downsamplers" => {
                        let at = i.saturating_add(1).saturating_mul(entry);
                        vec![format!("input_blocks.{at}.0.op")]
                    }
                    _ => vec![],
                }
            }
            ["up_blocks", _, what, ..] => {
                let (Some(i), Some(j)) = (number(1), number(3)) else {
                    return vec![];
                };
                let at = i.saturating_mul(entry).saturating_add(j);
                match what {
                    "resnets" => vec![format!("output_blocks.{at}.0.{}", rest(4, true))],
                    "attentions" => vec![format!("output_blocks.{at}.1.{}", rest(4, false))],
                    "upsamplers" => {
                        let at = i.saturating_mul(entry).saturating_add(self.layers);
                        [2, 1]
                            .map(|k| format!("output_blocks.{at}.{k}.conv"))
                            .to_vec()
                    }
                    _ => vec![],
                }
            }
            _ => vec![],
        }
    }
}

impl Naming for UnetNames {
    fn pieces(&self, name: &str) -> Vec<Piece> {
        let Some((module, kind)) = name.rsplit_once('.') else {
            return vec![];
        };
        let modules = self.modules(module).into_iter();
        modules
            .map(|module| Piece::whole(format!("{module}.{kind}")))
            .collect()
    }
}
