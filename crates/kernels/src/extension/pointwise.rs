//! Functions of single values and gated rows: the input is kept.

use super::{
    floats, like, own, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
    tensor,
};
use crate::fast::{
    elementwise::{self, Function},
    isa::Isa,
};

pub(super) fn run(x: &FlexTensor, function: Function) -> FlexTensor {
    like(elementwise::apply(Isa::current(), function, floats(x)), x)
}

/// In the memory of `x` where nothing else looks at it.
pub(super) fn run_in_place(mut x: FlexTensor, function: Function) -> FlexTensor {
    match own(&mut x) {
        Some(values) => elementwise::apply_to(Isa::current(), function, values),
        None => return run(&x, function),
    }
    x
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

pub(super) fn taped<C: CheckpointStrategy>(x: Taped<C>, function: Function) -> Taped<C> {
    let (x, node) = x.into_parts();
    let x = packed(x);
    let y = run(&x, function);
    record::<C, _, _>(FunctionBackward, [node], y, || (x, function))
}

pub(super) fn taped_geglu<C: CheckpointStrategy>(x: Taped<C>) -> Taped<C> {
    let (x, node) = x.into_parts();
    let x = packed(x);
    let y = run_geglu(&x);
    record::<C, _, _>(GegluBackward, [node], y, || x)
}
