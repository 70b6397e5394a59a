//! What is trained and against what: one objective for each kind of stage.

mod block_code;
mod denoise;
mod encoder;
mod encoders;
mod levels;
mod metric;
mod vae;

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pixels::Image;
use priors::weights::Values;
use rand_chacha::ChaCha8Rng;

pub use denoise::Denoise;
pub use encoder::Encoder;
pub use metric::pixel_metric;
pub use vae::Vae;

use crate::{Error, data::Sample, optimise::Named};

/// A loss and its gradients.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The loss.
    pub loss: f64,
    /// Gradients by name.
    pub gradients: Named,
}

/// Something to train.
pub trait Objective {
    /// The trained tensors as they start.
    ///
    /// # Errors
    /// Missing or unusable files of the model.
    fn initial(&self) -> Result<Values, Error>;

    /// Loss and gradients of a batch; `rng` gives all noise.
    ///
    /// # Errors
    /// Values that do not fit the networks.
    fn evaluate(
        &self,
        values: &Values,
        batch: &[Sample],
        rng: &mut ChaCha8Rng,
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

/// Standard normal noise of this shape.
pub(crate) fn noise<const D: usize>(
    shape: [usize; D],
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> Tensor<D> {
    use rand::RngExt;
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n)
        .map(|_| rng.sample(rand_distr::StandardNormal))
        .collect();
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
