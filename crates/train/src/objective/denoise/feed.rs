//! What a step feeds the networks, what they should say, and the loss of what they say.

use burn::tensor::{DType, Tensor, TensorData};
use kernels::Padding;
use priors::{scheduler::Prediction, text::uncropped};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use restore::adapter::Scale;

use super::{super::noise, Denoise};
use crate::{
    Error,
    config::{Sizes, Stage},
    data::{Encoded, Place, Sample},
    walk::Inputs,
};

impl Denoise {
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
