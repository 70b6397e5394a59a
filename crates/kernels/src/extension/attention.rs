//! Attention: its operands, its result and the logarithms of the rows' sums are kept.

use std::sync::Arc;

use super::{
    floats, like, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
};
use crate::fast::{
    attention::{self, AttentionShape, Bias, Saved},
    isa::Isa,
};

pub(super) fn run(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    bias: Option<&FlexTensor>,
    shape: &AttentionShape,
) -> (FlexTensor, Vec<f32>) {
    let bias = bias.map(|bias| Bias(floats(bias)));
    let (o, lse) = attention::forward(Isa::current(), shape, floats(q), floats(k), floats(v), bias);
    (like(o, q), lse)
}

#[derive(Clone, Debug)]
struct State {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    o: FlexTensor,
    lse: Arc<Vec<f32>>,
    bias: Option<FlexTensor>,
    shape: AttentionShape,
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let State {
            q,
            k,
            v,
            o,
            lse,
            bias,
            shape,
        } = ops.state;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let saved = Saved {
            q: floats(&q),
            k: floats(&k),
            v: floats(&v),
            o: floats(&o),
            lse: &lse,
            bias: bias.as_ref().map(|bias| Bias(floats(bias))),
        };
        let gradients = attention::backward(Isa::current(), &shape, &saved, floats(&dy));
        for ((parent, gradient), operand) in
            ops.parents.into_iter().zip(gradients).zip([&q, &k, &v])
        {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, like(gradient, operand));
            }
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(
    q: Taped<C>,
    k: Taped<C>,
    v: Taped<C>,
    bias: Option<Taped<C>>,
    shape: AttentionShape,
) -> Taped<C> {
    let ((q, q_node), (k, k_node)) = (q.into_parts(), k.into_parts());
    let (v, v_node) = v.into_parts();
    let (q, k, v) = (packed(q), packed(k), packed(v));
    // A bias is a constant, as its description says.
    let bias = bias.map(|bias| packed(bias.into_parts().0));
    let (o, lse) = run(&q, &k, &v, bias.as_ref(), &shape);
    let nodes = [q_node, k_node, v_node];
    record::<C, _, _>(AttentionBackward, nodes, o.clone(), || State {
        q,
        k,
        v,
        o,
        lse: Arc::new(lse),
        bias,
        shape,
    })
}
