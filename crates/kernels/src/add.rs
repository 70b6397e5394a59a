//! Sums of feature maps and of tokens.

use burn::tensor::Tensor;

use crate::extension;

/// `x + y`, of the same shape.
///
/// # Panics
/// If the shapes differ.
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    assert_eq!(x.dims(), y.dims(), "add: the shapes");
    if extension::is_fast(&x) && extension::is_fast(&y) {
        return extension::add(x, y);
    }
    x + y
}

/// Adds `shift` `[b, c]` to every pixel of `x` `[b, c, h, w]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn shift_channels(x: Tensor<4>, shift: Tensor<2>) -> Tensor<4> {
    let [b, c, ..] = x.dims();
    assert_eq!(shift.dims(), [b, c], "shift_channels: images and channels");
    if extension::is_fast(&x) && extension::is_fast(&shift) {
        return extension::shift_channels(x, shift);
    }
    x + shift.unsqueeze_dims::<4>(&[2, 3])
}

/// `x + gate y` for `x` and `y` `[b, n, d]` and `gate` `[b, d]`, the same for an image's tokens (the gated residual of adaptive
/// norms; Peebles and Xie, 2212.09748).
///
/// # Panics
/// If the shapes do not fit.
pub fn add_gated(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    let [b, _, d] = x.dims();
    assert_eq!(x.dims(), y.dims(), "add_gated: the shapes");
    assert_eq!(gate.dims(), [b, d], "add_gated: images and width");
    if x.dims().iter().all(|size| *size > 0)
        && extension::is_fast(&x)
        && extension::is_fast(&gate)
        && extension::is_fast(&y)
    {
        return extension::add_gated(x, gate, y);
    }
    x + y * gate.unsqueeze_dim::<3>(1)
}
