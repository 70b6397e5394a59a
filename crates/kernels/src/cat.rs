//! One tensor after another.

use burn::tensor::Tensor;

use crate::extension;

/// `x` `[b, c, ..]` and `y` `[b, e, ..]` as `[b, c + e, ..]`: channels of a feature map, or tokens.
///
/// # Panics
/// If they differ in another axis.
pub fn cat<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    for (axis, (x, y)) in x.dims().into_iter().zip(y.dims()).enumerate() {
        assert!(axis == 1 || x == y, "cat: {x} and {y} along axis {axis}");
    }
    if extension::is_fast(&x) && extension::is_fast(&y) {
        return extension::cat(x, y);
    }
    Tensor::cat(vec![x, y], 1)
}
