//! The operations on burn's tensors, and which tensors take the fast path.

use burn::{
    backend::{Dispatch, DispatchDevice},
    tensor::{DType, Tensor},
};

use super::{KernelOps, LowRankShape};
use crate::{
    fast::{
        add::GatedShape, attention::AttentionShape, conv::ConvShape, elementwise::Function,
        enlarge::EnlargeShape, isa, linear::LinearShape, norm::NormShape, row_norm::RowShape,
    },
    plain,
};

/// Whether `x` takes the fast path: f32 on `flex`, and the environment does not forbid it.
pub(crate) fn is_fast<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
        && isa::enabled()
        && !plain::asked_for()
        && matches!(
            x.device().as_dispatch().clone().inner(),
            DispatchDevice::Flex(_)
        )
}

/// Whether a weight may stay in `dtype`.
pub(crate) fn is_weight(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// `bias`, or zeros without autodiff where there is none.
fn bias_or_zeros<const D: usize>(
    bias: Option<Tensor<1>>,
    x: &Tensor<D>,
    count: usize,
) -> Tensor<1> {
    bias.unwrap_or_else(|| Tensor::zeros([count], (&x.device().without_autodiff(), DType::F32)))
}

/// [`KernelOps::kernel_conv2d`] on tensors.
pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    shape: ConvShape,
) -> Tensor<4> {
    let bias = bias_or_zeros(bias, &x, shape.output[0]).into_dispatch();
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_conv2d(x, weight, bias, shape))
}

/// [`KernelOps::kernel_linear`] on tensors; `x` `[n, d_in]`.
pub(crate) fn linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    shape: LinearShape,
) -> Tensor<2> {
    let bias = bias_or_zeros(bias, &x, shape.d_out).into_dispatch();
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_linear(x, weight, bias, shape))
}

/// [`KernelOps::kernel_linear_low_rank`] on tensors; `x` `[n, d_in]`, `a` `[rank, d_in]`, `b` `[d_out, rank]`.
pub(crate) fn linear_low_rank(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    [a, b]: [Tensor<2>; 2],
    shape: LowRankShape,
) -> Tensor<2> {
    let bias = bias_or_zeros(bias, &x, shape.map.d_out).into_dispatch();
    let [x, weight, a, b] = [x, weight, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::kernel_linear_low_rank(
        x, weight, bias, a, b, shape,
    ))
}

/// [`KernelOps::kernel_attention`] on tensors.
pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    shape: AttentionShape,
) -> Tensor<3> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_attention(q, k, v, shape))
}

/// [`KernelOps::kernel_attention_biased`] on tensors.
pub(crate) fn attention_biased(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    bias: Tensor<4>,
    shape: AttentionShape,
) -> Tensor<3> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let bias = bias.into_dispatch();
    Tensor::from_dispatch(Dispatch::kernel_attention_biased(q, k, v, bias, shape))
}

/// [`KernelOps::kernel_group_norm`] on tensors.
pub(crate) fn group_norm(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    shape: NormShape,
) -> Tensor<4> {
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_group_norm(
        x.into_dispatch(),
        weight,
        bias,
        shape,
    ))
}

/// [`KernelOps::kernel_row_norm`] on tensors; `weight` and `bias` `[groups, d]`.
pub(crate) fn row_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Tensor<2>,
    shape: RowShape,
) -> Tensor<D> {
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_row_norm(
        x.into_dispatch(),
        weight,
        bias,
        shape,
    ))
}

/// [`KernelOps::kernel_pointwise`] on tensors.
pub(crate) fn pointwise<const D: usize>(x: Tensor<D>, function: Function) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_pointwise(x.into_dispatch(), function))
}

/// [`KernelOps::kernel_geglu`] on tensors.
pub(crate) fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_geglu(x.into_dispatch()))
}

/// [`KernelOps::kernel_contiguous`] on tensors.
pub(crate) fn contiguous<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_contiguous(x.into_dispatch()))
}

/// [`KernelOps::kernel_cat`] on tensors.
pub(crate) fn cat<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_cat(x.into_dispatch(), y.into_dispatch()))
}

/// [`KernelOps::kernel_add`] on tensors.
pub(crate) fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_add(x.into_dispatch(), y.into_dispatch()))
}

/// [`KernelOps::kernel_add_gated`] on tensors, none of them empty.
pub(crate) fn add_gated(x: Tensor<3>, gate: Tensor<2>, y: Tensor<3>) -> Tensor<3> {
    let [_, n, d] = x.dims();
    let (x, gate, y) = (x.into_dispatch(), gate.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_add_gated(x, gate, y, GatedShape { n, d }))
}

/// [`KernelOps::kernel_shift`] on tensors.
pub(crate) fn shift_channels(x: Tensor<4>, shift: Tensor<2>) -> Tensor<4> {
    let (x, shift) = (x.into_dispatch(), shift.into_dispatch());
    Tensor::from_dispatch(Dispatch::kernel_shift(x, shift))
}

/// [`KernelOps::kernel_enlarge`] on tensors, giving `[planes, rows, columns]`.
pub(crate) fn enlarge(x: Tensor<4>, shape: EnlargeShape) -> Tensor<3> {
    let x = x.reshape([shape.planes, shape.input[0], shape.input[1]]);
    Tensor::from_dispatch(Dispatch::kernel_enlarge(x.into_dispatch(), shape))
}
