//! Group and layer normalization; statistics in f32.

use burn::tensor::Tensor;

use crate::{extension, fast::norm::NormShape, linear::like, silu};

/// What follows a norm in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// SiLU.
    Silu,
}

/// Group normalization of `x` `[b, c, h, w]` with `weight` and `bias` `[c]`, then `activation`.
///
/// Biased variance over each group's `c / groups * h * w` values, as in PyTorch.
pub fn group_norm(
    x: Tensor<4>,
    groups: usize,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    if extension::is_fast(&x) {
        assert!(
            c.is_multiple_of(groups),
            "group_norm: {c} channels in {groups} groups"
        );
        let shape = NormShape {
            batch: b,
            channels: c,
            groups,
            plane: h * w,
            eps,
            activation,
        };
        let (weight, bias) = (like(weight, x.dtype()), like(bias, x.dtype()));
        return extension::group_norm(x, weight, bias, shape);
    }
    group_norm_plain(x, groups, weight, bias, eps, activation)
}

/// [`group_norm`] by burn's own operations.
fn group_norm_plain(
    x: Tensor<4>,
    groups: usize,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let rows = x.reshape([b * groups, c / groups * h * w]);
    let centred = rows.clone() - rows.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    let normal = (centred / (variance + eps).sqrt()).reshape([b, c, h, w]);
    let weight = like(weight, normal.dtype()).reshape([1, c, 1, 1]);
    let bias = like(bias, normal.dtype()).reshape([1, c, 1, 1]);
    let y = normal * weight + bias;
    match activation {
        Activation::None => y,
        Activation::Silu => silu(y),
    }
}

/// Layer normalization of the last axis of `x` `[.., d]`, with `weight` and `bias` `[d]` if given.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    let centred = x.clone() - x.mean_dim(D - 1);
    let variance = centred.clone().square().mean_dim(D - 1);
    let mut y = centred / (variance + eps).sqrt();
    if let Some(weight) = weight {
        y = y.clone() * like(weight, y.dtype()).unsqueeze::<D>();
    }
    if let Some(bias) = bias {
        y = y.clone() + like(bias, y.dtype()).unsqueeze::<D>();
    }
    y
}
