//! Enlargement by repetition: nothing is kept.

use super::{
    floats, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
    tensor,
};
use crate::fast::{
    enlarge::{self, EnlargeShape},
    isa::Isa,
};

/// `[planes, rows, columns]`.
pub(super) fn run(x: &FlexTensor, shape: &EnlargeShape) -> FlexTensor {
    let ([h, w], [fy, fx]) = (shape.input, shape.factors);
    let y = enlarge::forward(Isa::current(), shape, floats(x));
    tensor(y, [shape.planes, h * fy, w * fx])
}

#[derive(Debug)]
struct EnlargeBackward;

impl Backward<Flex, 1> for EnlargeBackward {
    type State = EnlargeShape;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        if let Some(node) = node {
            let shape = ops.state;
            let [h, w] = shape.input;
            let dx = enlarge::backward(Isa::current(), &shape, floats(&dy));
            grads.register::<Flex>(node.id, tensor(dx, [shape.planes, h, w]));
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(x: Taped<C>, shape: EnlargeShape) -> Taped<C> {
    let (x, node) = x.into_parts();
    let y = run(&packed(x), &shape);
    record::<C, _, _>(EnlargeBackward, [node], y, || shape)
}
