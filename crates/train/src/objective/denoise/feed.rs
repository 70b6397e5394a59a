//! What a step feeds the networks, what they should say, and the loss of what they say.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::Padding;
use pixels::Image;
use priors::{scheduler::Prediction, text::uncropped};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use restore::adapter::Scale;

use super::{
    super::{noise, tensor_from_images},
    Denoise,
};
use crate::{
    Error,
    config::{Sizes, Stage},
    data::{Encoded, Latents, Place, Sample},
    walk::Inputs,
};

impl Denoise {
    /// The low-quality latent of pictures `[b, 3, h, w]`.
    pub(super) fn c_lq(&self, lq: Tensor<4>) -> Tensor<4> {
        let vae = self.robust.as_ref().map_or(&self.vae, |(robust, _)| robust);
        vae.latent_from_image(lq)
    }

    /// The latents of the clean and of the degraded crops, and those that the adapter sees.
    fn latents_of(&self, batch: &[Sample]) -> Result<[Tensor<4>; 3], Error> {
        if batch
            .iter()
            .all(|one| matches!(one.encoded, Encoded::Never))
        {
            let hq: Vec<&Image> = batch.iter().map(|sample| &sample.hq).collect();
            let lq: Vec<&Image> = batch.iter().map(|sample| &sample.lq).collect();
            return Ok(self.encode(&hq, &lq));
        }
        // Each for itself, so that its latents do not depend on which others were there.
        let mut each = [vec![], vec![], vec![]];
        for sample in batch {
            let encoded = match &sample.encoded {
                Encoded::Once(latents) => self.tensors(latents),
                Encoded::Never => self.encode(&[&sample.hq], &[&sample.lq]),
                Encoded::Later(cache, which) => {
                    let encoded = self.encode(&[&sample.hq], &[&sample.lq]);
                    cache.store(*which, sample, &latents(&encoded))?;
                    encoded
                }
            };
            each.iter_mut()
                .zip(encoded)
                .for_each(|(all, one)| all.push(one));
        }
        Ok(each.map(|all| Tensor::cat(all, 0)))
    }

    fn encode(&self, hq: &[&Image], lq: &[&Image]) -> [Tensor<4>; 3] {
        let z_hq = self
            .vae
            .latent_from_image(tensor_from_images(hq, &self.device));
        let lq = tensor_from_images(lq, &self.device);
        let c_lq = self.c_lq(lq.clone());
        // A target shows the degradation, which a robust encoder does not see.
        let z_lq = match self.robust {
            Some(_) => self.vae.latent_from_image(lq),
            None => c_lq.clone(),
        };
        [z_hq, z_lq, c_lq]
    }

    fn tensors(&self, latents: &Latents) -> [Tensor<4>; 3] {
        let Latents {
            shape,
            hq,
            lq,
            seen,
        } = latents;
        let [c, h, w] = *shape;
        [hq, lq, seen].map(|values| {
            let data = TensorData::new(values.clone(), [1, c, h, w]);
            Tensor::from_data(data, (&self.device, DType::F32))
        })
    }

    /// What the networks get, what they should say, and what each value's error is multiplied with.
    pub(super) fn feed(
        &self,
        batch: &[Sample],
        draws: &mut [ChaCha8Rng],
    ) -> Result<(Inputs, Tensor<4>, Tensor<4>), Error> {
        let [z_hq, z_lq, c_lq] = self.latents_of(batch)?;
        let b = batch.len();
        let column = |values: Vec<f64>| -> Tensor<4> {
            let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
            Tensor::from_data(
                TensorData::new(values, [b, 1, 1, 1]),
                (&self.device, DType::F32),
            )
        };
        let (mut data, mut noisy, mut times, mut to_lq, mut skip, mut carried, mut prompts) =
            (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
        for (sample, rng) in batch.iter().zip(draws.iter_mut()) {
            let level = self.levels.draw(rng);
            let lq_target = self.config.stage != Stage::Prior
                && rng.random::<f64>() < self.config.denoise.lq_target;
            let skipped = self.config.stage == Stage::Joint
                && rng.random::<f64>() < self.config.denoise.skip_adapter;
            data.push(level.data);
            noisy.push(level.noise);
            times.push(level.t as f32);
            carried.push(level.carried);
            to_lq.push(f64::from(u8::from(lq_target)));
            skip.push(if skipped { 0.0 } else { 1.0 });
            prompts.push(if lq_target {
                sample.descriptors.join(", ")
            } else {
                sample.caption.clone()
            });
        }
        let to_lq = column(to_lq);
        let z0 = z_hq.clone() + (z_lq - z_hq) * to_lq;
        let mut n = noise(z0.dims(), draws, &self.device);
        let counts = column(carried.iter().map(|&c: &f64| c.max(1.0).recip()).collect());
        if self.levels.starts_from_lq() {
            n = n + (c_lq.clone() - z0.clone()) * column(carried);
        }
        let (alpha, beta) = (column(data), column(noisy));
        let x = z0.clone() * alpha.clone() + n.clone() * beta.clone();
        let target = match self.scheduler.prediction() {
            Prediction::Flow => n - z0,
            Prediction::Epsilon => n,
            Prediction::VPrediction => n * alpha - z0 * beta,
        };
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let sizes: Vec<_> = batch.iter().map(|sample| self.time_ids(sample)).collect();
        let text = self.encoders.text(&prompts, &sizes)?;
        let scale = if self.config.stage == Stage::Joint {
            Scale::Each(column(skip))
        } else {
            Scale::All(1.0)
        };
        let t = Tensor::from_data(TensorData::new(times, [b]), (&self.device, DType::F32));
        Ok((
            Inputs {
                x,
                t,
                text,
                c_lq,
                scale,
            },
            target,
            counts,
        ))
    }

    /// What a prior that takes sizes is told about a sample.
    fn time_ids(&self, sample: &Sample) -> [f32; 6] {
        let crop = match sample.encoded {
            Encoded::Once(_) => [self.config.data.crop_px; 2],
            _ => [sample.hq.height, sample.hq.width],
        };
        match self.config.denoise.sizes {
            Sizes::Crop => uncropped(crop),
            Sizes::Photo => {
                let Place {
                    photo_px,
                    corner_px,
                } = sample.place;
                let [height, width] = photo_px;
                let [top, left] = corner_px;
                [height, width, top, left, crop[0], crop[1]].map(|px| px as f32)
            }
        }
    }

    pub(super) fn loss(
        &self,
        prediction: Tensor<4>,
        target: Tensor<4>,
        counts: Tensor<4>,
    ) -> Tensor<1> {
        let error = (prediction - target) * counts;
        let error = match &self.metric {
            Some(metric) => kernels::conv2d(error, metric.clone(), None, 1, Padding::same(0)),
            None => error,
        };
        error.square().mean()
    }
}

/// Host values of one sample's latents.
fn latents(encoded: &[Tensor<4>; 3]) -> Latents {
    let [_, c, h, w] = encoded[0].dims();
    let [hq, lq, seen] = encoded.each_ref().map(|tensor| {
        let data = tensor.to_data().convert::<f32>();
        data.try_into_vec().expect("converted to f32")
    });
    Latents {
        shape: [c, h, w],
        hq,
        lq,
        seen,
    }
}
