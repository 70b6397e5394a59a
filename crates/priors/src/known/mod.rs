//! The configurations of priors that people already have, for counting their parameters and for checkpoints that come
//! without a `config.json`. No weights.
//!
//! Source: the config.json files of stabilityai's SDXL base 1.0, SD3 medium, SD3.5 medium and SD3.5 large.

mod controlnet;

pub use controlnet::{Trim, controlnet_of_transformer, controlnet_of_unet};

use crate::{folder::Folder, kind::Kind};

type Files = &'static [(&'static str, &'static [u8])];

macro_rules! files {
    ($($path:literal <- $file:literal),+ $(,)?) => { &[$(($path, include_bytes!($file))),+] };
}

macro_rules! sdxl {
    ($scheduler:literal) => {
        files![
            "model_index.json" <- "sdxl/model_index.json",
            "scheduler/scheduler_config.json" <- $scheduler,
            "text_encoder/config.json" <- "sdxl/text_encoder.json",
            "text_encoder_2/config.json" <- "sdxl/text_encoder_2.json",
            "tokenizer/tokenizer_config.json" <- "sdxl/tokenizer.json",
            "tokenizer_2/tokenizer_config.json" <- "sdxl/tokenizer_2.json",
            "unet/config.json" <- "sdxl/unet.json",
            "vae/config.json" <- "sdxl/vae.json",
        ]
    };
}

static SDXL: Files = sdxl!("sdxl/scheduler.json");
/// SDXL trained on to predict v.
pub(crate) static SDXL_V: Files = sdxl!("sdxl/scheduler_v.json");

macro_rules! sd3 {
    ($transformer:literal) => {
        files![
            "model_index.json" <- "sd3/model_index.json",
            "scheduler/scheduler_config.json" <- "sd3/scheduler.json",
            "text_encoder/config.json" <- "sd3/text_encoder.json",
            "text_encoder_2/config.json" <- "sd3/text_encoder_2.json",
            "text_encoder_3/config.json" <- "sd3/text_encoder_3.json",
            "tokenizer/tokenizer_config.json" <- "sd3/tokenizer.json",
            "tokenizer_2/tokenizer_config.json" <- "sd3/tokenizer_2.json",
            "transformer/config.json" <- $transformer,
            "vae/config.json" <- "sd3/vae.json",
        ]
    };
}

static SD3_MEDIUM: Files = sd3!("sd3/transformer.json");
static SD35_MEDIUM: Files = sd3!("sd35_medium/transformer.json");
static SD35_LARGE: Files = sd3!("sd35_large/transformer.json");

/// The configurations of a supported prior, as a diffusers folder without weights.
pub fn configs(kind: Kind) -> Option<Folder> {
    files(kind).map(Folder::Embedded)
}

pub(crate) fn files(kind: Kind) -> Option<Files> {
    match kind {
        Kind::SdxlBase => Some(SDXL),
        Kind::Sd3Medium => Some(SD3_MEDIUM),
        Kind::Sd35Medium => Some(SD35_MEDIUM),
        Kind::Sd35Large => Some(SD35_LARGE),
        _ => None,
    }
}
