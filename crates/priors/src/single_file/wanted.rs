//! A part of a prior beside its network, and where in a file it is.

use std::sync::Arc;

use serde_json::Value;

use super::{EncoderNames, OpenClipNames, VaeNames, either};
use crate::{
    kind::VAE_PREFIXES,
    weights::{Naming, SafetensorsFile, View},
};

/// The sub-folders of a diffusers folder with weights besides the network's.
pub(crate) const PARTS: [&str; 4] = ["vae", "text_encoder", "text_encoder_2", "text_encoder_3"];

/// A part of a prior, by what its configuration says of its tensors' shapes.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its sub-folder in a diffusers folder.
    pub(crate) part: &'static str,
    /// Whether the prior's network is a U-Net, SDXL's; else it is SD3's transformer.
    pub(crate) of_unet: bool,
    /// Width of the tokens, channels of the latent.
    pub(crate) width: usize,
    /// The autoencoder's levels and the channels of its last one.
    levels: (usize, usize),
}

impl Wanted {
    /// The part that `config` describes; none when it does not say how wide it is.
    pub(crate) fn new(part: &'static str, of_unet: bool, config: &Value) -> Option<Self> {
        let whole = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let key = match part {
            "vae" => "latent_channels",
            "text_encoder_3" => "d_model",
            _ => "hidden_size",
        };
        let levels = config.get("block_out_channels").and_then(Value::as_array);
        let levels = levels.and_then(|levels| Some((levels.len(), whole(levels.last()?)?)));
        Some(Self {
            part,
            of_unet,
            width: whole(config.get(key)?)?,
            levels: levels.unwrap_or_default(),
        })
    }

    /// The part's tensors in `file`, of a checkpoint or of this part alone; none where they are not or have another width.
    pub(crate) fn in_file(&self, file: &Arc<SafetensorsFile>) -> Option<View> {
        if self.part == "vae" {
            let (levels, widest) = self.levels;
            let fits = |prefix: &&str| {
                let shape = file.shape(&format!("{prefix}decoder.conv_in.weight"));
                matches!(shape, Some([out, c, ..]) if (*out, *c) == (widest, self.width))
            };
            VAE_PREFIXES.iter().find(|prefix| fits(prefix))?;
            return either(
                file,
                &VAE_PREFIXES,
                "decoder.up.0.block.0.norm1.weight",
                "decoder.up_blocks.0.resnets.0.norm1.weight",
                Arc::new(VaeNames { levels }),
            );
        }
        let fits = |prefix: &str, key: &str| {
            let shape = file.shape(&format!("{prefix}{key}"));
            shape.is_some_and(|shape| shape.get(1) == Some(&self.width))
        };
        let mut places = self.places().into_iter();
        let (prefix, _, naming) = places.find(|(prefix, key, _)| fits(prefix, key))?;
        Some(View::named(file.clone(), prefix, Some(naming)))
    }

    /// Prefixes of a text encoder, the tensor that has its width, and its names there.
    fn places(&self) -> Vec<(&'static str, &'static str, Arc<dyn Naming>)> {
        let table = "text_model.embeddings.token_embedding.weight";
        let t5 = "encoder.block.0.layer.0.SelfAttention.q.weight";
        let own = || Arc::new(EncoderNames::Own) as Arc<dyn Naming>;
        let clip_l = || {
            Arc::new(if self.of_unet {
                EncoderNames::Unprojected
            } else {
                EncoderNames::UnitProjection
            }) as Arc<dyn Naming>
        };
        let open = || Arc::new(OpenClipNames) as Arc<dyn Naming>;
        match self.part {
            "text_encoder" => vec![
                ("conditioner.embedders.0.transformer.", table, clip_l()),
                ("text_encoders.clip_l.transformer.", table, clip_l()),
                ("", table, clip_l()),
            ],
            "text_encoder_2" => vec![
                (
                    "conditioner.embedders.1.model.",
                    "token_embedding.weight",
                    open(),
                ),
                ("text_encoders.clip_g.transformer.", table, own()),
                ("", table, own()),
                ("", "token_embedding.weight", open()),
            ],
            _ => vec![
                ("text_encoders.t5xxl.transformer.", t5, own()),
                ("", t5, own()),
            ],
        }
    }
}
