//! Pointwise activations.

use burn::tensor::{Tensor, activation};

use crate::extension;

/// `x * sigmoid(x)`. Any shape.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if extension::is_fast(&x) {
        extension::silu(x)
    } else {
        activation::silu(x)
    }
}

/// Exact GELU, `x * Phi(x)` with the error function. Any shape.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu(x)
}

/// `x * sigmoid(1.702 x)`, CLIP-L's activation. Any shape.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}
