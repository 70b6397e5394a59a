//! A prior with everything around it, from a diffusers folder.

mod files;
mod find;
mod shards;

use burn::tensor::{DType, Device, Tensor};

pub use files::Folder;

use crate::{
    Error, clip::ClipText, flow::Conditioning, scheduler::SchedulerConfig,
    tokenizer::ClipTokenizer, unet::Unet, vae::AutoencoderKl, weights::Precision,
};

/// A loaded prior with everything around it.
#[derive(Clone, Debug)]
pub struct PriorModel {
    /// Where it came from.
    pub folder: Folder,
    /// The denoising network.
    pub unet: Unet,
    /// Pictures to latents and back.
    pub vae: AutoencoderKl,
    /// The text encoder.
    pub text_encoder: ClipText,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
    /// The noise schedule the prior was trained with.
    pub scheduler: SchedulerConfig,
}

/// Refuses parts that were not made for each other, and what is not implemented.
fn fits(folder: &Folder, unet: &Unet, vae: &AutoencoderKl, text: &ClipText) -> Result<(), Error> {
    let unet = unet.config();
    let path = folder.path("unet/config.json");
    if unet.addition_embed_type.is_some() {
        let what = "wants pooled text and picture sizes as SDXL does, which `restore` cannot give yet; \
                    use a prior with a single text encoder";
        return Err(Error::unsupported(path, what));
    }
    let pairs = [
        (
            "channels in and the autoencoder",
            unet.in_channels,
            vae.config().latent_channels,
        ),
        (
            "channels out and the autoencoder",
            unet.out_channels,
            vae.config().latent_channels,
        ),
        (
            "text width and the text encoder",
            unet.cross_attention_dim,
            text.config().hidden_size,
        ),
    ];
    match pairs.into_iter().find(|(_, a, b)| a != b) {
        None => Ok(()),
        Some((what, a, b)) => {
            let what = format!("has {a} {what} {b}; take all parts from the same model");
            Err(Error::input(path, what))
        }
    }
}

/// The weights file of a network in a diffusers folder.
pub const NETWORK_FILE: &str = "diffusion_pytorch_model.safetensors";

/// The weights file of a text encoder in a diffusers folder.
pub const ENCODER_FILE: &str = "model.safetensors";

impl PriorModel {
    /// Loads all parts. Every tensor of every file must be used.
    ///
    /// # Errors
    /// A missing file, an unsupported configuration, or weights that do not fit it.
    pub fn open(folder: &Folder, precision: Precision, device: &Device) -> Result<Self, Error> {
        let w = folder.weights(&format!("unet/{NETWORK_FILE}"), precision, device)?;
        let unet = Unet::from_json(
            &folder.json("unet/config.json")?,
            &folder.path("unet/config.json"),
            &w,
        )?;
        w.finish()?;
        let vae = Self::open_vae(folder, precision, device)?;
        let (text_encoder, tokenizer) = Self::open_text(folder, precision, device)?;
        let scheduler = Self::open_scheduler(folder)?;
        fits(folder, &unet, &vae, &text_encoder)?;
        Ok(Self {
            folder: folder.clone(),
            unet,
            vae,
            text_encoder,
            tokenizer,
            scheduler,
        })
    }

    /// Loads the autoencoder alone.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_vae(
        folder: &Folder,
        precision: Precision,
        device: &Device,
    ) -> Result<AutoencoderKl, Error> {
        let w = folder.weights(&format!("vae/{NETWORK_FILE}"), precision, device)?;
        let vae = AutoencoderKl::from_json(
            &folder.json("vae/config.json")?,
            &folder.path("vae/config.json"),
            &w,
        )?;
        w.finish()?;
        Ok(vae)
    }

    /// Loads the text encoder and its tokenizer.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_text(
        folder: &Folder,
        precision: Precision,
        device: &Device,
    ) -> Result<(ClipText, ClipTokenizer), Error> {
        let w = folder.weights(&format!("text_encoder/{ENCODER_FILE}"), precision, device)?;
        let config = folder.json("text_encoder/config.json")?;
        let encoder = ClipText::from_json(&config, &folder.path("text_encoder/config.json"), &w)?;
        w.finish()?;
        let tokenizer = Self::open_tokenizer(folder, encoder.config().max_position_embeddings)?;
        let (ids, rows) = (tokenizer.largest_id(), encoder.config().vocab_size);
        if ids as usize >= rows {
            let what = format!(
                "holds token {ids} and the text encoder knows {rows} tokens; take both from the same model"
            );
            return Err(Error::input(folder.path("tokenizer/vocab.json"), what));
        }
        Ok((encoder, tokenizer))
    }

    /// Loads the tokenizer for an encoder of `length` positions.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_tokenizer(folder: &Folder, length: usize) -> Result<ClipTokenizer, Error> {
        folder.clip_tokenizer("tokenizer", length)
    }

    /// Reads the noise schedule.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_scheduler(folder: &Folder) -> Result<SchedulerConfig, Error> {
        let file = "scheduler/scheduler_config.json";
        SchedulerConfig::from_json(&folder.json(file)?, &folder.path(file))
    }

    /// The conditioning of a batch of prompts, and how many tokens were dropped from the longest.
    ///
    /// A single CLIP encoder's final norm output; null text is the encoded empty string.
    pub fn conditioning(&self, prompts: &[&str]) -> (Conditioning, usize) {
        let tokens: Vec<_> = prompts
            .iter()
            .map(|prompt| self.tokenizer.encode(prompt))
            .collect();
        let dropped = tokens
            .iter()
            .map(|tokens| tokens.dropped)
            .max()
            .unwrap_or(0);
        let ids: Vec<Vec<u32>> = tokens.into_iter().map(|tokens| tokens.ids).collect();
        (
            Conditioning {
                text: self.text_encoder.forward(&ids).last,
                added: None,
            },
            dropped,
        )
    }

    /// The model's timestep `t` for a batch, `[b]`.
    pub fn timestep(&self, t: f64, b: usize, device: &Device) -> Tensor<1> {
        Tensor::full([b], t as f32, (device, DType::F32))
    }
}
