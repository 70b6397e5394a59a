//! The names that trainers give a low-rank update, and the module each means.
//!
//! diffusers, PEFT and ComfyUI write a module's path with dots, kohya's scripts with underscores; the blocks have diffusers'
//! names or Stability's own. Underscores cannot be turned back into dots, so it is done as ComfyUI does it: every
//! module of the prior is written in every form, and a file's key is looked up.
//!
//! Source: `loaders/lora_conversion_utils.py` of diffusers, `comfy/lora.py` of ComfyUI, kohya's `networks/lora*.py`.

use std::collections::BTreeMap;

use priors::{
    single_file::{TransformerNames, UnetNames},
    weights::Part,
};

use super::{shapes::PriorShapes, text_names::TextNames};

/// One of the two matrices, or what scales their product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

/// What a key says: the module's path in the file's own form, and which tensor of the update it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) module: &'a str,
    pub(super) role: Role,
}

const ENDINGS: [(&str, Role); 13] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

impl<'a> Key<'a> {
    /// Splits a key; none when it belongs to no plain low-rank update.
    pub(super) fn parse(key: &'a str) -> Option<Self> {
        ENDINGS.iter().find_map(|&(ending, role)| {
            let module = key.strip_suffix(ending)?;
            Some(Self { module, role })
        })
    }

    /// Whether the module belongs to a text encoder.
    pub(super) fn of_text_encoder(&self) -> bool {
        let encoders = [
            "lora_te",
            "text_encoder",
            "cond_stage_model",
            "conditioner",
            "clip_l.",
            "clip_g.",
            "t5xxl.",
        ];
        encoders
            .iter()
            .any(|encoder| self.module.starts_with(encoder))
    }
}

/// What may stand before a module's path.
const PREFIXES: [&str; 8] = [
    "base_model.model.",
    "unet.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
];

/// A path without its prefix, in underscores.
fn plain(module: &str) -> String {
    let mut path = module;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)) {
        path = rest;
    }
    // Old diffusers names the attention's processor, and its output without the index.
    let path = path.replace(".processor.", ".").replace('.', "_");
    path.replace("_attn1_processor_", "_attn1_")
        .replace("_attn2_processor_", "_attn2_")
}

/// A module of the prior, or the part of it that a fused update reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) module: String,
    pub(super) part: Part,
}

/// Every module of a prior in every form.
#[derive(Clone, Debug)]
pub(super) struct Names {
    network: &'static str,
    places: BTreeMap<String, Vec<Place>>,
    naming: Naming,
    text: TextNames,
}

/// How Stability names the prior's modules.
#[derive(Clone, Copy, Debug)]
enum Naming {
    Unet(UnetNames),
    Transformer(TransformerNames),
}

impl Naming {
    /// Of the network with these modules.
    fn of<'a>(modules: impl Iterator<Item = &'a str> + Clone) -> Self {
        let after = |prefix: &str, i: usize| {
            let numbers = modules.clone().filter_map(|module| {
                let rest = module.strip_prefix(prefix)?;
                rest.split('.').nth(i)?.parse::<usize>().ok()
            });
            numbers.max().map_or(0, |last| last.saturating_add(1))
        };
        match after("transformer_blocks.", 0) {
            0 => Self::Unet(UnetNames {
                layers: after("down_blocks.0.resnets.", 0),
            }),
            layers => Self::Transformer(TransformerNames { layers }),
        }
    }

    fn originals(&self, module: &str) -> Vec<(String, Part)> {
        match self {
            Self::Unet(names) => {
                let all = names.modules(module).into_iter();
                all.map(|name| (name, Part::Whole)).collect()
            }
            Self::Transformer(names) => names.module(module).into_iter().collect(),
        }
    }
}

impl Names {
    /// The names of the modules among a prior's tensors.
    pub(super) fn new(shapes: &PriorShapes) -> Self {
        let network = shapes.network();
        let tensors = shapes.part(network).into_iter().flat_map(|all| all.keys());
        let modules = tensors.filter_map(|name| name.strip_suffix(".weight"));
        let naming = Naming::of(modules.clone());
        let mut places: BTreeMap<String, Vec<Place>> = BTreeMap::new();
        let mut add = |form: &str, module: &str, part| {
            let place = Place {
                module: module.to_owned(),
                part,
            };
            let all = places.entry(plain(form)).or_default();
            if !all.contains(&place) {
                all.push(place);
            }
        };
        for module in modules {
            add(module, module, Part::Whole);
            if let Some(output) = module.strip_suffix(".to_out.0") {
                add(&format!("{output}.to_out"), module, Part::Whole);
            }
            for (original, part) in naming.originals(module) {
                add(&original, module, part);
            }
        }
        Self {
            network,
            places,
            naming,
            text: TextNames::new(shapes),
        }
    }

    /// The part of the prior and the modules there that `module` of a file means: three for a fused projection, none for
    /// another prior's.
    pub(super) fn find(&self, module: &str) -> Option<(&'static str, &[Place])> {
        if let Some(found) = self.text.find(module) {
            return Some(found);
        }
        let found = self.places.get(&plain(module))?;
        Some((self.network, found.as_slice()))
    }

    /// The modules of `part` that `module` of a file means.
    pub(super) fn places(&self, part: &str, module: &str) -> &[Place] {
        match self.find(module) {
            Some((found, places)) if found == part => places,
            _ => &[],
        }
    }

    /// Stability's name of the prior's `module`, and what part of it this is.
    pub(super) fn original(&self, module: &str) -> Option<(String, Part)> {
        let mut originals = self.naming.originals(module).into_iter();
        // An upsampler has two; the level has attention when a module says so.
        let first = originals.next()?;
        let Some(second) = originals.next() else {
            return Some(first);
        };
        let attention = module.replace("upsamplers.0.conv", "attentions.0.norm");
        let attends = self.find(&attention).is_some();
        Some(if attends { first } else { second })
    }
}
