//! Linear map: the input is kept for the weight's gradient, the weight for the input's.

use burn::tensor::DType;

use super::{
    floats, in_dtype,
    narrow::operand,
    packed, stored,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
    tensor,
};
use crate::fast::{
    isa::Isa,
    linear::{self, LinearShape},
};

pub(super) fn run(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &LinearShape,
) -> FlexTensor {
    let bias = Some(floats(bias));
    let (x, weight) = (operand(x, shape.products), operand(weight, shape.products));
    let shape = &shape.of_rounded();
    let y = linear::forward(Isa::current(), shape, floats(&x), stored(&weight), bias);
    tensor(y, [shape.n, shape.d_out])
}

#[derive(Clone, Debug)]
struct State {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
    weight_dtype: DType,
    shape: LinearShape,
}

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 3> for LinearBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight, bias] = ops.parents;
        let State {
            x: kept_x,
            weight: kept_weight,
            weight_dtype,
            shape,
        } = ops.state;
        let LinearShape {
            n,
            d_in,
            d_out,
            products,
        } = shape;
        let shape = shape.of_rounded();
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let operand = |tensor: &FlexTensor| operand(tensor, products);
        let factor = operand(&dy);
        if let Some(x) = x {
            let weight = operand(&kept_weight.expect("kept for a tracked input"));
            let dx = linear::input_grad(Isa::current(), &shape, floats(&factor), stored(&weight));
            grads.register::<Flex>(x.id, tensor(dx, [n, d_in]));
        }
        if let Some(weight) = weight {
            let x = operand(&kept_x.expect("kept for a tracked weight"));
            let dw = linear::weight_grad(Isa::current(), &shape, floats(&x), floats(&factor));
            let dw = in_dtype(tensor(dw, [d_out, d_in]), weight_dtype);
            grads.register::<Flex>(weight.id, dw);
        }
        if let Some(bias) = bias {
            let db = linear::bias_grad(&shape, floats(&dy));
            grads.register::<Flex>(bias.id, tensor(db, [d_out]));
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(
    x: Taped<C>,
    weight: Taped<C>,
    bias: Taped<C>,
    shape: LinearShape,
) -> Taped<C> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
    let (bias, bias_node) = bias.into_parts();
    let (x, weight) = (packed(x), packed(weight));
    let y = run(&x, &weight, &packed(bias), &shape);
    let nodes = [x_node, weight_node, bias_node];
    record::<C, _, _>(LinearBackward, nodes, y, || State {
        weight_dtype: weight.dtype(),
        x: needs_x.then_some(x),
        weight: needs_weight.then_some(weight),
        shape,
    })
}
