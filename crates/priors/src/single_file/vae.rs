//! Where Stability's own files keep the autoencoder's tensors.
//!
//! Source: `convert_ldm_vae_checkpoint` of diffusers. The decoder's levels are counted from the other end, and the
//! attention's linear maps are 1x1 convolutions.

use crate::weights::{Naming, Part, Piece};

/// Names of an autoencoder with this many levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaeNames {
    /// Length of `block_out_channels`.
    pub levels: usize,
}

/// Parts of the attention.
const ATTENTION: [(&str, &str); 5] = [
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
];

impl Naming for VaeNames {
    fn pieces(&self, name: &str) -> Vec<Piece> {
        let Some((module, kind)) = name.rsplit_once('.') else {
            return vec![];
        };
        let (half, inner) = module.split_once('.').unwrap_or(("", module));
        let parts: Vec<&str> = inner.split('.').collect();
        let number = |i: usize| parts.get(i).and_then(|part| part.parse::<usize>().ok());
        let rest = |n: usize| {
            let rest = parts.get(n..).unwrap_or_default().join(".");
            rest.replace("conv_shortcut", "nin_shortcut")
        };
        let mut part = Part::Whole;
        let inner = match parts[..] {
            ["mid_block", "resnets", j, ..] => match j.parse::<usize>() {
                Ok(j) => format!("mid.block_{}.{}", j.saturating_add(1), rest(3)),
                Err(_) => return vec![],
            },
            ["mid_block", "attentions", "0", ..] => {
                let ours = rest(3);
                let Some((_, original)) = ATTENTION.iter().find(|(name, _)| *name == ours) else {
                    return vec![];
                };
                if kind == "weight" && ours != "group_norm" {
                    part = Part::Matrix;
                }
                format!("mid.attn_1.{original}")
            }
            ["down_blocks", i, "resnets", j, ..] => format!("down.{i}.block.{j}.{}", rest(4)),
            ["down_blocks", i, "downsamplers", ..] => format!("down.{i}.downsample.conv"),
            ["up_blocks", _, what, j, ..] => {
                let level = number(1).and_then(|i| self.levels.checked_sub(i.saturating_add(1)));
                match (level, what) {
                    (Some(level), "resnets") => format!("up.{level}.block.{j}.{}", rest(4)),
                    (Some(level), "upsamplers") => format!("up.{level}.upsample.conv"),
                    _ => return vec![],
                }
            }
            ["conv_norm_out"] => "norm_out".to_owned(),
            _ => inner.to_owned(),
        };
        let module = if half.is_empty() {
            inner
        } else {
            format!("{half}.{inner}")
        };
        vec![Piece::new(format!("{module}.{kind}"), part)]
    }

    fn ignores(&self, key: &str) -> bool {
        // Training's leftovers in files of the autoencoder alone.
        key.starts_with("loss.") || key.starts_with("model_ema.")
    }
}
