//! A prior with everything around it, loaded from a diffusers folder.

use burn::tensor::Device;
use serde_json::Value;

use crate::{
    Error,
    any::{AnyPrior, Architecture},
    clip::{ClipConfig, ClipText},
    folder::{ENCODER_FILE, Folder, NETWORK_FILE},
    scheduler::SchedulerConfig,
    t5::T5Encoder,
    text::{Clip, Null, T5, T5_TOKENS, TextEncoders},
    tokenizer::T5Tokenizer,
    vae::AutoencoderKl,
    weights::Precision,
};

/// A loaded prior.
#[derive(Clone, Debug)]
pub struct PriorModel {
    /// Where it came from.
    pub folder: Folder,
    /// The denoising network.
    pub network: AnyPrior,
    /// Pictures to latents and back.
    pub vae: AutoencoderKl,
    /// Prompts to conditioning.
    pub text: TextEncoders,
    /// The noise schedule the prior was trained with.
    pub scheduler: SchedulerConfig,
}

impl PriorModel {
    /// Loads all parts. Every tensor of every file must be used.
    ///
    /// # Errors
    /// A missing file, an unsupported configuration, or weights that do not fit it.
    pub fn open(folder: &Folder, precision: Precision, device: &Device) -> Result<Self, Error> {
        let network = Self::open_network(folder, precision, device)?;
        let model = Self {
            folder: folder.clone(),
            vae: Self::open_vae(folder, precision, device)?,
            text: Self::open_text(folder, &network, precision, device)?,
            scheduler: Self::open_scheduler(folder)?,
            network,
        };
        model.check()?;
        Ok(model)
    }

    /// Loads the denoising network alone.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_network(
        folder: &Folder,
        precision: Precision,
        device: &Device,
    ) -> Result<AnyPrior, Error> {
        let part = Architecture::of(folder).folder();
        let w = folder.weights(&format!("{part}/{NETWORK_FILE}"), precision, device)?;
        let network = AnyPrior::from_folder(folder, &w)?;
        w.finish()?;
        Ok(network)
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

    /// Loads the text encoders that `network` listens to.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_text(
        folder: &Folder,
        network: &AnyPrior,
        precision: Precision,
        device: &Device,
    ) -> Result<TextEncoders, Error> {
        let clip = |suffix| open_clip(folder, suffix, precision, device);
        let both = || Ok::<_, Error>(Box::new([clip("")?, clip("_2")?]));
        Ok(match network {
            _ if Self::has_single_text_encoder(folder, network)? => {
                TextEncoders::Single(Box::new(clip("")?))
            }
            AnyPrior::Unet(_) => TextEncoders::Sdxl {
                clips: both()?,
                null: null(folder)?,
            },
            AnyPrior::MmDit(mmdit) => {
                let t5 = || open_t5(folder, precision, device).map(Box::new);
                TextEncoders::Sd3 {
                    clips: both()?,
                    t5: has_t5(folder, precision).then(t5).transpose()?,
                    width: mmdit.config().joint_attention_dim,
                }
            }
        })
    }

    /// Whether `network` listens to one CLIP alone: a U-Net without pooled text, or a transformer whose pooled text is
    /// as wide as the one CLIP that its folder holds.
    ///
    /// # Errors
    /// An unsupported text encoder.
    pub fn has_single_text_encoder(folder: &Folder, network: &AnyPrior) -> Result<bool, Error> {
        let file = "text_encoder/config.json";
        match network {
            AnyPrior::Unet(unet) => Ok(unet.config().addition_embed_type.is_none()),
            AnyPrior::MmDit(_) if folder.has("text_encoder_2/config.json") || !folder.has(file) => {
                Ok(false)
            }
            AnyPrior::MmDit(mmdit) => {
                let clip = ClipConfig::from_json(&folder.json(file)?, &folder.path(file))?;
                Ok(clip.pooled_width() == mmdit.config().pooled_projection_dim)
            }
        }
    }

    /// Reads the noise schedule.
    ///
    /// # Errors
    /// As [`PriorModel::open`].
    pub fn open_scheduler(folder: &Folder) -> Result<SchedulerConfig, Error> {
        let file = "scheduler/scheduler_config.json";
        SchedulerConfig::from_json(&folder.json(file)?, &folder.path(file))
    }

    /// Refuses parts that were not made for each other.
    fn check(&self) -> Result<(), Error> {
        let [c_in, c_out] = self.network.channels();
        let latent = self.vae.config().latent_channels;
        let mut pairs = vec![
            ("channels in and the autoencoder", c_in, latent),
            ("channels out and the autoencoder", c_out, latent),
        ];
        let configs: Vec<_> = self
            .text
            .clips()
            .map(|clip| clip.encoder.config())
            .collect();
        let width: usize = configs.iter().map(|config| config.hidden_size).sum();
        let positions = [configs[0], configs[configs.len() - 1]].map(|c| c.max_position_embeddings);
        pairs.push((
            "tokens of the first text encoder and the second",
            positions[0],
            positions[1],
        ));
        let pooled = |i: usize| configs[i].pooled_width();
        match (&self.network, &self.text) {
            (AnyPrior::Unet(unet), text) => {
                let unet = unet.config();
                pairs.push((
                    "text width and the text encoders",
                    unet.cross_attention_dim,
                    width,
                ));
                if let (TextEncoders::Sdxl { .. }, Some(all), Some(one)) = (
                    text,
                    unet.projection_class_embeddings_input_dim,
                    unet.addition_time_embed_dim,
                ) {
                    pairs.push((
                        "pooled text with sizes and the text encoders",
                        all,
                        pooled(1) + 6 * one,
                    ));
                }
            }
            (AnyPrior::MmDit(mmdit), text) => {
                let mmdit = mmdit.config();
                pairs.push((
                    "pooled text and the text encoders",
                    mmdit.pooled_projection_dim,
                    (0..configs.len()).map(pooled).sum(),
                ));
                let d = mmdit.joint_attention_dim;
                let widest = match text {
                    TextEncoders::Sd3 { t5: Some(t5), .. } => t5.encoder.config().d_model,
                    _ => d,
                };
                pairs.push(("text width and the text encoders", d, widest.max(width)));
            }
        }
        match pairs.into_iter().find(|(_, a, b)| a != b) {
            None => Ok(()),
            Some((what, a, b)) => {
                let what = format!("has {a} {what} {b}; take all parts from the same model");
                let file = format!("{}/config.json", self.network.kind().folder());
                Err(Error::input(self.folder.path(&file), what))
            }
        }
    }
}

/// Loads `text_encoder<suffix>` and `tokenizer<suffix>`.
fn open_clip(
    folder: &Folder,
    suffix: &str,
    precision: Precision,
    device: &Device,
) -> Result<Clip, Error> {
    let part = format!("text_encoder{suffix}");
    let w = folder.weights(&format!("{part}/{ENCODER_FILE}"), precision, device)?;
    let file = format!("{part}/config.json");
    let encoder = ClipText::from_json(&folder.json(&file)?, &folder.path(&file), &w)?;
    w.finish()?;
    let place = format!("tokenizer{suffix}");
    let tokenizer = folder.clip_tokenizer(&place, encoder.config().max_position_embeddings)?;
    fits(
        folder,
        &place,
        tokenizer.largest_id(),
        encoder.config().vocab_size,
    )?;
    Ok(Clip { encoder, tokenizer })
}

/// Whether there is a T5 to load: its weights may be left away, as they are the largest part of a prior.
fn has_t5(folder: &Folder, precision: Precision) -> bool {
    let weights = matches!(precision, Precision::Blank(_)) || !folder.lacks_weights_of_t5();
    weights && folder.has("text_encoder_3/config.json")
}

/// Loads `text_encoder_3` and `tokenizer_3`.
fn open_t5(folder: &Folder, precision: Precision, device: &Device) -> Result<T5, Error> {
    let file = "text_encoder_3/config.json";
    let w = folder.weights(&format!("text_encoder_3/{ENCODER_FILE}"), precision, device)?;
    let encoder = T5Encoder::from_json(&folder.json(file)?, &folder.path(file), &w)?;
    w.finish()?;
    let file = "tokenizer_3/tokenizer.json";
    let tokenizer = T5Tokenizer::new(&folder.read(file)?, T5_TOKENS, &folder.path(file))?;
    fits(
        folder,
        file,
        tokenizer.largest_id(),
        encoder.config().vocab_size,
    )?;
    Ok(T5 { encoder, tokenizer })
}

/// Refuses a tokenizer that gives ids the encoder does not have.
fn fits(folder: &Folder, file: &str, largest: u32, rows: usize) -> Result<(), Error> {
    if largest as usize >= rows {
        let what = format!(
            "holds token {largest} and the text encoder knows {rows} tokens; take both from the same model"
        );
        return Err(Error::input(folder.path(file), what));
    }
    Ok(())
}

/// `force_zeros_for_empty_prompt` of `model_index.json`; diffusers' default is true.
fn null(folder: &Folder) -> Result<Null, Error> {
    let file = "model_index.json";
    let index = if folder.has(file) {
        folder.json(file)?
    } else {
        Value::Null
    };
    Ok(match index.get("force_zeros_for_empty_prompt") {
        Some(Value::Bool(false)) => Null::Encoded,
        _ => Null::Zero,
    })
}
