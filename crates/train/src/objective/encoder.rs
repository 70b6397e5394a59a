//! The degradation-robust encoder's objective: the latent of a degraded picture is to be that of the clean one.
//!
//! With the prior's frozen encoder `E` and decoder `D` (scaled latents), and `E'` the copy that trains:
//!
//! ```text
//! pixels |D(E'(lq)) - D(E(hq))|^2 + latent |E'(lq) - E(hq)|^2 + clean |E'(hq) - E(hq)|^2
//! ```
//!
//! SUPIR (2401.13627, section 3.1) states `|D(E'(lq)) - D(E'(hq))|^2`, the copy on both sides: a copy that gives the same
//! latent for every picture has no error at all, and trainings end there (SUPIR's issue 135, dark pictures). Here
//! the clean side is the prior's own and does not move, so the least error is the conditional mean of clean latents and
//! a constant is far from it. `target = "itself"` trains the stated loss, to see it collapse.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use pixels::Image;
use priors::{
    folder::{Folder, NETWORK_FILE},
    model::PriorModel,
    vae::AutoencoderKl,
    weights::{Precision, Values, Weights},
};
use rand_chacha::ChaCha8Rng;
use restore::adapter::{ENCODER_FOLDER, encoder_file, save_encoder};
use serde_json::Value;

use super::{
    Evaluation, Objective, below,
    fixed::{Fixed, folder_of},
    image_from_tensor,
    pieces::{Pair, Pieces, sum, through},
    tensor_from_images,
};
use crate::{
    Error,
    config::{EncoderLoss, EncoderTarget, Gradient, Start, TrainConfig},
    data::Sample,
    start::{Stored, Take, copy_rest, start_values},
};

/// Trains `degradation_robust_encoder/`.
#[derive(Debug)]
pub struct Encoder {
    json: Value,
    fixed: Fixed,
    folder: Folder,
    /// An adapter's folder whose encoder training goes on from.
    from: Option<Folder>,
    /// An adapter's folder that the result is to be part of.
    beside: Option<PathBuf>,
    vae: AutoencoderKl,
    seed: u64,
    loss: EncoderLoss,
    gradient: Gradient,
    device: Device,
}

impl Encoder {
    /// Loads the prior's autoencoder.
    ///
    /// # Errors
    /// Missing or unsupported files of the model.
    pub fn new(config: &TrainConfig, device: &Device) -> Result<Self, Error> {
        Self::over(config, Fixed::Loaded, device)
    }

    /// The same without weights for a rehearsal: zeros that take no memory in place of the autoencoder.
    ///
    /// # Errors
    /// As [`Self::new`], weights aside.
    pub(crate) fn blank(config: &TrainConfig, device: &Device) -> Result<Self, Error> {
        Self::over(config, Fixed::Blank, device)
    }

    fn over(config: &TrainConfig, fixed: Fixed, device: &Device) -> Result<Self, Error> {
        let folder = folder_of(config)?;
        let vae = PriorModel::open_vae(&folder, fixed.precision(Precision::F32, &folder), device)?;
        config.check_crop(vae.downscale())?;
        Ok(Self {
            json: folder.json("vae/config.json")?,
            fixed,
            folder,
            from: config.encoder_model.clone().map(Folder::Disk),
            beside: config.adapter_model.clone(),
            vae,
            seed: config.seed,
            loss: config.encoder.clone(),
            gradient: config.optimise.gradient,
            device: device.clone(),
        })
    }

    /// The autoencoder with the encoder over `w`.
    fn robust(&self, w: &Weights) -> Result<AutoencoderKl, Error> {
        Ok(self.vae.with_encoder(&w.at(ENCODER_FOLDER))?)
    }

    /// The loss of pairs `[b, 3, h, w]` in `[-1, 1]`.
    pub fn loss(&self, robust: &AutoencoderKl, hq: Tensor<4>, lq: Tensor<4>) -> Tensor<1> {
        let prior = self.vae.latent_from_image(hq.clone());
        let z = robust.latent_from_image(lq);
        let own = (self.reads_clean()).then(|| robust.latent_from_image(hq));
        let latents = Latents { prior, z, own };
        let target = latents.target(&self.loss);
        let seen = (self.loss.pixels != 0.0)
            .then(|| [latents.z.clone(), target].map(|z| self.vae.decode(self.vae.unscaled(z))));
        self.error(&latents, seen)
    }

    /// Whether the encoder that trains sees the clean picture too.
    fn reads_clean(&self) -> bool {
        self.loss.clean != 0.0 || self.loss.target == EncoderTarget::Itself
    }

    /// The loss of latents, and of the pictures that the degraded one's and the target's are decoded to.
    fn error(&self, latents: &Latents, seen: Option<[Tensor<4>; 2]>) -> Tensor<1> {
        let error = latents.z.clone() - latents.target(&self.loss);
        let mut loss = error.square().mean() * self.loss.latent;
        if let Some([degraded, target]) = seen {
            loss = loss + (degraded - target).square().mean() * self.loss.pixels;
        }
        if let Some(own) = latents.own.clone().filter(|_| self.loss.clean != 0.0) {
            loss = loss + (own - latents.prior.clone()).square().mean() * self.loss.clean;
        }
        loss
    }

    /// Loss and gradients piece by piece.
    fn by_pieces(
        &self,
        of: Pair<'_>,
        mut pieces: Pieces<'_>,
        (hq, lq, scale): (Tensor<4>, Tensor<4>, f32),
    ) -> Evaluation {
        let prior = self.vae.latent_from_image(hq.clone());
        let latent = |moments: &Tensor<4>| {
            let posterior = self.vae.posterior(moments.clone());
            self.vae.latent_from_mean(posterior.mean)
        };
        let (moments, degraded) = pieces.encode(of, lq);
        let clean = (self.reads_clean()).then(|| pieces.encode(of, hq));
        let latents = Latents {
            prior,
            z: latent(&moments),
            own: clean.as_ref().map(|(moments, _)| latent(moments)),
        };
        let decoder = Pair {
            plain: &self.vae,
            taped: &self.vae,
        };
        // A target that does not move needs no way back.
        let seen = (self.loss.pixels != 0.0).then(|| {
            [latents.z.clone(), latents.target(&self.loss)].map(|end| {
                let z = self.vae.unscaled(end);
                if !z.is_tracked() {
                    return (self.vae.decode(z), None);
                }
                let (picture, way) = pieces.decode(decoder, z);
                (self.vae.unfolded(picture.clone()), Some((picture, way)))
            })
        });
        let pictures = (seen.as_ref()).map(|[(z, _), (target, _)]| [z.clone(), target.clone()]);
        let loss = self.error(&latents, pictures);
        let mut tape = (loss.clone() * scale).backward();
        let mut ends = vec![(moments, degraded)];
        ends.extend(clean);
        let mut gradients: Vec<_> = (ends.iter())
            .map(|(moments, _)| moments.grad_remove(&mut tape))
            .collect();
        // The first picture is of the first latent, the second of the second.
        for (i, (_, picture)) in seen.into_iter().flatten().enumerate() {
            let Some((picture, way)) = picture else {
                continue;
            };
            let gradient = picture
                .grad_remove(&mut tape)
                .expect("the loss is of what was decoded");
            let gradient = pieces.back(way, gradient);
            let unscaled = |moments: Tensor<4>| self.vae.unscaled(latent(&moments));
            let gradient = through(&ends[i].0, unscaled, gradient);
            gradients[i] = sum([gradients[i].take(), Some(gradient)]);
        }
        for ((_, way), gradient) in ends.into_iter().zip(gradients) {
            if let Some(gradient) = gradient {
                pieces.back(way, gradient);
            }
        }
        Evaluation {
            loss: f64::from(loss.into_scalar::<f32>()),
            gradients: pieces.finish(),
        }
    }
}

/// Scaled latents of a batch.
struct Latents {
    /// Of the clean picture, the prior's.
    prior: Tensor<4>,
    /// Of the degraded one, by the encoder that trains.
    z: Tensor<4>,
    /// Of the clean one, by the encoder that trains, where that is needed.
    own: Option<Tensor<4>>,
}

impl Latents {
    /// What the degraded picture's latent is to be.
    fn target(&self, loss: &EncoderLoss) -> Tensor<4> {
        match (&self.own, loss.target) {
            (Some(own), EncoderTarget::Itself) => own.clone(),
            _ => self.prior.clone(),
        }
    }
}

impl Objective for Encoder {
    fn initial(&self) -> Result<Values, Error> {
        let mut stored = vec![Stored {
            prefix: ENCODER_FOLDER,
            folder: &self.folder,
            file: format!("vae/{NETWORK_FILE}"),
            take: Take::Copy(&["encoder."]),
        }];
        if let Some(folder) = &self.from {
            stored.push(Stored {
                prefix: ENCODER_FOLDER,
                folder,
                file: encoder_file(),
                take: Take::All,
            });
        }
        if self.fixed == Fixed::Blank {
            stored.clear();
        }
        start_values(Start::Model, &stored, self.seed, &self.device, |w| {
            self.robust(w).map(drop)
        })
    }

    fn evaluate(
        &self,
        values: &Values,
        batch: &[Sample],
        _draws: &mut [ChaCha8Rng],
        scale: f32,
    ) -> Result<Evaluation, Error> {
        let w = Weights::tracked(values.clone(), &self.device);
        let robust = self.robust(&w)?;
        let images = |of: fn(&Sample) -> &Image| -> Tensor<4> {
            let images: Vec<&Image> = batch.iter().map(of).collect();
            tensor_from_images(&images, &self.device)
        };
        let (hq, lq) = (images(|s| &s.hq), images(|s| &s.lq));
        if let Gradient::Cut(count) = self.gradient {
            let plain = self.robust(&Weights::from_values(values.clone(), &self.device))?;
            let of = Pair {
                plain: &plain,
                taped: &robust,
            };
            return Ok(self.by_pieces(of, Pieces::new(count, &w), (hq, lq, scale)));
        }
        Ok(Evaluation::by_tape(self.loss(&robust, hq, lq), scale, &w))
    }

    /// Clean, degraded, and the degraded picture through the encoder that trains.
    fn show(
        &self,
        values: &Values,
        sample: &Sample,
        _rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Image>, Error> {
        let robust = self.robust(&Weights::from_values(values.clone(), &self.device))?;
        let z = robust.latent_from_image(tensor_from_images(&[&sample.lq], &self.device));
        let seen = image_from_tensor(self.vae.image_from_latent(z));
        Ok(vec![sample.hq.clone(), sample.lq.clone(), seen])
    }

    /// Writes `adapter/degradation_robust_encoder/`, and beside it what else the adapter of `adapter_model` has.
    fn save(&self, values: &Values, _samples: &[Sample], folder: &Path) -> Result<(), Error> {
        let adapter = folder.join("adapter");
        let encoder = below(values, ENCODER_FOLDER);
        save_encoder(&adapter, &self.json, &encoder, DType::F32)?;
        match &self.beside {
            Some(beside) => copy_rest(beside, &adapter),
            None => Ok(()),
        }
    }
}
