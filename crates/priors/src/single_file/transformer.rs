//! Where Stability's own SD3 and SD3.5 files keep the transformer's tensors.
//!
//! Source: `convert_sd3_transformer_checkpoint_to_diffusers` of diffusers. Queries, keys and values are fused; the two
//! final modulations keep shift before scale.

use crate::weights::{Naming, Part, Piece};

/// Names of a transformer with this many blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformerNames {
    /// `num_layers`.
    pub layers: usize,
}

/// Modules outside of the blocks.
const OUTSIDE: [(&str, &str, Part); 8] = [
    ("pos_embed.proj", "x_embedder.proj", Part::Whole),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.0",
        Part::Whole,
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "t_embedder.mlp.2",
        Part::Whole,
    ),
    (
        "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.0",
        Part::Whole,
    ),
    (
        "time_text_embed.text_embedder.linear_2",
        "y_embedder.mlp.2",
        Part::Whole,
    ),
    ("context_embedder", "context_embedder", Part::Whole),
    (
        "norm_out.linear",
        "final_layer.adaLN_modulation.1",
        Part::SwapHalves,
    ),
    ("proj_out", "final_layer.linear", Part::Whole),
];

const fn third(index: usize) -> Part {
    Part::Rows { index, of: 3 }
}

/// Modules of a block.
const BLOCK: [(&str, &str, Part); 24] = [
    ("norm1.linear", "x_block.adaLN_modulation.1", Part::Whole),
    (
        "norm1_context.linear",
        "context_block.adaLN_modulation.1",
        Part::Whole,
    ),
    ("attn.to_q", "x_block.attn.qkv", third(0)),
    ("attn.to_k", "x_block.attn.qkv", third(1)),
    ("attn.to_v", "x_block.attn.qkv", third(2)),
    ("attn.to_out.0", "x_block.attn.proj", Part::Whole),
    ("attn.norm_q", "x_block.attn.ln_q", Part::Whole),
    ("attn.norm_k", "x_block.attn.ln_k", Part::Whole),
    ("attn.add_q_proj", "context_block.attn.qkv", third(0)),
    ("attn.add_k_proj", "context_block.attn.qkv", third(1)),
    ("attn.add_v_proj", "context_block.attn.qkv", third(2)),
    ("attn.to_add_out", "context_block.attn.proj", Part::Whole),
    ("attn.norm_added_q", "context_block.attn.ln_q", Part::Whole),
    ("attn.norm_added_k", "context_block.attn.ln_k", Part::Whole),
    ("attn2.to_q", "x_block.attn2.qkv", third(0)),
    ("attn2.to_k", "x_block.attn2.qkv", third(1)),
    ("attn2.to_v", "x_block.attn2.qkv", third(2)),
    ("attn2.to_out.0", "x_block.attn2.proj", Part::Whole),
    ("attn2.norm_q", "x_block.attn2.ln_q", Part::Whole),
    ("attn2.norm_k", "x_block.attn2.ln_k", Part::Whole),
    ("ff.net.0.proj", "x_block.mlp.fc1", Part::Whole),
    ("ff.net.2", "x_block.mlp.fc2", Part::Whole),
    (
        "ff_context.net.0.proj",
        "context_block.mlp.fc1",
        Part::Whole,
    ),
    ("ff_context.net.2", "context_block.mlp.fc2", Part::Whole),
];

impl TransformerNames {
    /// Stability's name of the module `name` (a tensor's name without `.weight`), and what part of it this is.
    pub fn module(&self, name: &str) -> Option<(String, Part)> {
        if let Some((_, original, part)) = OUTSIDE.iter().find(|(ours, ..)| *ours == name) {
            return Some(((*original).to_owned(), *part));
        }
        let (block, rest) = name.strip_prefix("transformer_blocks.")?.split_once('.')?;
        let (_, original, part) = BLOCK.iter().find(|(ours, ..)| *ours == rest)?;
        let last = block.parse::<usize>().ok()?.checked_add(1)? == self.layers;
        let swapped = last && rest == "norm1_context.linear";
        let part = if swapped { Part::SwapHalves } else { *part };
        Some((format!("joint_blocks.{block}.{original}"), part))
    }
}

impl Naming for TransformerNames {
    fn pieces(&self, name: &str) -> Vec<Piece> {
        if name == "pos_embed.pos_embed" {
            return vec![Piece::whole("pos_embed")];
        }
        let piece = || {
            let (module, kind) = name.rsplit_once('.')?;
            let (original, part) = self.module(module)?;
            Some(Piece::new(format!("{original}.{kind}"), part))
        };
        piece().into_iter().collect()
    }
}
