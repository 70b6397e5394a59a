//! Low-rank adaptation of named projections: `y + (alpha / r) B A x`.
//!
//! Ours act through the prior's tap and train; other people's files ([`LoraFile`]) are merged into the weights while the prior is
//! loaded ([`merged`]). Ours are stored in diffusers' form, `pytorch_lora_weights.safetensors`: keys `unet.<module>.lora_A.weight`
//! `[r, in]` and `.lora_B.weight` `[out, r]`; [`write_lora`] writes the other forms.
//!
//! Source: Hu et al., LoRA (2106.09685); keys and defaults of PEFT.

mod alphas;
mod file;
mod merge;
mod names;
mod shapes;
mod text_names;
mod write;

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use kernels::LowRank;
use priors::{
    any::Architecture,
    nn::Tap,
    weights::{Init, Weights},
};
use serde::{Deserialize, Serialize};

pub(crate) use alphas::{Alphas, METADATA};
pub use file::{LoraFile, Report, Update, Updates};
pub use merge::merged;
pub use shapes::PriorShapes;
pub use write::{Form, write_lora};

use crate::Error;

/// Which projections of a prior are adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
}

/// A projection that can be adapted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name in the prior, `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q` for example.
    pub name: String,
    /// Input width.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
}

/// The projections of an attention module.
const PROJECTIONS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// The attention module that is adapted: the U-Net's self-attention, the image stream of the transformer's joint one.
fn module(kind: Architecture) -> &'static str {
    match kind {
        Architecture::Unet => "attn1",
        Architecture::MmDit => "attn",
    }
}

/// What PEFT calls the adapted projections of a prior of this kind.
pub fn target_modules(kind: Architecture) -> [String; 4] {
    PROJECTIONS.map(|projection| format!("{}.{projection}", module(kind)))
}

/// The projections to adapt among a prior's tensors: `attn1.to_q`, `to_k`, `to_v`, `to_out.0` of a U-Net, the same of a
/// transformer's `attn`, whose text stream has other names.
pub fn self_attention_targets(shapes: &BTreeMap<String, Vec<usize>>) -> Vec<Target> {
    let target = |(name, shape): (&String, &Vec<usize>)| {
        let name = name.strip_suffix(".weight")?;
        let of = |kind| name.split_once(&format!(".{}.", module(kind)));
        let (_, projection) = of(Architecture::Unet).or_else(|| of(Architecture::MmDit))?;
        PROJECTIONS.contains(&projection).then(|| Target {
            name: name.to_owned(),
            d_in: shape[1],
            d_out: shape[0],
        })
    };
    shapes.iter().filter_map(target).collect()
}

/// A set of low-rank updates, applied through the prior's tap.
#[derive(Clone, Debug)]
pub struct Lora {
    scale: f64,
    updates: BTreeMap<String, (Tensor<2>, Tensor<2>)>,
}

impl Lora {
    /// Takes `lora_A` and `lora_B` of every target from `w`, which stands at the prior's prefix
    /// (`unet`, `transformer`). A fresh `B` is zero: the prior is unchanged.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: &LoraConfig, targets: &[Target], w: &Weights) -> Result<Self, Error> {
        let update = |target: &Target| {
            let (r, w) = (config.rank, w.at(&target.name));
            let a = w.tensor("lora_A.weight", [r, target.d_in], Init::fan_in(target.d_in))?;
            let b = w.tensor("lora_B.weight", [target.d_out, r], Init::Zeros)?;
            Ok((target.name.clone(), (a, b)))
        };
        let updates = targets.iter().map(update).collect::<Result<_, Error>>()?;
        Ok(Self {
            scale: config.alpha / config.rank as f64,
            updates,
        })
    }

    /// The same updates at another strength: 0 leaves the prior as it is.
    #[must_use]
    pub fn with_strength(mut self, strength: f64) -> Self {
        self.scale *= strength;
        self
    }

    /// `(alpha / r) B A` of every target, to be added to the weights.
    pub fn deltas(&self) -> BTreeMap<String, Tensor<2>> {
        let delta = |(name, (a, b)): (&String, &(Tensor<2>, Tensor<2>))| {
            (name.clone(), b.clone().matmul(a.clone()) * self.scale)
        };
        self.updates.iter().map(delta).collect()
    }
}

impl Tap for Lora {
    fn update(&self, name: &str) -> Option<LowRank> {
        if self.scale == 0.0 {
            return None;
        }
        let (a, b) = self.updates.get(name)?.clone();
        Some(LowRank {
            a,
            b,
            scale: self.scale,
        })
    }
}
