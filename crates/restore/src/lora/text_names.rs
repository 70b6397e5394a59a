//! The names that trainers give a low-rank update of a text encoder.
//!
//! | | CLIP-L | bigG | T5 |
//! |---|---|---|---|
//! | kohya | `lora_te1_` (`lora_te_` where there is one encoder) | `lora_te2_` | `lora_te3_` |
//! | diffusers | `text_encoder.` | `text_encoder_2.` | `text_encoder_3.` |
//! | ComfyUI | `text_encoders.clip_l.transformer.` | `text_encoders.clip_g.transformer.` | `text_encoders.t5xxl.transformer.` |
//!
//! What follows is transformers' path, with underscores in kohya's form. Old diffusers files call the projections `to_q`,
//! `to_k`, `to_v` and `to_out`.
//!
//! Source: `loaders/lora_conversion_utils.py` and `utils/state_dict_utils.py` of diffusers, `comfy/lora.py` of ComfyUI.

use std::collections::BTreeMap;

use priors::weights::Part;

use super::{
    names::Place,
    shapes::{PriorShapes, TEXT_ENCODERS},
};

/// What stands before a module of each text encoder.
const PREFIXES: [(&str, &[&str]); 3] = [
    (
        TEXT_ENCODERS[0],
        &[
            "lora_te1_",
            "lora_te_",
            "text_encoder.",
            "text_encoders.clip_l.transformer.",
            "clip_l.transformer.",
            "conditioner.embedders.0.transformer.",
            "cond_stage_model.transformer.",
        ],
    ),
    (
        TEXT_ENCODERS[1],
        &[
            "lora_te2_",
            "text_encoder_2.",
            "text_encoders.clip_g.transformer.",
            "clip_g.transformer.",
        ],
    ),
    (
        TEXT_ENCODERS[2],
        &[
            "lora_te3_",
            "text_encoder_3.",
            "text_encoders.t5xxl.transformer.",
            "t5xxl.transformer.",
        ],
    ),
];

/// Old diffusers' names of CLIP's projections.
const OLD: [(&str, &str); 4] = [
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("out_proj", "to_out"),
];

/// Every module of a prior's text encoders, with underscores.
#[derive(Clone, Debug)]
pub(super) struct TextNames {
    places: BTreeMap<&'static str, BTreeMap<String, Vec<Place>>>,
}

impl TextNames {
    pub(super) fn new(shapes: &PriorShapes) -> Self {
        let of_part = |part| {
            let tensors = shapes.part(part)?.keys();
            let mut places = BTreeMap::new();
            for module in tensors.filter_map(|name| name.strip_suffix(".weight")) {
                let place = Place {
                    module: module.to_owned(),
                    part: Part::Whole,
                };
                places.insert(module.replace('.', "_"), vec![place.clone()]);
                for (ours, old) in OLD {
                    if let Some(start) = module.strip_suffix(ours) {
                        places.insert(
                            format!("{start}{old}").replace('.', "_"),
                            vec![place.clone()],
                        );
                    }
                }
            }
            Some((part, places))
        };
        Self {
            places: TEXT_ENCODERS.into_iter().filter_map(of_part).collect(),
        }
    }

    /// The encoder and the module there that `module` of a file means.
    pub(super) fn find(&self, module: &str) -> Option<(&'static str, &[Place])> {
        PREFIXES.iter().find_map(|(part, prefixes)| {
            let path = prefixes
                .iter()
                .find_map(|prefix| module.strip_prefix(prefix))?;
            let found = self.places.get(part)?.get(&path.replace('.', "_"))?;
            Some((*part, found.as_slice()))
        })
    }

    /// What stands before a module of the encoder `part` in kohya's form, where the prior has this many encoders.
    pub(super) fn kohya(part: &str, encoders: usize) -> Option<&'static str> {
        let (_, prefixes) = PREFIXES.iter().find(|(name, _)| *name == part)?;
        let alone = encoders == 1 && part == TEXT_ENCODERS[0];
        prefixes.get(usize::from(alone)).copied()
    }
}
