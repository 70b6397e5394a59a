//! Sums: nothing is kept.

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
use crate::fast::{add, isa::Isa};

pub(super) fn run(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    like(add::add(Isa::current(), floats(x), floats(y)), x)
}

pub(super) fn run_shift(x: &FlexTensor, shift: &FlexTensor) -> FlexTensor {
    like(add::shift(Isa::current(), floats(x), floats(shift)), x)
}

#[derive(Debug)]
struct AddBackward;

impl Backward<Flex, 2> for AddBackward {
    type State = ();

    fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<Flex>(node.id, dy.clone());
        }
    }
}

#[derive(Debug)]
struct ShiftBackward;

impl Backward<Flex, 2> for ShiftBackward {
    type State = [usize; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, shift] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(shift) = shift {
            let [b, c] = ops.state;
            let sums = add::shift_grad(Isa::current(), floats(&dy), b * c);
            grads.register::<Flex>(shift.id, tensor(sums, [b, c]));
        }
        if let Some(x) = x {
            grads.register::<Flex>(x.id, dy);
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    y: FloatTensor<Autodiff<Flex, C>>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let ((x, x_node), (y, y_node)) = (x.into_parts(), y.into_parts());
    let sum = run(&packed(x), &packed(y));
    match AddBackward
        .prepare::<C>([x_node, y_node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish((), sum),
        OpsKind::UnTracked(prep) => prep.finish(sum),
    }
}

pub(super) fn taped_shift<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    shift: FloatTensor<Autodiff<Flex, C>>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let ((x, x_node), (shift, shift_node)) = (x.into_parts(), shift.into_parts());
    let shift = packed(shift);
    let y = run_shift(&packed(x), &shift);
    match ShiftBackward
        .prepare::<C>([x_node, shift_node])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let shape = shift.layout().shape();
            prep.finish([shape[0], shape[1]], y)
        }
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
