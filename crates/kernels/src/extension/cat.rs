//! One tensor after another along the second axis: only the sizes are kept.

use super::{
    FloatTensorOps, floats, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
};
use crate::fast::shared::interleaved;

/// `[b, c, ..]` and `[b, e, ..]`, both packed, as `[b, c + e, ..]`.
pub(super) fn run(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    let mut shape = x.layout().shape().clone();
    let images = shape[0];
    shape[1] += y.layout().shape()[1];
    let values = interleaved(images, [floats(x), floats(y)]);
    FlexTensor::from_data(burn::tensor::TensorData::new(values, shape))
}

#[derive(Debug)]
struct CatBackward;

impl Backward<Flex, 2> for CatBackward {
    /// Sizes of both along the second axis.
    type State = [usize; 2];

    fn backward(self, ops: Ops<[usize; 2], 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let mut first = 0;
        for (node, size) in ops.parents.into_iter().zip(ops.state) {
            if let Some(node) = node {
                let mut ranges: Vec<_> = (dy.layout().shape().iter())
                    .map(|size| burn::tensor::Slice::from(0..*size))
                    .collect();
                ranges[1] = (first..first + size).into();
                let part = Flex::float_slice(dy.clone(), &ranges);
                grads.register::<Flex>(node.id, packed(part));
            }
            first += size;
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(x: Taped<C>, y: Taped<C>) -> Taped<C> {
    let ((x, x_node), (y, y_node)) = (x.into_parts(), y.into_parts());
    let (x, y) = (packed(x), packed(y));
    record::<C, _, _>(CatBackward, [x_node, y_node], run(&x, &y), || {
        [x.layout().shape()[1], y.layout().shape()[1]]
    })
}
