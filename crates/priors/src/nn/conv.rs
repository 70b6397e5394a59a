//! Convolution layer.

use burn::tensor::Tensor;
use kernels::Padding;

use crate::{
    Error,
    weights::{Init, Weights},
};

/// A square convolution with bias, `[b, c_in, h, w]` to `[b, c_out, h', w']`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// A `kernel` x `kernel` convolution of stride 1 that keeps the size.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, c_in: usize, c_out: usize, kernel: usize) -> Result<Self, Error> {
        Self::with(
            w,
            c_in,
            c_out,
            kernel,
            1,
            Padding::same(kernel / 2),
            Init::fan_in(c_in * kernel * kernel),
        )
    }

    /// A 3x3 convolution of stride 2 with this padding.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn down(w: &Weights, channels: usize, padding: Padding) -> Result<Self, Error> {
        Self::with(
            w,
            channels,
            channels,
            3,
            2,
            padding,
            Init::fan_in(channels * 9),
        )
    }

    /// Everything stated.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn with(
        w: &Weights,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
        init: Init,
    ) -> Result<Self, Error> {
        let weight = w.tensor("weight", [c_out, c_in, kernel, kernel], init)?;
        let bias = Some(w.tensor("bias", [c_out], init)?);
        Ok(Self {
            weight,
            bias,
            stride,
            padding,
        })
    }

    /// `[c_out, c_in, kernel, kernel]`.
    pub(crate) fn shape(&self) -> [usize; 4] {
        self.weight.dims()
    }

    /// Convolves `x`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        kernels::conv2d(
            x,
            self.weight.clone(),
            self.bias.clone(),
            self.stride,
            self.padding,
        )
    }
}
