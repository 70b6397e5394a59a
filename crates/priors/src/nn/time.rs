//! Sinusoidal features of a timestep and their embedding.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Bias, Linear};
use crate::{Error, weights::Weights};

/// `[cos(t f_j), sin(t f_j)]` with `f_j = 10000^(-j / (d/2))`, for `t` `[b]`, giving `[b, d]`.
///
/// diffusers' `get_timestep_embedding` with `flip_sin_to_cos` and `freq_shift` 0.
pub fn sinusoid(t: Tensor<1>, d: usize) -> Tensor<2> {
    let half = d / 2;
    let frequency = |j: usize| (-(10_000_f64.ln()) * j as f64 / half as f64).exp() as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = Tensor::<2>::from_data(
        TensorData::new(frequencies, [1, half]),
        (&t.device(), DType::F32),
    );
    let angles = t.unsqueeze_dim::<2>(1) * frequencies; // [b, d/2]
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

/// Linear, SiLU, Linear.
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `d_in` features to `d_out`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d_in: usize, d_out: usize) -> Result<Self, Error> {
        let linear_1 = Linear::new(&w.at("linear_1"), d_in, d_out, Bias::With)?;
        let linear_2 = Linear::new(&w.at("linear_2"), d_out, d_out, Bias::With)?;
        Ok(Self { linear_1, linear_2 })
    }

    /// Embeds `x` `[b, d_in]` as `[b, d_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2
            .forward(kernels::silu(self.linear_1.forward(x)))
    }
}
