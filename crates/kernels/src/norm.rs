//! Group, layer and root-mean-square normalization; statistics in f32 or better.

use burn::tensor::Tensor;

use crate::{
    extension,
    fast::{
        norm::NormShape,
        row_norm::{Centre, RowShape},
    },
    linear::like,
    silu,
};

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
    crate::refuse_empty("group_norm", &x.dims());
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
    let d = x.dims()[D - 1];
    let weight = weight.map(|weight| weight.reshape([1, d]));
    let bias = bias.map(|bias| bias.reshape([1, d]));
    rows(x, weight, bias, eps, Centre::Mean)
}

/// Layer normalization of `x` `[b, n, d]` without weights of its own, then `x (1 + scale) + shift` with `scale` and
/// `shift` `[b, d]` (the adaptive norm of transformers).
pub fn layer_norm_adaptive(
    x: Tensor<3>,
    scale: Tensor<2>,
    shift: Tensor<2>,
    eps: f64,
) -> Tensor<3> {
    rows(x, Some(scale + 1.0), Some(shift), eps, Centre::Mean)
}

/// Root-mean-square normalization of the last axis of `x` `[.., d]`, with `weight` `[d]` if given.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Option<Tensor<1>>, eps: f64) -> Tensor<D> {
    let d = x.dims()[D - 1];
    let weight = weight.map(|weight| weight.reshape([1, d]));
    rows(x, weight, None, eps, Centre::None)
}

/// A norm of rows; `weight` and `bias` `[g, d]` each belong to as many rows.
fn rows<const D: usize>(
    x: Tensor<D>,
    weight: Option<Tensor<2>>,
    bias: Option<Tensor<2>>,
    eps: f64,
    centre: Centre,
) -> Tensor<D> {
    let dims = x.dims();
    let d = dims[D - 1];
    let n = dims[..D - 1].iter().product::<usize>();
    let groups = [&weight, &bias].into_iter().flatten().map(|w| w.dims()[0]);
    let groups = groups.max().unwrap_or(1);
    crate::refuse_empty("row norm", &dims);
    if extension::is_fast(&x) {
        assert!(n.is_multiple_of(groups), "{n} rows in {groups} groups");
        let plain = (&x.device().without_autodiff(), x.dtype());
        let weight =
            weight.map_or_else(|| Tensor::ones([groups, d], plain), |w| like(w, x.dtype()));
        let bias = bias.map_or_else(|| Tensor::zeros([groups, d], plain), |b| like(b, x.dtype()));
        let shape = RowShape {
            group: n / groups,
            d,
            eps,
            centre,
        };
        return extension::row_norm(x, weight, bias, shape);
    }
    let x = x.reshape([groups, n / groups, d]);
    let centred = match centre {
        Centre::Mean => x.clone() - x.mean_dim(2),
        Centre::None => x,
    };
    let variance = centred.clone().square().mean_dim(2);
    let mut y = centred / (variance + eps).sqrt();
    if let Some(weight) = weight {
        y = y.clone() * like(weight, y.dtype()).unsqueeze_dim::<3>(1);
    }
    if let Some(bias) = bias {
        y = y.clone() + like(bias, y.dtype()).unsqueeze_dim::<3>(1);
    }
    y.reshape(dims)
}
