//! The denoising objective: the prior's own loss, with the low-quality latent through the adapter.
//!
//! ```text
//! flow      x = (1 - sigma) z0 + sigma n          target  n - z0
//! epsilon   x = alpha z0 + beta n                 target  n
//! v         x = alpha z0 + beta n                 target  alpha n - beta z0
//! ```
//!
//! The loss is the mean squared error, each channel counting the same or as pixels see it
//! ([`super::pixel_metric`]). A small part of the samples has the low-quality latent as its target,
//! under a prompt of what was done to it (the paper, section 3.3).

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::Padding;
use pixels::Image;
use priors::{
    clip::ClipText,
    flow::{Conditioning, Prior},
    folder::{ENCODER_FILE, Folder, NETWORK_FILE, PriorModel},
    scheduler::{Prediction, SchedulerConfig},
    tokenizer::{ClipTokenizer, learn},
    unet::Unet,
    vae::AutoencoderKl,
    weights::{Metadata, Precision, Values, Weights, save_safetensors, write_atomically},
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use restore::{
    adapter::{AdapterFolder, LORA_FILE, RestorationAdapter, Scale},
    lora::{Lora, Target, self_attention_targets},
    restorer::Denoising,
    sampler::{Euler, sample},
    schedule::{Schedule, Space, alphas_cumprod},
};
use serde_json::Value;

use super::{
    Evaluation, Objective, below, image_from_tensor, noise, pixel_metric, tensor_from_images,
};
use crate::{
    Error,
    config::{Metric, Stage, TrainConfig},
    data::{Photos, Sample},
    run::{Stored, start_values},
    walk::{Inputs, Networks, Text, gradients},
};

/// Pictures the pixel metric is measured on.
const METRIC_SAMPLES: usize = 8;

/// Trains `unet/` and `text_encoder/`, the adapter, or both.
#[derive(Debug)]
pub struct Denoise {
    config: TrainConfig,
    folder: Folder,
    unet_json: Value,
    text_json: Value,
    vae: AutoencoderKl,
    tokenizer: ClipTokenizer,
    scheduler: SchedulerConfig,
    alphas: Vec<f64>,
    frozen: Option<(Unet, ClipText)>,
    targets: Vec<Target>,
    metric: Option<Tensor<4>>,
    device: Device,
}

impl Denoise {
    /// Loads what stays fixed: the autoencoder, and for stage `adapter` the whole prior.
    ///
    /// # Errors
    /// Missing or unsupported files of the model.
    pub fn new(config: &TrainConfig, device: &Device) -> Result<Self, Error> {
        let folder = Folder::Disk(config.model.clone());
        let vae = PriorModel::open_vae(&folder, Precision::F32, device)?;
        let unet_json = folder.json("unet/config.json")?;
        let text_json = folder.json("text_encoder/config.json")?;
        let length = text_json
            .get("max_position_embeddings")
            .and_then(Value::as_u64)
            .unwrap_or(77) as usize;
        let tokenizer = tokenizer(config, &folder, &text_json, length)?;
        let scheduler = PriorModel::open_scheduler(&folder)?;
        let shape = Unet::from_json(
            &unet_json,
            &folder.path("unet/config.json"),
            &Weights::blank(device),
        )?;
        config.check_crop(vae.downscale() * shape.downscale())?;
        let mut frozen = None;
        let mut targets = vec![];
        if config.stage == Stage::Adapter {
            let prior = PriorModel::open(&folder, Precision::F32, device)?;
            let w = Weights::blank(device);
            Unet::from_json(&unet_json, &folder.path("unet/config.json"), &w)?;
            targets = self_attention_targets(&w.shapes());
            frozen = Some((prior.unet, prior.text_encoder));
        }
        let metric = match config.denoise.metric {
            Metric::Latent => None,
            Metric::Pixels => {
                let photos = Photos::open(&config.data, config.seed)?;
                let samples = (0..METRIC_SAMPLES)
                    .map(|i| photos.sample(i))
                    .collect::<Result<Vec<_>, _>>()?;
                let images: Vec<&Image> = samples.iter().map(|sample| &sample.hq).collect();
                let latents = vae.latent_from_image(tensor_from_images(&images, device));
                Some(pixel_metric(&vae, &latents, config.seed, device))
            }
        };
        Ok(Self {
            tokenizer,
            alphas: alphas_cumprod(&scheduler),
            config: config.clone(),
            folder,
            unet_json,
            text_json,
            vae,
            scheduler,
            frozen,
            targets,
            metric,
            device: device.clone(),
        })
    }

    /// The networks over `w`, frozen ones as they are.
    fn networks(&self, w: &Weights) -> Result<Networks, Error> {
        let (unet, text_encoder) = match &self.frozen {
            Some((unet, text_encoder)) => (unet.clone(), Some(text_encoder.clone())),
            None => {
                let path = self.folder.path("unet/config.json");
                let unet = Unet::from_json(&self.unet_json, &path, &w.at("unet"))?;
                let path = self.folder.path("text_encoder/config.json");
                (
                    unet,
                    Some(ClipText::from_json(
                        &self.text_json,
                        &path,
                        &w.at("text_encoder"),
                    )?),
                )
            }
        };
        let adapter = match &self.config.adapter {
            Some(config) if self.config.stage != Stage::Prior => Some(RestorationAdapter::new(
                config.clone(),
                unet.sites(),
                &w.at("restoration_adapter"),
            )?),
            _ => None,
        };
        let lora = match (&self.config.lora, self.config.stage) {
            (Some(config), Stage::Adapter) => {
                Some(Lora::new(config, &self.targets, &w.at("lora.unet"))?)
            }
            _ => None,
        };
        Ok(Networks {
            unet,
            text_encoder,
            adapter,
            lora,
        })
    }

    /// A noise level: the state's coefficients of data and noise, and the model's timestep.
    fn level(&self, rng: &mut ChaCha8Rng) -> (f64, f64, f64) {
        match self.scheduler {
            SchedulerConfig::Flow {
                train_timesteps, ..
            } => {
                let normal: f64 = rng.sample(StandardNormal);
                let loss = &self.config.denoise;
                let sigma = 1.0 / (1.0 + (-(loss.sigma_mean + loss.sigma_std * normal)).exp());
                (1.0 - sigma, sigma, sigma * train_timesteps as f64)
            }
            SchedulerConfig::Diffusion { .. } => {
                let t = rng.random_range(0..self.alphas.len());
                (
                    self.alphas[t].sqrt(),
                    (1.0 - self.alphas[t]).sqrt(),
                    t as f64,
                )
            }
        }
    }

    fn prepare(&self, batch: &[Sample], rng: &mut ChaCha8Rng) -> (Inputs, Tensor<4>) {
        let hq: Vec<&Image> = batch.iter().map(|sample| &sample.hq).collect();
        let lq: Vec<&Image> = batch.iter().map(|sample| &sample.lq).collect();
        let z_hq = self
            .vae
            .latent_from_image(tensor_from_images(&hq, &self.device));
        let c_lq = self
            .vae
            .latent_from_image(tensor_from_images(&lq, &self.device));
        let b = batch.len();
        let column = |values: Vec<f64>| -> Tensor<4> {
            let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            Tensor::from_data(
                TensorData::new(values, [b, 1, 1, 1]),
                (&self.device, DType::F32),
            )
        };
        let (mut data, mut noisy, mut times, mut to_lq, mut skip, mut prompts) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        for sample in batch {
            let (alpha, beta, t) = self.level(rng);
            let lq_target = self.config.stage != Stage::Prior
                && rng.random::<f64>() < self.config.denoise.lq_target;
            let skipped = self.config.stage == Stage::Joint
                && rng.random::<f64>() < self.config.denoise.skip_adapter;
            data.push(alpha);
            noisy.push(beta);
            times.push(t as f32);
            to_lq.push(f64::from(u8::from(lq_target)));
            skip.push(if skipped { 0.0 } else { 1.0 });
            prompts.push(if lq_target {
                sample.descriptors.join(", ")
            } else {
                sample.caption.clone()
            });
        }
        let to_lq = column(to_lq);
        let z0 = z_hq.clone() + (c_lq.clone() - z_hq) * to_lq;
        let n = noise(z0.dims(), rng, &self.device);
        let (alpha, beta) = (column(data), column(noisy));
        let x = z0.clone() * alpha.clone() + n.clone() * beta.clone();
        let target = match self.scheduler.prediction() {
            Prediction::Flow => n - z0,
            Prediction::Epsilon => n,
            Prediction::VPrediction => n * alpha - z0 * beta,
        };
        let ids: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| self.tokenizer.encode(prompt).ids)
            .collect();
        let text = match &self.frozen {
            Some((_, encoder)) => Text::Encoded(Conditioning {
                text: encoder.forward(&ids).last,
                added: None,
            }),
            None => Text::Ids(ids),
        };
        let scale = if self.config.stage == Stage::Joint {
            Scale::Each(column(skip))
        } else {
            Scale::All(1.0)
        };
        let t = Tensor::from_data(TensorData::new(times, [b]), (&self.device, DType::F32));
        (
            Inputs {
                x,
                t,
                text,
                c_lq,
                scale,
            },
            target,
        )
    }

    fn loss(&self, prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
        let error = prediction - target;
        let error = match &self.metric {
            Some(metric) => kernels::conv2d(error, metric.clone(), None, 1, Padding::same(0)),
            None => error,
        };
        error.square().mean()
    }
}

/// The model's tokenizer, or one learned from the captions where the model has no vocabulary yet.
fn tokenizer(
    config: &TrainConfig,
    folder: &Folder,
    text_json: &Value,
    length: usize,
) -> Result<ClipTokenizer, Error> {
    let settings = folder.json("tokenizer/tokenizer_config.json")?;
    // A resumed run goes on with the vocabulary it has learned.
    for folder in [folder, &Folder::Disk(config.out.join("prior"))] {
        if folder.has("tokenizer/vocab.json") && folder.has("tokenizer/merges.txt") {
            let vocab = folder.read("tokenizer/vocab.json")?;
            let merges = folder.read("tokenizer/merges.txt")?;
            return Ok(ClipTokenizer::new(
                &vocab,
                &merges,
                &settings,
                length,
                &folder.path("tokenizer"),
            )?);
        }
    }
    let size = text_json
        .get("vocab_size")
        .and_then(Value::as_u64)
        .unwrap_or(0) as usize;
    let mut texts = Photos::open(&config.data, config.seed)?.captions();
    // Often enough that each of its words becomes one token.
    texts.extend(vec![
        "low quality, low resolution, blurry, noisy, compressed"
            .to_owned();
        64
    ]);
    let (vocab, merges) = learn(&texts, size)?;
    let out = config.out.join("prior/tokenizer");
    write_atomically(&out.join("vocab.json"), vocab.as_bytes())?;
    write_atomically(&out.join("merges.txt"), merges.as_bytes())?;
    Ok(ClipTokenizer::new(
        vocab.as_bytes(),
        merges.as_bytes(),
        &settings,
        length,
        &out,
    )?)
}

impl Objective for Denoise {
    fn initial(&self) -> Result<Values, Error> {
        let folder = &self.folder;
        let mut stored = vec![];
        if self.frozen.is_none() {
            stored.push(Stored {
                prefix: "unet",
                folder,
                file: format!("unet/{NETWORK_FILE}"),
            });
            stored.push(Stored {
                prefix: "text_encoder",
                folder,
                file: format!("text_encoder/{ENCODER_FILE}"),
            });
        }
        let adapter = self.config.adapter_model.clone().map(Folder::Disk);
        if let Some(folder) = &adapter {
            let file = format!("restoration_adapter/{NETWORK_FILE}");
            stored.push(Stored {
                prefix: "restoration_adapter",
                folder,
                file,
            });
            if self.config.stage == Stage::Adapter && folder.has(LORA_FILE) {
                stored.push(Stored {
                    prefix: "lora",
                    folder,
                    file: LORA_FILE.into(),
                });
            }
        }
        start_values(
            self.config.start,
            &stored,
            self.config.seed,
            &self.device,
            |w| self.networks(w).map(drop),
        )
    }

    fn evaluate(
        &self,
        values: &Values,
        batch: &[Sample],
        rng: &mut ChaCha8Rng,
    ) -> Result<Evaluation, Error> {
        let (inputs, target) = self.prepare(batch, rng);
        let w = Weights::tracked(values.clone(), &self.device);
        let taped = self.networks(&w)?;
        let plain = self.networks(&Weights::from_values(values.clone(), &self.device))?;
        let how = self.config.optimise.gradient;
        let (loss, gradients) = gradients(&plain, &taped, &inputs, &w, how, |prediction| {
            self.loss(prediction, target)
        });
        Ok(Evaluation { loss, gradients })
    }

    fn show(
        &self,
        values: &Values,
        shown: &Sample,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Image>, Error> {
        let networks = self.networks(&Weights::from_values(values.clone(), &self.device))?;
        let lq = tensor_from_images(&[&shown.lq], &self.device);
        let c_lq = self.vae.latent_from_image(lq);
        let text = self.tokenizer.encode("").ids;
        let encoder = networks.text_encoder.as_ref().expect("always there");
        let conditioning = Conditioning {
            text: encoder.forward(&[text]).last,
            added: None,
        };
        let schedule = Schedule::from_strength(&self.scheduler, Space::Sigma, 8, 0.5)?;
        let (alpha, beta) = (
            schedule.space.alpha(schedule.levels[0].sigma),
            schedule.space.beta(schedule.levels[0].sigma),
        );
        let z = c_lq.clone() * alpha + noise(c_lq.dims(), rng, &self.device) * beta;
        let lq_features = networks
            .adapter
            .as_ref()
            .map(|adapter| adapter.lq_features(&c_lq));
        let denoiser = Denoising {
            unet: &networks.unet,
            adapter: networks.adapter.as_ref().zip(lq_features.as_ref()),
            lora: networks.lora.as_ref(),
            conditioning,
            prediction: self.scheduler.prediction(),
            space: schedule.space,
            scale: 1.0,
        };
        let z = sample(
            &mut Euler,
            &denoiser,
            &schedule,
            None,
            z,
            &mut || unreachable!("Euler draws nothing"),
            &mut |_| (),
        );
        Ok(vec![
            shown.hq.clone(),
            shown.lq.clone(),
            image_from_tensor(self.vae.image_from_latent(z)),
        ])
    }

    fn save(&self, values: &Values, _samples: &[Sample], folder: &Path) -> Result<(), Error> {
        let metadata = Metadata::new();
        if self.frozen.is_none() {
            for (part, file, config) in [
                ("unet", NETWORK_FILE, &self.unet_json),
                ("text_encoder", ENCODER_FILE, &self.text_json),
            ] {
                let to = folder.join("prior").join(part);
                save_safetensors(&to.join(file), &below(values, part), DType::F32, &metadata)?;
                let json = serde_json::to_vec_pretty(config).expect("plain JSON");
                write_atomically(&to.join("config.json"), &json)?;
            }
        }
        if let (Some(config), true) = (&self.config.adapter, self.config.stage != Stage::Prior) {
            let lora = self
                .config
                .lora
                .as_ref()
                .filter(|_| self.config.stage == Stage::Adapter);
            let folder = folder.join("adapter");
            AdapterFolder::save(
                &folder,
                config,
                &below(values, "restoration_adapter"),
                lora,
                &below(values, "lora"),
                DType::F32,
            )?;
        }
        Ok(())
    }
}
