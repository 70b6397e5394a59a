//! Linear maps, `y = x WT + b`, with the weight in the file's `[out, in]` layout.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::{extension, fast::linear::LinearShape, products};

/// Maps the last axis of `x` `[.., d_in]` through `weight` `[d_out, d_in]` and adds `bias` `[d_out]`.
///
/// A weight in half precision stays as it is in memory. With a bfloat16 weight the input is rounded to bfloat16 as well
/// where the machine multiplies such values ([`Products`](crate::Products)); elsewhere the weight is widened where it is
/// used.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [out, d_in] = weight.dims();
    let dims = x.dims();
    assert_eq!(
        dims[D - 1],
        d_in,
        "linear: the input's last axis and the weight's"
    );
    crate::refuse_empty("linear", &dims);
    let rows = dims[..D - 1].iter().product::<usize>();
    if extension::is_fast(&x) && extension::is_weight(weight.dtype()) {
        let bias = bias.map(|bias| like(bias, x.dtype()));
        let shape = LinearShape {
            n: rows,
            d_in,
            d_out: out,
            products: products::of(weight.dtype()),
        };
        let mut dims = dims;
        dims[D - 1] = out;
        return extension::linear(x.reshape([rows, d_in]), weight, bias, shape).reshape(dims);
    }
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
