//! Our operations as a burn extension: the fast paths on `flex`, with handwritten gradients.
//!
//! A tensor without autodiff is a constant. What a gradient does not need is not kept: a convolution or a linear map
//! with a frozen weight keeps no input. A file for each operation holds what it keeps and its backward.

mod add;
mod attention;
mod cat;
mod contiguous;
mod conv;
mod enlarge;
mod linear;
mod low_rank;
mod narrow;
mod norm;
mod pointwise;
mod tape;
mod tensors;

use burn::{
    backend::{
        Autodiff, Backend, Flex, autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension, flex::FlexTensor, ops::FloatTensorOps, tensor::FloatTensor,
    },
    tensor::{DType, FloatDType, TensorData, bf16, f16},
};

use crate::fast::{
    add::GatedShape, attention::AttentionShape, conv::ConvShape, elementwise::Function,
    enlarge::EnlargeShape, linear::LinearShape, norm::NormShape, row_norm::RowShape,
    shared::gather, stored::Stored,
};

pub(crate) use low_rank::LowRankShape;
pub(crate) use tensors::{
    add, add_gated, attention, attention_biased, cat, contiguous, conv2d, enlarge, geglu,
    group_norm, is_fast, is_weight, linear, linear_low_rank, pointwise, row_norm, shift_channels,
};

/// The operations with a fast path.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait KernelOps: Backend {
    /// Convolution with a bias.
    fn kernel_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;
    /// Linear map of rows, with a bias.
    fn kernel_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: LinearShape,
    ) -> FloatTensor<Self>;
    /// Linear map of rows, with a bias and a low-rank update.
    fn kernel_linear_low_rank(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: LowRankShape,
    ) -> FloatTensor<Self>;
    /// Attention.
    fn kernel_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
    /// Attention with a constant added to the logits.
    fn kernel_attention_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
    /// Group normalization and its activation.
    fn kernel_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: NormShape,
    ) -> FloatTensor<Self>;
    /// Normalization of rows.
    fn kernel_row_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: RowShape,
    ) -> FloatTensor<Self>;
    /// A function of each value.
    fn kernel_pointwise(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self>;
    /// `h gelu(gate)` of rows `[h, gate]`.
    fn kernel_geglu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The values in order, one after the other.
    fn kernel_contiguous(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// One tensor after another along the second axis.
    fn kernel_cat(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sum of two tensors of one shape.
    fn kernel_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sum with tokens that a gate lets through.
    fn kernel_add_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
        shape: GatedShape,
    ) -> FloatTensor<Self>;
    /// Sum with a value for each channel.
    fn kernel_shift(x: FloatTensor<Self>, shift: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Enlargement of planes by repetition.
    fn kernel_enlarge(x: FloatTensor<Self>, shape: EnlargeShape) -> FloatTensor<Self>;
}

/// `tensor` with its values in order and one after the other.
fn packed(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    if layout.contiguous_offsets().is_some() {
        return tensor;
    }
    let blocks = layout.strided_blocks();
    if tensor.dtype() != DType::F32 || blocks.block_len() < BLOCK {
        return tensor.to_contiguous();
    }
    // Heads of attention: burn's copy has one thread.
    let starts: Vec<usize> = blocks.block_starts().collect();
    like(
        gather(tensor.storage(), &starts, blocks.block_len()),
        &tensor,
    )
}

/// Values from which a row of a tensor that is not packed is copied whole.
const BLOCK: usize = 8;

/// The values of a packed f32 tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a packed f32 tensor")
}

/// The values of a packed f32 tensor that is all of its memory and its only owner.
fn own(tensor: &mut FlexTensor) -> Option<&mut [f32]> {
    let count = tensor.layout().num_elements();
    let values = tensor.try_storage_mut::<f32>()?;
    (values.len() == count).then_some(values)
}

/// The values of a packed weight.
fn stored(tensor: &FlexTensor) -> Stored<'_> {
    match tensor.dtype() {
        DType::BF16 => Stored::Bf16(tensor.as_slice::<bf16>().expect("a packed weight")),
        DType::F16 => Stored::F16(tensor.as_slice::<f16>().expect("a packed weight")),
        _ => Stored::F32(floats(tensor)),
    }
}

/// A tensor of `values`.
fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A tensor of `values` in the shape of another.
fn like(values: Vec<f32>, other: &FlexTensor) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, other.layout().shape().clone()))
}

/// A gradient in the type of the weight it belongs to.
fn in_dtype(gradient: FlexTensor, dtype: DType) -> FlexTensor {
    match dtype {
        DType::BF16 => Flex::float_cast(gradient, FloatDType::BF16),
        DType::F16 => Flex::float_cast(gradient, FloatDType::F16),
        _ => gradient,
    }
}

impl KernelOps for Flex {
    fn kernel_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: ConvShape,
    ) -> FlexTensor {
        conv::run(&packed(x), &packed(weight), &packed(bias), &shape)
    }

    fn kernel_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: LinearShape,
    ) -> FlexTensor {
        linear::run(&packed(x), &packed(weight), &packed(bias), &shape)
    }

    fn kernel_linear_low_rank(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        shape: LowRankShape,
    ) -> FlexTensor {
        let [x, weight, bias, a, b] = [x, weight, bias, a, b].map(packed);
        low_rank::run(&x, [&weight, &bias], [&a, &b], &shape).0
    }

    fn kernel_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        shape: AttentionShape,
    ) -> FlexTensor {
        attention::run(&packed(q), &packed(k), &packed(v), None, &shape).0
    }

    fn kernel_attention_biased(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        bias: FlexTensor,
        shape: AttentionShape,
    ) -> FlexTensor {
        let bias = packed(bias);
        attention::run(&packed(q), &packed(k), &packed(v), Some(&bias), &shape).0
    }

    fn kernel_group_norm(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: NormShape,
    ) -> FlexTensor {
        norm::run_groups(&packed(x), &packed(weight), &packed(bias), &shape).0
    }

    fn kernel_row_norm(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: RowShape,
    ) -> FlexTensor {
        norm::run_rows(&packed(x), &packed(weight), &packed(bias), &shape).0
    }

    fn kernel_pointwise(x: FlexTensor, function: Function) -> FlexTensor {
        pointwise::run_in_place(packed(x), function)
    }

    fn kernel_geglu(x: FlexTensor) -> FlexTensor {
        pointwise::run_geglu(&packed(x))
    }

    fn kernel_contiguous(x: FlexTensor) -> FlexTensor {
        packed(x)
    }

    fn kernel_cat(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        cat::run(&packed(x), &packed(y))
    }

    fn kernel_add(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        add::run(packed(x), packed(y))
    }

    fn kernel_add_gated(
        x: FlexTensor,
        gate: FlexTensor,
        y: FlexTensor,
        shape: GatedShape,
    ) -> FlexTensor {
        add::run_gated(packed(x), &packed(gate), &packed(y), &shape)
    }

    fn kernel_shift(x: FlexTensor, shift: FlexTensor) -> FlexTensor {
        add::run_shift(&packed(x), &packed(shift))
    }

    fn kernel_enlarge(x: FlexTensor, shape: EnlargeShape) -> FlexTensor {
        enlarge::run(&packed(x), &shape)
    }
}

impl<C: CheckpointStrategy> KernelOps for Autodiff<Flex, C> {
    fn kernel_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        conv::taped::<C>(x, weight, bias, shape)
    }

    fn kernel_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: LinearShape,
    ) -> FloatTensor<Self> {
        linear::taped::<C>(x, weight, bias, shape)
    }

    fn kernel_linear_low_rank(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        shape: LowRankShape,
    ) -> FloatTensor<Self> {
        low_rank::taped::<C>(x, [weight, bias], [a, b], shape)
    }

    fn kernel_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        attention::taped::<C>(q, k, v, None, shape)
    }

    fn kernel_attention_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        attention::taped::<C>(q, k, v, Some(bias), shape)
    }

    fn kernel_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: NormShape,
    ) -> FloatTensor<Self> {
        norm::taped_groups::<C>(x, weight, bias, shape)
    }

    fn kernel_row_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: RowShape,
    ) -> FloatTensor<Self> {
        norm::taped_rows::<C>(x, weight, bias, shape)
    }

    fn kernel_pointwise(x: FloatTensor<Self>, function: Function) -> FloatTensor<Self> {
        pointwise::taped::<C>(x, function)
    }

    fn kernel_geglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::taped_geglu::<C>(x)
    }

    fn kernel_contiguous(x: FloatTensor<Self>) -> FloatTensor<Self> {
        contiguous::taped::<C>(x)
    }

    fn kernel_cat(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        cat::taped::<C>(x, y)
    }

    fn kernel_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        add::taped::<C>(x, y)
    }

    fn kernel_add_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        y: FloatTensor<Self>,
        shape: GatedShape,
    ) -> FloatTensor<Self> {
        add::taped_gated::<C>(x, gate, y, shape)
    }

    fn kernel_shift(x: FloatTensor<Self>, shift: FloatTensor<Self>) -> FloatTensor<Self> {
        add::taped_shift::<C>(x, shift)
    }

    fn kernel_enlarge(x: FloatTensor<Self>, shape: EnlargeShape) -> FloatTensor<Self> {
        enlarge::taped::<C>(x, shape)
    }
}
