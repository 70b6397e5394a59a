//! mini: the prior and adapter inside the program.

use priors::folder::Folder;

macro_rules! files {
    ($root:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../models/mini/", $root, $path)))),+]
    };
}

static PRIOR: &[(&str, &[u8])] = files!("prior/":
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

static ADAPTER: &[(&str, &[u8])] = files!("adapter/":
    "pytorch_lora_weights.safetensors",
    "reclair.json",
    "restoration_adapter/config.json",
    "restoration_adapter/diffusion_pytorch_model.safetensors",
);

/// The embedded prior.
pub fn mini_prior() -> Folder {
    Folder::Embedded(PRIOR)
}

/// The adapter for the embedded prior.
pub fn mini_adapter() -> Folder {
    Folder::Embedded(ADAPTER)
}
