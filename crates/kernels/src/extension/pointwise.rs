//! Functions of single values and gated rows: the input is kept.

use burn::backend::{
    Autodiff, Flex,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    flex::FlexTensor,
    tensor::FloatTensor,
};

use super::{floats, like, packed, tensor};
use crate::fast::{
    elementwise::{self, Function},
    isa::Isa,
};

pub(super) fn run(x: &FlexTensor, function: Function) -> FlexTensor {
    like(elementwise::apply(Isa::current(), function, floats(x)), x)
}

pub(super) fn run_geglu(x: &FlexTensor) -> FlexTensor {
    let mut shape = x.layout().shape().clone();
    let last = shape.rank() - 1;
    shape[last] /= 2;
    let y = elementwise::geglu(Isa::current(), shape[last], floats(x));
    let n = y.len();
    tensor(y, [n]).reshape(shape)
}

#[derive(Debug)]
struct FunctionBackward;

impl Backward<Flex, 1> for FunctionBackward {
    type State = (FlexTensor, Function);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(node) = node {
            let (x, function) = ops.state;
            let dx = elementwise::backward(Isa::current(), function, floats(&x), floats(&dy));
            grads.register::<Flex>(node.id, like(dx, &x));
        }
    }
}

#[derive(Debug)]
struct GegluBackward;

impl Backward<Flex, 1> for GegluBackward {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(node) = node {
            let x = ops.state;
            let shape = x.layout().shape();
            let d = shape[shape.rank() - 1] / 2;
            let dx = elementwise::geglu_backward(Isa::current(), d, floats(&x), floats(&dy));
            grads.register::<Flex>(node.id, like(dx, &x));
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    function: Function,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (x, node) = x.into_parts();
    let x = packed(x);
    let y = run(&x, function);
    match FunctionBackward
        .prepare::<C>([node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish((x, function), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

pub(super) fn taped_geglu<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (x, node) = x.into_parts();
    let x = packed(x);
    let y = run_geglu(&x);
    match GegluBackward
        .prepare::<C>([node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish(x, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
