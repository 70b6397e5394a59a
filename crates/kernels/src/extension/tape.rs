//! What every operation with a handwritten backward needs.

use burn::backend::autodiff::ops::{NodeGuard, OpsKind};

pub(super) use burn::backend::{
    Autodiff, Flex,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops},
    },
    flex::FlexTensor,
    tensor::FloatTensor,
};

/// A tensor that may be tracked.
pub(super) type Taped<C> = FloatTensor<Autodiff<Flex, C>>;

/// `y` as the result of an operation on `nodes`. What `backward` needs, `state`, is made and kept only where one of them
/// is tracked.
pub(super) fn record<C: CheckpointStrategy, B: Backward<Flex, N>, const N: usize>(
    backward: B,
    nodes: [NodeGuard; N],
    y: FlexTensor,
    state: impl FnOnce() -> B::State,
) -> Taped<C> {
    match backward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state(), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
