//! What is trained and against what: one objective for each kind of stage.

mod block_code;
mod denoise;
mod encoder;
mod encoders;
mod fixed;
mod levels;
mod metric;
mod pieces;
mod prompts;
mod robust;
mod text_cache;
mod vae;

use std::{path::Path, sync::atomic::AtomicBool};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pixels::Image;
use priors::weights::{Values, Weights};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

pub use denoise::Denoise;
pub use encoder::Encoder;
pub(crate) use fixed::{folder_of, stored_dtype};
pub use metric::pixel_metric;
pub(crate) use robust::encoder_of;
pub use vae::Vae;

use crate::{
    Error,
    data::{LatentCache, Photos, Sample},
    optimise::{Named, add_to},
};

/// A loss and its gradients.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The loss.
    pub loss: f64,
    /// Gradients by name, of the loss times the scale that was asked for.
    pub gradients: Named,
}

impl Evaluation {
    /// A loss and the gradients of `weights` by its tape, times `scale`.
    pub(crate) fn by_tape(loss: Tensor<1>, scale: f32, weights: &Weights) -> Self {
        let mut tape = (loss.clone() * scale).backward();
        Self {
            loss: f64::from(loss.into_scalar::<f32>()),
            gradients: weights.gradients(&mut tape),
        }
    }

    /// Multiplies loss and gradients with `part`.
    pub(crate) fn scale(&mut self, part: f64) {
        self.loss *= part;
        let factor = part as f32;
        self.gradients
            .values_mut()
            .for_each(|g| g.par_iter_mut().for_each(|g| *g *= factor));
    }

    /// Adds another of the same tensors.
    pub(crate) fn add(&mut self, other: Self) {
        self.loss += other.loss;
        add_to(&mut self.gradients, other.gradients);
    }
}

/// What is said before the first step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// How far the preparation is.
    Progress(String),
    /// Something to know about the run.
    Note(String),
}

/// Something to train.
pub trait Objective: Sync {
    /// Makes what is made once before the first step, until `stop`.
    ///
    /// # Errors
    /// As the objective says.
    fn prepare(
        &self,
        _photos: &Photos,
        _stop: &AtomicBool,
        _say: &mut dyn FnMut(Said),
    ) -> Result<(), Error> {
        Ok(())
    }

    /// What [`Objective::prepare`] makes on disk, bytes, in all; a rehearsal knows it.
    fn disk_bytes(&self, _photos: &Photos) -> u64 {
        0
    }

    /// Where latents are kept that are read once, and what they take there, bytes, in all; `data` is of the photographs.
    ///
    /// # Errors
    /// Files of the model that cannot be read.
    fn latents(&self, _data: &str) -> Result<Option<(LatentCache, u64)>, Error> {
        Ok(None)
    }

    /// The trained tensors as they start.
    ///
    /// # Errors
    /// Missing or unusable files of the model.
    fn initial(&self) -> Result<Values, Error>;

    /// Loss and gradients of samples, means over them; `draws` gives each sample's noise, in their order.
    /// The gradients are those of the loss times `scale`.
    ///
    /// # Errors
    /// Values that do not fit the networks.
    fn evaluate(
        &self,
        values: &Values,
        batch: &[Sample],
        draws: &mut [ChaCha8Rng],
        scale: f32,
    ) -> Result<Evaluation, Error>;

    /// What the networks do to a validation pair: pictures for a row of the grid, the last one being
    /// the result that is scored against the clean one.
    ///
    /// # Errors
    /// Values that do not fit the networks.
    fn show(
        &self,
        values: &Values,
        sample: &Sample,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Image>, Error>;

    /// Writes the trained networks in their layout into `prior/` and `adapter/` of `folder`; `samples` are
    /// training samples to measure what belongs into a configuration.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    fn save(&self, values: &Values, samples: &[Sample], folder: &Path) -> Result<(), Error>;
}

/// Pictures of one size as a tensor `[b, 3, h, w]` in `[-1, 1]`.
pub fn tensor_from_images(images: &[&Image], device: &Device) -> Tensor<4> {
    let (w, h) = (images[0].width, images[0].height);
    let values: Vec<f32> = images
        .iter()
        .flat_map(|image| image.rgb.iter().map(|v| 2.0 * v - 1.0))
        .collect();
    Tensor::from_data(
        TensorData::new(values, [images.len(), 3, h, w]),
        (device, DType::F32),
    )
}

/// The first picture of a tensor `[b, 3, h, w]` in `[-1, 1]`.
pub fn image_from_tensor(tensor: Tensor<4>) -> Image {
    let [_, _, h, w] = tensor.dims();
    let values = tensor
        .narrow(0, 0, 1)
        .into_data()
        .try_into_vec::<f32>()
        .expect("f32 pictures");
    Image::new(
        w,
        h,
        values
            .into_iter()
            .map(|v| (0.5 * v + 0.5).clamp(0.0, 1.0))
            .collect(),
    )
}

/// Standard normal noise of this shape, each sample's from its own generator.
pub(crate) fn noise<const D: usize>(
    shape: [usize; D],
    draws: &mut [ChaCha8Rng],
    device: &Device,
) -> Tensor<D> {
    use rand::RngExt;
    assert_eq!(shape[0], draws.len(), "a generator for each sample");
    let n: usize = shape[1..].iter().product();
    let of = |rng: &mut ChaCha8Rng| -> Vec<f32> {
        (0..n)
            .map(|_| rng.sample(rand_distr::StandardNormal))
            .collect()
    };
    let values: Vec<f32> = draws.iter_mut().flat_map(of).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// The tensors below `prefix`, without it.
pub(crate) fn below(values: &Values, prefix: &str) -> Values {
    let strip = |(name, data): (&String, &TensorData)| {
        let name = name.strip_prefix(prefix)?.strip_prefix('.')?;
        Some((name.to_owned(), data.clone()))
    };
    values.iter().filter_map(strip).collect()
}
