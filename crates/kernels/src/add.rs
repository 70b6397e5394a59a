//! Sums of feature maps.

use burn::tensor::Tensor;

use crate::extension;

/// `x + y`, of the same shape `[b, c, h, w]`.
///
/// # Panics
/// If the shapes differ.
pub fn add(x: Tensor<4>, y: Tensor<4>) -> Tensor<4> {
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
