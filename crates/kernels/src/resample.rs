//! Nearest-neighbour enlargement.

use burn::tensor::Tensor;

use crate::{extension, fast::enlarge::EnlargeShape};

/// Repeats each row of `x` `[b, c, h, w]` `rows` times and each column `cols` times, giving `[b, c, rows h, cols w]`.
pub fn upsample_nearest(x: Tensor<4>, [rows, cols]: [usize; 2]) -> Tensor<4> {
    if [rows, cols] == [1, 1] {
        return x;
    }
    let [b, c, h, w] = x.dims();
    if extension::is_fast(&x) && rows * cols > 0 {
        let shape = EnlargeShape {
            planes: b * c,
            input: [h, w],
            factors: [rows, cols],
        };
        return extension::enlarge(x, shape).reshape([b, c, rows * h, cols * w]);
    }
    x.reshape([b * c, h, 1, w, 1])
        .expand([b * c, h, rows, w, cols])
        .reshape([b, c, rows * h, cols * w])
}

/// [`upsample_nearest`] to twice the rows and columns.
pub fn upsample_nearest2x(x: Tensor<4>) -> Tensor<4> {
    upsample_nearest(x, [2, 2])
}
