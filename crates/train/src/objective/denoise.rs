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
//!
//! A state on the way from the noised low-quality latent ([`super::levels`]) carries the degradation `1 / s0`
//! times in its noise;
//! the square of its error counts `min(1, s0)^2`: faint noise would make much of a small degradation.

mod feed;
mod latents;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use burn::tensor::{DType, Device, Tensor};
use pixels::Image;
use priors::{
    any::AnyPrior,
    clip::ClipText,
    flow::Prior,
    folder::{ENCODER_FILE, Folder, NETWORK_FILE},
    model::PriorModel,
    scheduler::SchedulerConfig,
    text::uncropped,
    vae::AutoencoderKl,
    weights::{Metadata, Precision, Values, Weights, save_safetensors, write_atomically},
};
use rand_chacha::ChaCha8Rng;
use restore::{
    adapter::{
        AdapterConfig, AdapterFolder, COPIED, ENCODER_FOLDER, LORA_FILE, RestorationAdapter,
    },
    denoising::Denoising,
    lora::{Lora, Target, self_attention_targets},
    options::RestoreOptions,
    sampler::{Euler, sample},
    schedule::{Family, Schedule, Space},
};

use super::{
    Evaluation, Objective, Said, below,
    encoders::Encoders,
    fixed::{Fixed, folder_of},
    image_from_tensor,
    levels::Levels,
    noise, pixel_metric,
    robust::robust,
    tensor_from_images,
    text_cache::TextCache,
};
use crate::{
    Error,
    config::{Metric, Stage, TrainConfig},
    data::{LatentCache, Photos, Sample},
    start::{Stored, Take, copy_rest, start_values},
    walk::{Networks, gradients},
};

/// Pictures the pixel metric is measured on.
const METRIC_SAMPLES: usize = 8;

/// Trains the network (`unet/` or `transformer/`) and `text_encoder/`, the adapter, or both.
#[derive(Debug)]
pub struct Denoise {
    config: TrainConfig,
    fixed: Fixed,
    folder: Folder,
    /// The network where it is frozen, else its shape.
    prior: AnyPrior,
    encoders: Encoders,
    vae: AutoencoderKl,
    /// The degradation-robust encoder and the adapter's folder it is from.
    robust: Option<(AutoencoderKl, PathBuf)>,
    scheduler: SchedulerConfig,
    levels: Levels,
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
        Self::over(config, Fixed::Loaded, device)
    }

    /// The same without weights for a rehearsal: zeros that take no memory in place of what stays fixed.
    ///
    /// # Errors
    /// As [`Self::new`], weights aside.
    pub(crate) fn blank(config: &TrainConfig, device: &Device) -> Result<Self, Error> {
        Self::over(config, Fixed::Blank, device)
    }

    fn over(config: &TrainConfig, fixed: Fixed, device: &Device) -> Result<Self, Error> {
        let folder = folder_of(config)?;
        // In f32: SDXL's overflows f16.
        let vae = PriorModel::open_vae(&folder, fixed.precision(Precision::F32, &folder), device)?;
        let robust = robust(config, fixed, &vae, device)?;
        let scheduler = PriorModel::open_scheduler(&folder)?;
        let blank = Weights::blank(device);
        let shape = AnyPrior::from_folder(&folder, &blank)?;
        config.check_crop(vae.downscale() * shape.downscale())?;
        let targets = self_attention_targets(&blank.shapes());
        let (prior, encoders) = if config.stage == Stage::Adapter {
            // In the type they are stored in, in the mapped file.
            let precision = fixed.precision(Precision::Stored, &folder);
            let prior = PriorModel::open(&folder, precision, device)?;
            let encoders = match (config.data.cache_text, fixed) {
                (true, Fixed::Loaded) => {
                    let cache = TextCache::new(config, &folder, &prior.network, device)?;
                    Encoders::Cached(Box::new(cache))
                }
                (true, Fixed::Blank) => Encoders::rehearsed(prior.text),
                (false, _) => Encoders::Frozen(Box::new(prior.text)),
            };
            (prior.network, encoders)
        } else {
            let encoders = Encoders::trained(config, &folder, &shape)?;
            (shape, encoders)
        };
        let metric = match config.denoise.metric {
            Metric::Latent => None,
            // A decoder of zeros has no say in it.
            Metric::Pixels if fixed == Fixed::Blank => {
                let c = vae.config().latent_channels;
                Some(Tensor::zeros([c, c, 1, 1], (device, DType::F32)))
            }
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
            levels: Levels::new(&scheduler, &config.denoise),
            config: config.clone(),
            fixed,
            folder,
            prior,
            encoders,
            vae,
            robust,
            scheduler,
            targets,
            metric,
            device: device.clone(),
        })
    }

    /// The captions that the run can read.
    fn captions(&self, photos: &Photos) -> Vec<String> {
        if self.config.data.null_text < 1.0 {
            photos.captions()
        } else {
            vec![]
        }
    }

    /// The networks over `w`, frozen ones as they are.
    fn networks(&self, w: &Weights) -> Result<Networks, Error> {
        let (prior, text_encoder) = match &self.encoders {
            Encoders::Trained { json, .. } => {
                let path = self.folder.path("text_encoder/config.json");
                let encoder = ClipText::from_json(json, &path, &w.at("text_encoder"))?;
                let network = self.prior.rebuilt(&w.at(self.prior.kind().folder()))?;
                (network, Some(encoder))
            }
            _ => (self.prior.clone(), None),
        };
        let adapter = match &self.config.adapter {
            Some(config) if self.config.stage != Stage::Prior => Some(RestorationAdapter::new(
                config.clone(),
                &prior,
                &w.at("restoration_adapter"),
            )?),
            _ => None,
        };
        let lora = match (&self.config.lora, self.config.stage) {
            (Some(config), Stage::Adapter) => {
                let w = w.at("lora").at(prior.kind().folder());
                Some(Lora::new(config, &self.targets, &w)?)
            }
            _ => None,
        };
        Ok(Networks {
            prior,
            text_encoder,
            adapter,
            lora,
        })
    }
}

impl Objective for Denoise {
    fn prepare(
        &self,
        photos: &Photos,
        stop: &AtomicBool,
        say: &mut dyn FnMut(Said),
    ) -> Result<(), Error> {
        let captions = self.captions(photos);
        let mut notes = self.encoders.notes(captions.clone());
        let sources = self.folder.sources().into_iter();
        notes.extend(sources.map(|line| format!("prior: {line}")));
        notes.into_iter().for_each(|note| say(Said::Note(note)));
        match &self.encoders {
            Encoders::Cached(cache) => cache.fill(captions, stop, say),
            _ => Ok(()),
        }
    }

    fn disk_bytes(&self, photos: &Photos) -> u64 {
        let batch = self.config.optimise.batch;
        self.encoders.disk_bytes(self.captions(photos), batch)
    }

    fn latents(&self, data: &str) -> Result<Option<(LatentCache, u64)>, Error> {
        self.latent_cache(data)
    }

    fn initial(&self) -> Result<Values, Error> {
        let folder = &self.folder;
        let mut stored = vec![];
        if let Encoders::Trained { .. } = self.encoders {
            let network = self.prior.kind().folder();
            stored.push(Stored {
                prefix: network,
                folder,
                file: format!("{network}/{NETWORK_FILE}"),
                take: Take::All,
            });
            stored.push(Stored {
                prefix: "text_encoder",
                folder,
                file: format!("text_encoder/{ENCODER_FILE}"),
                take: Take::All,
            });
        }
        if let Some(AdapterConfig::ControlNet(_)) = &self.config.adapter {
            stored.push(Stored {
                prefix: "restoration_adapter",
                folder,
                file: format!("unet/{NETWORK_FILE}"),
                take: Take::Copy(&COPIED),
            });
        }
        let adapter = self.config.adapter_model.clone().map(Folder::Disk);
        if let Some(folder) = &adapter {
            let file = format!("restoration_adapter/{NETWORK_FILE}");
            stored.push(Stored {
                prefix: "restoration_adapter",
                folder,
                file,
                take: Take::All,
            });
            if self.config.stage == Stage::Adapter && folder.has(LORA_FILE) {
                stored.push(Stored {
                    prefix: "lora",
                    folder,
                    file: LORA_FILE.into(),
                    take: Take::All,
                });
            }
        }
        if self.fixed == Fixed::Blank {
            stored.clear();
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
        draws: &mut [ChaCha8Rng],
        scale: f32,
    ) -> Result<Evaluation, Error> {
        let (inputs, target, counts) = self.feed(batch, draws)?;
        let w = Weights::tracked(values.clone(), &self.device);
        let taped = self.networks(&w)?;
        let plain = self.networks(&Weights::from_values(values.clone(), &self.device))?;
        let how = self.config.optimise.gradient;
        let (loss, gradients) = gradients(&plain, &taped, &inputs, &w, how, |prediction| {
            self.loss(prediction, target, counts) * scale
        });
        Ok(Evaluation {
            loss: loss / f64::from(scale),
            gradients,
        })
    }

    fn show(
        &self,
        values: &Values,
        shown: &Sample,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Image>, Error> {
        let networks = self.networks(&Weights::from_values(values.clone(), &self.device))?;
        let lq = tensor_from_images(&[&shown.lq], &self.device);
        let c_lq = self.c_lq(lq);
        let size = uncropped([shown.hq.height, shown.hq.width]);
        let text = self.encoders.text(&[""], &[size])?;
        let conditioning = networks.conditioning(&text);
        // As `restore` does by default.
        let usual = RestoreOptions::default();
        let restore::options::Start::Lq { strength } = usual.start else {
            unreachable!("the default starts from the picture")
        };
        let schedule = Schedule::from_strength(
            &self.scheduler,
            Space::Sigma,
            Family::OneStep,
            usual.steps,
            strength,
        )?;
        let (alpha, beta) = (
            schedule.space.alpha(schedule.levels[0].sigma),
            schedule.space.beta(schedule.levels[0].sigma),
        );
        let z = c_lq.clone() * alpha
            + noise(c_lq.dims(), std::slice::from_mut(rng), &self.device) * beta;
        let lq_features = networks
            .adapter
            .as_ref()
            .map(|adapter| adapter.lq_features(&networks.prior, &c_lq));
        let denoiser = Denoising {
            prior: &networks.prior,
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
        if let Encoders::Trained { json, .. } = &self.encoders {
            let kind = self.prior.kind().folder();
            let network = self.folder.json(&format!("{kind}/config.json"))?;
            for (part, file, config) in [
                (kind, NETWORK_FILE, &network),
                ("text_encoder", ENCODER_FILE, json),
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
            if let Some((_, from)) = &self.robust {
                copy_rest(&from.join(ENCODER_FOLDER), &folder.join(ENCODER_FOLDER))?;
            }
        }
        Ok(())
    }
}
