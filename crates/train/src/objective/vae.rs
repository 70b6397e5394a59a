//! The autoencoder's objective: reconstruction and a light pull of the posterior to the normal.
//!
//! `l1 |x' - x| + l2 (x' - x)^2 + kl KL(q(z|x) || N(0, 1))`, each a mean over values.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use pixels::Image;
use priors::{
    folder::{Folder, NETWORK_FILE},
    vae::{AutoencoderKl, Posterior, VaeConfig},
    weights::{Metadata, Values, Weights, save_safetensors},
};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{
    Evaluation, Objective, below, block_code, image_from_tensor, noise,
    pieces::{Pair, Pieces, sum, through},
    tensor_from_images,
};
use crate::{
    Error,
    config::{Gradient, Latent, Start, TrainConfig, VaeInit, VaeLoss},
    data::Sample,
    start::{Stored, Take, start_values},
};

/// Trains `vae/`.
#[derive(Debug)]
pub struct Vae {
    json: Value,
    path: PathBuf,
    folder: Folder,
    start: Start,
    seed: u64,
    loss: VaeLoss,
    gradient: Gradient,
    device: Device,
}

impl Vae {
    /// Reads the autoencoder's configuration.
    ///
    /// # Errors
    /// A missing or unsupported `vae/config.json`.
    pub fn new(config: &TrainConfig, device: &Device) -> Result<Self, Error> {
        let folder = Folder::Disk(config.model.clone());
        let objective = Self {
            json: folder.json("vae/config.json")?,
            path: folder.path("vae/config.json"),
            folder,
            start: config.start,
            seed: config.seed,
            loss: config.vae.clone(),
            gradient: config.optimise.gradient,
            device: device.clone(),
        };
        let shape = objective.network(&Weights::blank(device))?;
        config.check_crop(shape.downscale())?;
        Ok(objective)
    }

    fn network(&self, w: &Weights) -> Result<AutoencoderKl, Error> {
        Ok(AutoencoderKl::from_json(
            &self.json,
            &self.path,
            &w.at("vae"),
        )?)
    }

    /// The loss of a batch of pictures in `[-1, 1]`.
    pub fn loss(&self, vae: &AutoencoderKl, x: Tensor<4>, draws: &mut [ChaCha8Rng]) -> Tensor<1> {
        let posterior = vae.encode(x.clone());
        let noise = self.noise(&posterior, draws);
        let decoded = vae.decode(latent(&posterior, noise));
        self.error(x, &posterior, decoded)
    }

    /// What is drawn for a posterior, where a latent is drawn.
    fn noise(&self, posterior: &Posterior, draws: &mut [ChaCha8Rng]) -> Option<Tensor<4>> {
        (self.loss.latent == Latent::Draw)
            .then(|| noise(posterior.mean.dims(), draws, &self.device))
    }

    /// The loss of pictures whose posterior was `decoded` to these.
    fn error(&self, x: Tensor<4>, posterior: &Posterior, decoded: Tensor<4>) -> Tensor<1> {
        let (mean, logvar) = (posterior.mean.clone(), posterior.logvar.clone());
        let error = decoded - x;
        let kl = (mean.square() + logvar.clone().exp() - 1.0 - logvar).mean() * 0.5;
        let mut loss = error.clone().abs().mean() * self.loss.l1 + kl * self.loss.kl;
        if self.loss.l2 != 0.0 {
            loss = loss + error.square().mean() * self.loss.l2;
        }
        loss
    }

    /// Loss and gradients piece by piece.
    fn by_pieces(
        &self,
        of: Pair<'_>,
        mut pieces: Pieces<'_>,
        (x, draws, scale): (Tensor<4>, &mut [ChaCha8Rng], f32),
    ) -> Evaluation {
        let (moments, encoded) = pieces.encode(of, x.clone());
        let posterior = of.plain.posterior(moments.clone());
        let noise = self.noise(&posterior, draws);
        let (decoded, decoding) = pieces.decode(of, latent(&posterior, noise.clone()));
        let loss = self.error(x, &posterior, of.plain.unfolded(decoded.clone()));
        let mut tape = (loss.clone() * scale).backward();
        let of_posterior = moments.grad_remove(&mut tape);
        let of_decoded = decoded
            .grad_remove(&mut tape)
            .expect("the loss is of what was decoded");
        let of_latent = pieces.back(decoding, of_decoded);
        let drawn = |moments| latent(&of.plain.posterior(moments), noise);
        let of_latent = through(&moments, drawn, of_latent);
        let of_moments = sum([of_posterior, Some(of_latent)]);
        pieces.back(encoded, of_moments.expect("one of them"));
        Evaluation {
            loss: f64::from(loss.into_scalar::<f32>()),
            gradients: pieces.finish(),
        }
    }
}

/// What is decoded of a posterior: its mean, or a draw with this noise.
fn latent(posterior: &Posterior, noise: Option<Tensor<4>>) -> Tensor<4> {
    let mean = posterior.mean.clone();
    match noise {
        None => mean,
        Some(n) => mean + (posterior.logvar.clone() * 0.5).exp() * n,
    }
}

impl Objective for Vae {
    fn initial(&self) -> Result<Values, Error> {
        let stored = Stored {
            prefix: "vae",
            folder: &self.folder,
            file: format!("vae/{NETWORK_FILE}"),
            take: Take::All,
        };
        let mut values = start_values(self.start, &[stored], self.seed, &self.device, |w| {
            self.network(w).map(drop)
        })?;
        if self.start == Start::Fresh && self.loss.init == VaeInit::Dct {
            let config = VaeConfig::from_json(&self.json, &self.path)?;
            block_code::write(&config, &mut values)?;
        }
        Ok(values)
    }

    fn evaluate(
        &self,
        values: &Values,
        batch: &[Sample],
        draws: &mut [ChaCha8Rng],
        scale: f32,
    ) -> Result<Evaluation, Error> {
        let w = Weights::tracked(values.clone(), &self.device);
        let vae = self.network(&w)?;
        let images: Vec<&Image> = batch.iter().map(|sample| &sample.hq).collect();
        let x = tensor_from_images(&images, &self.device);
        if let Gradient::Cut(count) = self.gradient {
            let plain = self.network(&Weights::from_values(values.clone(), &self.device))?;
            let of = Pair {
                plain: &plain,
                taped: &vae,
            };
            return Ok(self.by_pieces(of, Pieces::new(count, &w), (x, draws, scale)));
        }
        Ok(Evaluation::by_tape(self.loss(&vae, x, draws), scale, &w))
    }

    fn show(
        &self,
        values: &Values,
        sample: &Sample,
        _rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Image>, Error> {
        let vae = self.network(&Weights::from_values(values.clone(), &self.device))?;
        let x = tensor_from_images(&[&sample.hq], &self.device);
        Ok(vec![
            sample.hq.clone(),
            image_from_tensor(vae.decode(vae.encode(x).mean)),
        ])
    }

    /// Writes `prior/vae/`, with `scaling_factor` and `shift_factor` such that the latents of `samples` have
    /// mean 0 and variance 1.
    fn save(&self, values: &Values, samples: &[Sample], folder: &Path) -> Result<(), Error> {
        let part = folder.join("prior/vae");
        save_safetensors(
            &part.join(NETWORK_FILE),
            &below(values, "vae"),
            DType::F32,
            &Metadata::new(),
        )?;
        let vae = self.network(&Weights::from_values(values.clone(), &self.device))?;
        let (mut n, mut sum, mut squares) = (0_usize, 0.0, 0.0);
        for sample in samples {
            let mean = vae
                .encode(tensor_from_images(&[&sample.hq], &self.device))
                .mean;
            for v in mean.into_data().try_into_vec::<f32>().expect("f32 latents") {
                n += 1;
                sum += f64::from(v);
                squares += f64::from(v) * f64::from(v);
            }
        }
        let shift = sum / n as f64;
        let scale = 1.0 / (squares / n as f64 - shift * shift).sqrt();
        let mut json = self.json.clone();
        json["scaling_factor"] = json!(scale);
        json["shift_factor"] = json!(shift);
        let json = serde_json::to_vec_pretty(&json).expect("plain JSON");
        Ok(priors::weights::write_atomically(
            &part.join("config.json"),
            &json,
        )?)
    }
}
