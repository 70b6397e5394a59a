//! Group, layer and root-mean-square normalization layers.

use burn::tensor::Tensor;
use kernels::Activation;

use crate::{
    Error,
    weights::{Init, Weights},
};

/// Group normalization with weight and bias `[c]`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias` from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, groups: usize, channels: usize, eps: f64) -> Result<Self, Error> {
        assert!(
            channels.is_multiple_of(groups),
            "{groups} groups do not divide {channels} channels"
        );
        let weight = w.tensor("weight", [channels], Init::Ones)?;
        let bias = w.tensor("bias", [channels], Init::Zeros)?;
        Ok(Self {
            groups,
            weight,
            bias,
            eps,
        })
    }

    /// Channels it normalizes.
    pub(crate) fn channels(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Groups of channels.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// What is added to the variance.
    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }

    /// Weight and bias on the host.
    pub(crate) fn affine(&self) -> [Vec<f32>; 2] {
        [&self.weight, &self.bias].map(|tensor| {
            let data = tensor.to_data().convert::<f32>();
            data.try_into_vec().expect("converted to f32")
        })
    }

    /// Normalizes `x` `[b, c, h, w]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.apply(x, Activation::None)
    }

    /// Normalizes `x` `[b, c, h, w]` and applies SiLU in the same pass.
    pub fn silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.apply(x, Activation::Silu)
    }

    fn apply(&self, x: Tensor<4>, activation: Activation) -> Tensor<4> {
        kernels::group_norm(
            x,
            self.groups,
            self.weight.clone(),
            self.bias.clone(),
            self.eps,
            activation,
        )
    }
}

/// Layer normalization with weight and bias `[d]`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d: usize, eps: f64) -> Result<Self, Error> {
        let weight = w.tensor("weight", [d], Init::Ones)?;
        let bias = w.tensor("bias", [d], Init::Zeros)?;
        Ok(Self { weight, bias, eps })
    }

    /// Normalizes the last axis of `x` `[.., d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::layer_norm(
            x,
            Some(self.weight.clone()),
            Some(self.bias.clone()),
            self.eps,
        )
    }
}

/// Root-mean-square normalization with weight `[d]`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor<1>,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight` from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d: usize, eps: f64) -> Result<Self, Error> {
        let weight = w.tensor("weight", [d], Init::Ones)?;
        Ok(Self { weight, eps })
    }

    /// Normalizes the last axis of `x` `[.., d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::rms_norm(x, Some(self.weight.clone()), self.eps)
    }
}
