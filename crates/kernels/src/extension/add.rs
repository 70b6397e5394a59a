//! Sums: nothing is kept.

use super::{
    floats, like, own, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
    tensor,
};
use crate::fast::{
    add::{self, GatedShape},
    isa::Isa,
};

/// In the memory of one of them where nothing else looks at it.
pub(super) fn run(mut x: FlexTensor, mut y: FlexTensor) -> FlexTensor {
    let isa = Isa::current();
    if let Some(values) = own(&mut x) {
        add::add_to(isa, values, floats(&y));
        return x;
    }
    if let Some(values) = own(&mut y) {
        add::add_to(isa, values, floats(&x));
        return y;
    }
    like(add::add(isa, floats(&x), floats(&y)), &x)
}

pub(super) fn run_shift(x: &FlexTensor, shift: &FlexTensor) -> FlexTensor {
    like(add::shift(Isa::current(), floats(x), floats(shift)), x)
}

/// In the memory of `x` where nothing else looks at it.
pub(super) fn run_gated(
    mut x: FlexTensor,
    gate: &FlexTensor,
    y: &FlexTensor,
    shape: &GatedShape,
) -> FlexTensor {
    let isa = Isa::current();
    if let Some(values) = own(&mut x) {
        add::gated_to(isa, shape, values, floats(gate), floats(y));
        return x;
    }
    let mut values = floats(&x).to_vec();
    add::gated_to(isa, shape, &mut values, floats(gate), floats(y));
    like(values, &x)
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

#[derive(Clone, Debug)]
struct GatedState {
    gate: FlexTensor,
    /// Where the gate is tracked.
    y: Option<FlexTensor>,
    shape: GatedShape,
}

#[derive(Debug)]
struct GatedBackward;

impl Backward<Flex, 3> for GatedBackward {
    type State = GatedState;

    fn backward(self, ops: Ops<GatedState, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, gate, y] = ops.parents;
        let state = ops.state;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let (Some(node), Some(y)) = (gate, &state.y) {
            let sums = add::gate_grad(&state.shape, floats(&dy), floats(y));
            grads.register::<Flex>(node.id, like(sums, &state.gate));
        }
        if let Some(node) = y {
            let isa = Isa::current();
            let product = add::gated_grad(isa, &state.shape, floats(&dy), floats(&state.gate));
            grads.register::<Flex>(node.id, like(product, &dy));
        }
        if let Some(node) = x {
            grads.register::<Flex>(node.id, dy);
        }
    }
}

pub(super) fn taped_gated<C: CheckpointStrategy>(
    x: Taped<C>,
    gate: Taped<C>,
    y: Taped<C>,
    shape: GatedShape,
) -> Taped<C> {
    let gate_is_tracked = gate.is_tracked();
    let ((x, x_node), (y, y_node)) = (x.into_parts(), y.into_parts());
    let (gate, gate_node) = gate.into_parts();
    let (gate, y) = (packed(gate), packed(y));
    let sum = run_gated(packed(x), &gate, &y, &shape);
    let nodes = [x_node, gate_node, y_node];
    record::<C, _, _>(GatedBackward, nodes, sum, || GatedState {
        gate,
        y: gate_is_tracked.then_some(y),
        shape,
    })
}

pub(super) fn taped<C: CheckpointStrategy>(x: Taped<C>, y: Taped<C>) -> Taped<C> {
    let ((x, x_node), (y, y_node)) = (x.into_parts(), y.into_parts());
    let sum = run(packed(x), packed(y));
    record::<C, _, _>(AddBackward, [x_node, y_node], sum, || ())
}

pub(super) fn taped_shift<C: CheckpointStrategy>(x: Taped<C>, shift: Taped<C>) -> Taped<C> {
    let ((x, x_node), (shift, shift_node)) = (x.into_parts(), shift.into_parts());
    let shift = packed(shift);
    let y = run_shift(&packed(x), &shift);
    record::<C, _, _>(ShiftBackward, [x_node, shift_node], y, || {
        let shape = shift.layout().shape();
        [shape[0], shape[1]]
    })
}
