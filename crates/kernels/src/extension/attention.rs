//! Attention: its operands, its result and the logarithms of the rows' sums are kept.

use std::sync::Arc;

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

use super::{floats, like, packed};
use crate::fast::{
    attention::{self, AttentionShape, Saved},
    isa::Isa,
};

pub(super) fn run(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    shape: &AttentionShape,
) -> (FlexTensor, Vec<f32>) {
    let (o, lse) = attention::forward(Isa::current(), shape, floats(q), floats(k), floats(v));
    (like(o, q), lse)
}

#[derive(Clone, Debug)]
struct State {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    o: FlexTensor,
    lse: Arc<Vec<f32>>,
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
            shape,
        } = ops.state;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let saved = Saved {
            q: floats(&q),
            k: floats(&k),
            v: floats(&v),
            o: floats(&o),
            lse: &lse,
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
    q: FloatTensor<Autodiff<Flex, C>>,
    k: FloatTensor<Autodiff<Flex, C>>,
    v: FloatTensor<Autodiff<Flex, C>>,
    shape: AttentionShape,
) -> FloatTensor<Autodiff<Flex, C>> {
    let ((q, q_node), (k, k_node)) = (q.into_parts(), k.into_parts());
    let (v, v_node) = v.into_parts();
    let (q, k, v) = (packed(q), packed(k), packed(v));
    let (o, lse) = run(&q, &k, &v, &shape);
    let nodes = [q_node, k_node, v_node];
    match AttentionBackward
        .prepare::<C>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let state = State {
                q,
                k,
                v,
                o: o.clone(),
                lse: Arc::new(lse),
                shape,
            };
            prep.finish(state, o)
        }
        OpsKind::UnTracked(prep) => prep.finish(o),
    }
}
