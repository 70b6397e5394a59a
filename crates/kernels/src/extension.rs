//! Our operations as a burn extension: the fast paths on `flex`, with handwritten gradients.
//!
//! A tensor without autodiff is a constant. What a gradient does not need is not kept: a convolution with
//! a frozen weight keeps no input.

use std::sync::Arc;

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, DispatchDevice, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        flex::FlexTensor,
        ops::FloatTensorOps,
        tensor::FloatTensor,
    },
    tensor::{DType, FloatDType, Tensor, TensorData, bf16, f16},
};

use crate::fast::{
    conv::{self, ConvShape, Weight},
    elementwise,
    isa::{self, Isa},
    norm::{self, Moments, NormShape},
};

/// The operations with a fast path.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait KernelOps: Backend {
    /// Convolution without a bias.
    fn kernel_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;
    /// Convolution with a bias.
    fn kernel_conv2d_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;
    /// Group normalization and its activation.
    fn kernel_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: NormShape,
    ) -> FloatTensor<Self>;
    /// SiLU.
    fn kernel_silu(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Whether `x` takes the fast path: f32 on `flex`, and the environment does not forbid it.
pub(crate) fn is_fast<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
        && isa::enabled()
        && matches!(
            x.device().as_dispatch().clone().inner(),
            DispatchDevice::Flex(_)
        )
}

/// Whether a convolution's weight may stay in `dtype`.
pub(crate) fn is_weight(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// [`KernelOps::kernel_conv2d`] on tensors.
pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    shape: ConvShape,
) -> Tensor<4> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::kernel_conv2d_bias(x, weight, bias.into_dispatch(), shape),
        None => Dispatch::kernel_conv2d(x, weight, shape),
    })
}

/// [`KernelOps::kernel_group_norm`] on tensors.
pub(crate) fn group_norm(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    shape: NormShape,
) -> Tensor<4> {
    let (x, weight, bias) = (
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
    );
    Tensor::from_dispatch(Dispatch::kernel_group_norm(x, weight, bias, shape))
}

/// [`KernelOps::kernel_silu`] on tensors.
pub(crate) fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::kernel_silu(x.into_dispatch()))
}

/// `tensor` with its values in order and one after the other.
fn packed(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The values of a packed f32 tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a packed f32 tensor")
}

/// The values of a packed weight.
fn weight_values(tensor: &FlexTensor) -> Weight<'_> {
    match tensor.dtype() {
        DType::BF16 => Weight::Bf16(tensor.as_slice::<bf16>().expect("a packed weight")),
        DType::F16 => Weight::F16(tensor.as_slice::<f16>().expect("a packed weight")),
        _ => Weight::F32(floats(tensor)),
    }
}

/// A tensor of `values`.
fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn run_conv(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<FlexTensor>,
    shape: &ConvShape,
) -> FlexTensor {
    let bias = bias.map(packed);
    let bias = bias.as_ref().map(floats);
    let y = conv::forward(
        Isa::current(),
        shape,
        floats(x),
        weight_values(weight),
        bias,
    );
    let [c, h, w] = shape.output;
    tensor(y, [shape.batch, c, h, w])
}

fn run_norm(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &NormShape,
) -> (FlexTensor, Vec<Moments>) {
    let (y, moments) = norm::forward(
        Isa::current(),
        shape,
        floats(x),
        floats(weight),
        floats(bias),
    );
    (
        FlexTensor::from_data(TensorData::new(y, x.layout().shape().clone())),
        moments,
    )
}

impl KernelOps for Flex {
    fn kernel_conv2d(x: FlexTensor, weight: FlexTensor, shape: ConvShape) -> FlexTensor {
        run_conv(&packed(x), &packed(weight), None, &shape)
    }

    fn kernel_conv2d_bias(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: ConvShape,
    ) -> FlexTensor {
        run_conv(&packed(x), &packed(weight), Some(bias), &shape)
    }

    fn kernel_group_norm(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: NormShape,
    ) -> FlexTensor {
        run_norm(&packed(x), &packed(weight), &packed(bias), &shape).0
    }

    fn kernel_silu(x: FlexTensor) -> FlexTensor {
        let x = packed(x);
        let y = elementwise::silu(Isa::current(), floats(&x));
        FlexTensor::from_data(TensorData::new(y, x.layout().shape().clone()))
    }
}

/// What a convolution's gradients need: the input for the weight's, the weight for the input's.
#[derive(Clone, Debug)]
struct ConvState {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
    weight_dtype: DType,
    shape: ConvShape,
}

impl ConvState {
    fn new(x: (&FlexTensor, bool), weight: (&FlexTensor, bool), shape: ConvShape) -> Self {
        Self {
            x: weight.1.then(|| x.0.clone()),
            weight: x.1.then(|| weight.0.clone()),
            weight_dtype: weight.0.dtype(),
            shape,
        }
    }

    fn input_grad(&self, dy: &FlexTensor) -> FlexTensor {
        let weight = self.weight.as_ref().expect("kept for a tracked input");
        let dx = conv::input_grad(
            Isa::current(),
            &self.shape,
            floats(dy),
            weight_values(weight),
        );
        let [c, h, w] = self.shape.input;
        tensor(dx, [self.shape.batch, c, h, w])
    }

    fn weight_grad(&self, dy: &FlexTensor) -> FlexTensor {
        let x = self.x.as_ref().expect("kept for a tracked weight");
        let dw = conv::weight_grad(Isa::current(), &self.shape, floats(x), floats(dy));
        let ([out, ..], [c, ..], [kh, kw]) =
            (self.shape.output, self.shape.input, self.shape.kernel);
        let dw = tensor(dw, [out, c, kh, kw]);
        match self.weight_dtype {
            DType::BF16 => Flex::float_cast(dw, FloatDType::BF16),
            DType::F16 => Flex::float_cast(dw, FloatDType::F16),
            _ => dw,
        }
    }
}

#[derive(Debug)]
struct ConvBackward;

impl Backward<Flex, 2> for ConvBackward {
    type State = ConvState;

    fn backward(self, ops: Ops<ConvState, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(x) = x {
            grads.register::<Flex>(x.id, ops.state.input_grad(&dy));
        }
        if let Some(weight) = weight {
            grads.register::<Flex>(weight.id, ops.state.weight_grad(&dy));
        }
    }
}

#[derive(Debug)]
struct ConvBiasBackward;

impl Backward<Flex, 3> for ConvBiasBackward {
    type State = ConvState;

    fn backward(self, ops: Ops<ConvState, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight, bias] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(x) = x {
            grads.register::<Flex>(x.id, ops.state.input_grad(&dy));
        }
        if let Some(weight) = weight {
            grads.register::<Flex>(weight.id, ops.state.weight_grad(&dy));
        }
        if let Some(bias) = bias {
            let shape = &ops.state.shape;
            let db = conv::bias_grad(Isa::current(), shape, floats(&dy));
            grads.register::<Flex>(bias.id, tensor(db, [shape.output[0]]));
        }
    }
}

/// What a group norm's gradients need.
#[derive(Clone, Debug)]
struct NormState {
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    moments: Arc<Vec<Moments>>,
    shape: NormShape,
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 3> for NormBackward {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight, bias] = ops.parents;
        let state = ops.state;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let (dx, dw, db) = norm::backward(
            Isa::current(),
            &state.shape,
            floats(&state.x),
            floats(&state.weight),
            floats(&state.bias),
            &state.moments,
            floats(&dy),
        );
        if let Some(x) = x {
            let dx = TensorData::new(dx, state.x.layout().shape().clone());
            grads.register::<Flex>(x.id, FlexTensor::from_data(dx));
        }
        if let Some(weight) = weight {
            grads.register::<Flex>(weight.id, tensor(dw, [state.shape.channels]));
        }
        if let Some(bias) = bias {
            grads.register::<Flex>(bias.id, tensor(db, [state.shape.channels]));
        }
    }
}

#[derive(Debug)]
struct SiluBackward;

impl Backward<Flex, 1> for SiluBackward {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(node) = x {
            let x = ops.state;
            let dx = elementwise::silu_backward(Isa::current(), floats(&x), floats(&dy));
            let dx = TensorData::new(dx, x.layout().shape().clone());
            grads.register::<Flex>(node.id, FlexTensor::from_data(dx));
        }
    }
}

impl<C: CheckpointStrategy> KernelOps for Autodiff<Flex, C> {
    fn kernel_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let tracked = (x.is_tracked(), weight.is_tracked());
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (packed(x), packed(weight));
        let y = run_conv(&x, &weight, None, &shape);
        match ConvBackward
            .prepare::<C>([x_node, weight_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(
                ConvState::new((&x, tracked.0), (&weight, tracked.1), shape),
                y,
            ),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn kernel_conv2d_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let tracked = (x.is_tracked(), weight.is_tracked());
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let (x, weight) = (packed(x), packed(weight));
        let y = run_conv(&x, &weight, Some(bias), &shape);
        let nodes = [x_node, weight_node, bias_node];
        match ConvBiasBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(
                ConvState::new((&x, tracked.0), (&weight, tracked.1), shape),
                y,
            ),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn kernel_group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: NormShape,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (weight, weight_node) = weight.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let (x, weight, bias) = (packed(x), packed(weight), packed(bias));
        let (y, moments) = run_norm(&x, &weight, &bias, &shape);
        let nodes = [x_node, weight_node, bias_node];
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let moments = Arc::new(moments);
                prep.finish(
                    NormState {
                        x,
                        weight,
                        bias,
                        moments,
                        shape,
                    },
                    y,
                )
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn kernel_silu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let x = packed(x);
        let y = Flex::kernel_silu(x.clone());
        match SiluBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
