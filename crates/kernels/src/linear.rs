//! Linear maps, `y = x WT + b`, with the weight in the file's `[out, in]` layout.

use burn::tensor::{DType, FloatDType, Tensor};

/// Maps the last axis of `x` `[.., d_in]` through `weight` `[d_out, d_in]` and adds `bias` `[d_out]`.
///
/// A weight in half precision is widened to the input's type.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [out, _] = weight.dims();
    let dims = x.dims();
    let rows = dims[..D - 1].iter().product::<usize>();
    let weight = like(weight, x.dtype());
    let mut y = x.reshape([rows, dims[D - 1]]).matmul(weight.transpose());
    if let Some(bias) = bias {
        let bias = like(bias, y.dtype());
        y = y + bias.unsqueeze::<2>();
    }
    let mut shape = dims;
    shape[D - 1] = out;
    y.reshape(shape)
}

/// `tensor` in `dtype`, unchanged when it already is.
pub(crate) fn like<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype {
        return tensor;
    }
    match dtype {
        DType::F64 => tensor.cast(FloatDType::F64),
        DType::F16 => tensor.cast(FloatDType::F16),
        DType::BF16 => tensor.cast(FloatDType::BF16),
        _ => tensor.cast(FloatDType::F32),
    }
}
