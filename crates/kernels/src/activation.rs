//! Pointwise activations.

use burn::tensor::{Tensor, activation};

use crate::{extension, fast::elementwise::Function};

/// `x * sigmoid(x)`. Any shape.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if extension::is_fast(&x) {
        return extension::pointwise(x, Function::Silu);
    }
    activation::silu(x)
}

/// Exact GELU, `x * Phi(x)` with the error function. Any shape.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if extension::is_fast(&x) {
        return extension::pointwise(x, Function::Gelu);
    }
    activation::gelu(x)
}

/// GELU by the hyperbolic tangent, `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`. Any shape.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if extension::is_fast(&x) {
        return extension::pointwise(x, Function::GeluTanh);
    }
    let slope = (x.clone().square() * 0.044_715 + 1.0) * (8.0 / std::f64::consts::PI).sqrt();
    x.clone() * activation::sigmoid(x * slope)
}

/// `x * sigmoid(1.702 x)`, CLIP-L's activation. Any shape.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if extension::is_fast(&x) {
        return extension::pointwise(x, Function::QuickGelu);
    }
    x.clone() * activation::sigmoid(x * 1.702)
}

/// `h * gelu(gate)` for `x` `[.., 2 d]` whose last axis holds `h` and then `gate`, giving `[.., d]`.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let d = x.dims()[D - 1] / 2;
    assert_eq!(x.dims()[D - 1], 2 * d, "geglu: an even last axis");
    if d > 0 && extension::is_fast(&x) {
        return extension::geglu(x);
    }
    let (h, gate) = (x.clone().narrow(D - 1, 0, d), x.narrow(D - 1, d, d));
    h * activation::gelu(gate)
}
