//! What a file of weights is, from the names and shapes in its header alone.

use std::fmt::{self, Display, Formatter};

use crate::weights::{SafetensorsFile, View};

/// What a file or folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The embedded prior, or one of its shape.
    Mini,
    /// SDXL base.
    SdxlBase,
    /// The SDXL refiner.
    SdxlRefiner,
    /// SDXL with a mask among its inputs.
    SdxlInpaint,
    /// Stable Diffusion 1.
    Sd1,
    /// Stable Diffusion 2.
    Sd2,
    /// SD3 medium.
    Sd3Medium,
    /// SD3.5 medium.
    Sd35Medium,
    /// SD3.5 large.
    Sd35Large,
    /// Flux.
    Flux,
    /// An autoencoder alone.
    Vae,
    /// CLIP-L's text encoder alone.
    ClipL,
    /// OpenCLIP bigG's text encoder alone.
    ClipG,
    /// T5-XXL's encoder alone.
    T5,
    /// A LoRA, LoKr or LoHa alone.
    Lora,
    /// A ControlNet alone.
    ControlNet,
    /// None of these.
    Unknown,
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mini => "a prior of mini's shape",
            Self::SdxlBase => "SDXL base",
            Self::SdxlRefiner => "the SDXL refiner",
            Self::SdxlInpaint => "an SDXL inpainting U-Net",
            Self::Sd1 => "an SD 1.5 U-Net",
            Self::Sd2 => "an SD 2 U-Net",
            Self::Sd3Medium => "SD3 medium",
            Self::Sd35Medium => "SD3.5 medium",
            Self::Sd35Large => "SD3.5 large",
            Self::Flux => "a Flux transformer",
            Self::Vae => "an autoencoder alone",
            Self::ClipL => "CLIP-L's text encoder alone",
            Self::ClipG => "OpenCLIP bigG's text encoder alone",
            Self::T5 => "a T5 text encoder alone",
            Self::Lora => "a LoRA",
            Self::ControlNet => "a ControlNet",
            Self::Unknown => "none of the models that reclair knows",
        })
    }
}

/// What may stand before a network's keys in a checkpoint.
pub(crate) const NETWORK_PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", ""];

/// What may stand before an autoencoder's keys in a checkpoint.
pub(crate) const VAE_PREFIXES: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// What stands before the keys of a checkpoint's parts, and before those that mean nothing to a prior: averaged weights, the
/// noise levels of Stability's and SD 1's trainers, what the network was trained for.
const KNOWN_BEGINNINGS: [&str; 18] = [
    "model.diffusion_model.",
    "diffusion_model.",
    "first_stage_model.",
    "vae.",
    "conditioner.",
    "cond_stage_model.",
    "text_encoders.",
    "model_ema.",
    "embedding_manager.",
    "denoiser.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
    "logvar",
    "v_pred",
    "edm_",
];

/// Whether a checkpoint's key says by its beginning what it belongs to, so that it is no key of a part without a prefix.
pub(crate) fn begins_as_known(key: &str) -> bool {
    let mut all = KNOWN_BEGINNINGS.iter();
    all.any(|beginning| key.starts_with(beginning))
}

impl Kind {
    /// What `file` is.
    pub fn of_file(file: &SafetensorsFile) -> Self {
        Self::of(file.names(), &|name| {
            file.shape(name).map(<[usize]>::to_vec)
        })
    }

    /// What the network of a view is.
    pub fn of_view(view: &View) -> Self {
        let names: Vec<String> = view.keys().map(str::to_owned).collect();
        Self::of(&names, &|name| view.shape(name))
    }

    fn of(names: &[String], shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Self {
        let any = |part: &str| names.iter().any(|name| name.contains(part));
        let within = |prefixes: &[&str], key: &str| {
            let mut prefixes = prefixes.iter();
            prefixes.find_map(|prefix| shape(&format!("{prefix}{key}")))
        };
        let network = |key: &str| within(&NETWORK_PREFIXES, key);
        let low_rank = [
            ".lora_",
            "_lora.",
            ".lora.",
            ".hada_w1",
            ".lokr_w",
            ".oft_blocks",
        ];
        if low_rank.iter().any(|part| any(part)) {
            return Self::Lora;
        }
        let control = [
            "control_model.",
            "controlnet_",
            "input_hint_block.",
            "zero_convs.",
            "control_add_embedding",
        ];
        if control.iter().any(|part| any(part)) {
            return Self::ControlNet;
        }
        let flux = [
            "double_blocks.0.img_attn.qkv.weight",
            "single_transformer_blocks.0.attn.to_q.weight",
        ];
        if flux.iter().any(|key| network(key).is_some()) {
            return Self::Flux;
        }
        let joint = network("joint_blocks.0.x_block.attn.qkv.weight");
        if let Some(first) = joint.or(network("transformer_blocks.0.attn.add_q_proj.weight")) {
            let table = network("pos_embed").or(network("pos_embed.pos_embed"));
            return match (first.get(1), table.as_ref().and_then(|table| table.get(1))) {
                (Some(2432), _) => Self::Sd35Large,
                (Some(1536), Some(147_456)) => Self::Sd35Medium,
                (Some(1536), _) => Self::Sd3Medium,
                _ => Self::Unknown,
            };
        }
        if let Some(conv) = network("input_blocks.0.0.weight")
            .or(network("conv_in.weight").filter(|_| any("attn2.to_k.weight")))
        {
            let text = names
                .iter()
                .find(|name| name.ends_with("attn2.to_k.weight"));
            let text = text
                .and_then(|name| shape(name))
                .and_then(|shape| shape.get(1).copied());
            return match (text, conv.get(..2)) {
                (Some(768), Some([320, ..])) => Self::Sd1,
                (Some(1024), Some([320, ..])) => Self::Sd2,
                (Some(2048), Some([320, 4])) => Self::SdxlBase,
                (Some(2048), Some([320, ..])) => Self::SdxlInpaint,
                (Some(1280), Some([384, ..])) => Self::SdxlRefiner,
                (Some(128), Some([64, 16])) => Self::Mini,
                _ => Self::Unknown,
            };
        }
        let vae = |key: &str| within(&VAE_PREFIXES, key).is_some();
        if vae("encoder.conv_in.weight") && vae("decoder.conv_in.weight") {
            return Self::Vae;
        }
        if any("SelfAttention.relative_attention_bias.weight") {
            return Self::T5;
        }
        let token = names
            .iter()
            .find(|name| name.ends_with("token_embedding.weight"));
        match token.and_then(|name| shape(name)).as_deref() {
            Some([_, 768]) => Self::ClipL,
            Some([_, 1280]) => Self::ClipG,
            _ => Self::Unknown,
        }
    }

    /// Whether a network of this kind can restore.
    pub fn restores(self) -> bool {
        matches!(
            self,
            Self::Mini | Self::SdxlBase | Self::Sd3Medium | Self::Sd35Medium | Self::Sd35Large
        )
    }

    /// The line that tells whoever gave the wrong model what it is and what to give.
    pub fn refusal(self) -> String {
        let instead = match self {
            Self::Mini => "give its whole folder",
            Self::Lora => "give it with --lora and a prior with --prior",
            Self::ControlNet => "reclair has Restoration Adapters instead; give a prior",
            Self::Vae | Self::ClipL | Self::ClipG | Self::T5 => {
                "put it beside the denoising network and give that one"
            }
            Self::Flux | Self::Unknown => "reclair restores with SDXL or SD3; give one of them",
            _ => "reclair restores with SDXL or SD3",
        };
        format!("this is {self}; {instead}")
    }
}
