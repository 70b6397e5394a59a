//! Convolution: the input is kept for the weight's gradient, the weight for the input's.

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
    conv::{self, ConvShape},
    isa::Isa,
};

pub(super) fn run(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &ConvShape,
) -> FlexTensor {
    let bias = Some(floats(bias));
    let (x, weight) = (operand(x, shape.products), operand(weight, shape.products));
    let shape = &shape.of_rounded();
    let y = conv::forward(Isa::current(), shape, floats(&x), stored(&weight), bias);
    let [c, h, w] = shape.output;
    tensor(y, [shape.batch, c, h, w])
}

#[derive(Clone, Debug)]
struct State {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
    weight_dtype: DType,
    shape: ConvShape,
}

impl State {
    fn operand(&self, tensor: &FlexTensor) -> FlexTensor {
        operand(tensor, self.shape.products)
    }

    fn input_grad(&self, dy: &FlexTensor) -> FlexTensor {
        let weight = self.weight.as_ref().expect("kept for a tracked input");
        let (weight, dy) = (self.operand(weight), self.operand(dy));
        let shape = self.shape.of_rounded();
        let dx = conv::input_grad(Isa::current(), &shape, floats(&dy), stored(&weight));
        let [c, h, w] = self.shape.input;
        tensor(dx, [self.shape.batch, c, h, w])
    }

    fn weight_grad(&self, dy: &FlexTensor) -> FlexTensor {
        let x = self.x.as_ref().expect("kept for a tracked weight");
        let (x, dy) = (self.operand(x), self.operand(dy));
        let shape = self.shape.of_rounded();
        let dw = conv::weight_grad(Isa::current(), &shape, floats(&x), floats(&dy));
        let ([out, ..], [c, ..], [kh, kw]) =
            (self.shape.output, self.shape.input, self.shape.kernel);
        in_dtype(tensor(dw, [out, c, kh, kw]), self.weight_dtype)
    }
}

#[derive(Debug)]
struct ConvBackward;

impl Backward<Flex, 3> for ConvBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
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

pub(super) fn taped<C: CheckpointStrategy>(
    x: Taped<C>,
    weight: Taped<C>,
    bias: Taped<C>,
    shape: ConvShape,
) -> Taped<C> {
    let (needs_weight, needs_x) = (x.is_tracked(), weight.is_tracked());
    let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
    let (bias, bias_node) = bias.into_parts();
    let (x, weight) = (packed(x), packed(weight));
    let y = run(&x, &weight, &packed(bias), &shape);
    let nodes = [x_node, weight_node, bias_node];
    record::<C, _, _>(ConvBackward, nodes, y, || State {
        weight_dtype: weight.dtype(),
        x: needs_x.then_some(x),
        weight: needs_weight.then_some(weight),
        shape,
    })
}
