//! Linear maps, `y = x WT + b`, with the weight in the file's `[out, in]` layout.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::{
    Products,
    extension::{self, LowRankShape},
    fast::linear::LinearShape,
    products,
};

/// A low-rank update of a linear map's weight, `scale B A`.
///
/// Source: Hu et al., LoRA (2106.09685).
#[derive(Clone, Debug)]
pub struct LowRank {
    /// The narrow factor, `[rank, d_in]`.
    pub a: Tensor<2>,
    /// The wide factor, `[d_out, rank]`.
    pub b: Tensor<2>,
    /// The update is multiplied with it.
    pub scale: f64,
}

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

/// As [`linear`], with `weight + scale B A` in place of the weight, in one pass over the result where the types allow.
pub fn linear_low_rank<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    update: LowRank,
) -> Tensor<D> {
    let LowRank { a, b, scale } = update;
    let ([d_out, d_in], [rank, _]) = (weight.dims(), a.dims());
    assert_eq!(
        (a.dims(), b.dims()),
        ([rank, d_in], [d_out, rank]),
        "linear_low_rank: the factors of a weight {d_out}x{d_in}"
    );
    let dims = x.dims();
    let wide = products::of(weight.dtype());
    let as_one = extension::is_fast(&x)
        && [&weight, &a, &b]
            .iter()
            .all(|w| extension::is_weight(w.dtype()))
        && [&a, &b].iter().all(|w| wide == products::of(w.dtype()))
        && wide != Products::F16;
    if !as_one {
        let y = linear(x.clone(), weight, bias);
        // Scaled where it is narrow: a pass over the wide result costs more than both products.
        let mut low = linear(x, a, None);
        if scale != 1.0 {
            low = low * scale;
        }
        let (term, shape) = (linear(low, b, None), y.dims());
        let flat = [1, 1, 1, shape.iter().product()];
        return crate::add(y.reshape(flat), term.reshape(flat)).reshape(shape);
    }
    assert_eq!(dims[D - 1], d_in, "linear_low_rank: the input's last axis");
    crate::refuse_empty("linear_low_rank", &dims);
    let rows = dims[..D - 1].iter().product::<usize>();
    let bias = bias.map(|bias| like(bias, x.dtype()));
    let map = LinearShape {
        n: rows,
        d_in,
        d_out,
        products: wide,
    };
    let shape = LowRankShape {
        map,
        rank,
        scale: scale as f32,
    };
    let mut dims = dims;
    dims[D - 1] = d_out;
    extension::linear_low_rank(x.reshape([rows, d_in]), weight, bias, [a, b], shape).reshape(dims)
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
