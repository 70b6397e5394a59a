//! Where checkpoints keep the text encoders' tensors: OpenCLIP's bigG in SDXL files, CLIP-L in SD3 files.
//!
//! Source: `convert_open_clip_checkpoint` and `create_diffusers_clip_model_from_ldm` of diffusers.

use crate::weights::{Naming, Part, Piece};

/// OpenCLIP's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenClipNames;

/// Modules outside of the layers.
const OUTSIDE: [(&str, &str, Part); 5] = [
    (
        "text_model.embeddings.token_embedding.weight",
        "token_embedding.weight",
        Part::Whole,
    ),
    (
        "text_model.embeddings.position_embedding.weight",
        "positional_embedding",
        Part::Whole,
    ),
    (
        "text_model.final_layer_norm.weight",
        "ln_final.weight",
        Part::Whole,
    ),
    (
        "text_model.final_layer_norm.bias",
        "ln_final.bias",
        Part::Whole,
    ),
    ("text_projection.weight", "text_projection", Part::Transpose),
];

/// Parts of a layer.
const LAYER: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];

impl Naming for OpenClipNames {
    fn pieces(&self, name: &str) -> Vec<Piece> {
        if let Some((_, key, part)) = OUTSIDE.iter().find(|(ours, ..)| *ours == name) {
            return vec![Piece::new(*key, *part)];
        }
        let piece = || {
            let (layer, rest) = name
                .strip_prefix("text_model.encoder.layers.")?
                .split_once('.')?;
            let (module, kind) = rest.rsplit_once('.')?;
            let block = format!("transformer.resblocks.{layer}");
            let fused = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            if let Some(index) = fused.iter().position(|name| *name == module) {
                let part = Part::Rows { index, of: 3 };
                return Some(Piece::new(format!("{block}.attn.in_proj_{kind}"), part));
            }
            let (_, original) = LAYER.iter().find(|(ours, _)| *ours == module)?;
            Some(Piece::whole(format!("{block}.{original}.{kind}")))
        };
        piece().into_iter().collect()
    }

    fn ignores(&self, key: &str) -> bool {
        matches!(key, "logit_scale" | "attn_mask")
    }
}

/// transformers' own names, as checkpoints keep CLIP-L (and SD3's bigG and T5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderNames {
    /// All tensors under their own names.
    Own,
    /// CLIP-L of SDXL, which has no projection; other programs' files of it may.
    Unprojected,
    /// CLIP-L of SD3, whose pooled text is not projected: diffusers gives it a unit matrix, whatever the file says.
    UnitProjection,
}

impl Naming for EncoderNames {
    fn pieces(&self, name: &str) -> Vec<Piece> {
        if *self == Self::UnitProjection && name == "text_projection.weight" {
            let table = "text_model.embeddings.position_embedding.weight";
            return vec![Piece::new(table, Part::Unit)];
        }
        if name == "shared.weight" {
            // T5's table of tokens has two names, and some files keep the other only.
            return vec![
                Piece::whole(name),
                Piece::whole("encoder.embed_tokens.weight"),
            ];
        }
        vec![Piece::whole(name)]
    }

    fn ignores(&self, key: &str) -> bool {
        let unused = *self != Self::Own && key == "text_projection.weight";
        // Tables of 0, 1, 2, ... and what only matching pictures needs; T5's decoder-side copy of its table.
        let leftover = matches!(
            key,
            "logit_scale"
                | "text_model.embeddings.position_ids"
                | "encoder.embed_tokens.weight"
                | "scaled_fp8"
                | "spiece_model"
        );
        unused || leftover
    }
}
