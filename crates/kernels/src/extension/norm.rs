//! Normalizations: the input and its moments are kept.

use std::sync::Arc;

use super::{
    floats, like, packed,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
};
use crate::fast::{
    isa::Isa,
    norm::{self, Moments, NormShape},
    row_norm::{self, RowShape},
};

pub(super) fn run_groups(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &NormShape,
) -> (FlexTensor, Vec<Moments>) {
    let (weight, bias) = (floats(weight), floats(bias));
    let (y, moments) = norm::forward(Isa::current(), shape, floats(x), weight, bias);
    (like(y, x), moments)
}

pub(super) fn run_rows(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    shape: &RowShape,
) -> (FlexTensor, Vec<Moments>) {
    let (weight, bias) = (floats(weight), floats(bias));
    let (y, moments) = row_norm::forward(Isa::current(), shape, floats(x), weight, bias);
    (like(y, x), moments)
}

#[derive(Clone, Debug)]
struct State<T> {
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    moments: Arc<Vec<Moments>>,
    shape: T,
}

/// The gradients of `x`, the weight and the bias.
type Gradient = (Vec<f32>, Vec<f32>, Vec<f32>);

#[derive(Debug)]
struct GroupBackward;

impl Backward<Flex, 3> for GroupBackward {
    type State = State<NormShape>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let State {
            x,
            weight,
            bias,
            moments,
            shape,
        } = &ops.state;
        let gradient = norm::backward(
            Isa::current(),
            shape,
            floats(x),
            floats(weight),
            floats(bias),
            moments,
            floats(&dy),
        );
        register(&ops, gradient, grads);
    }
}

#[derive(Debug)]
struct RowBackward;

impl Backward<Flex, 3> for RowBackward {
    type State = State<RowShape>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let State {
            x,
            weight,
            moments,
            shape,
            ..
        } = &ops.state;
        let (x, weight) = (floats(x), floats(weight));
        let gradient = row_norm::backward(Isa::current(), shape, x, weight, moments, floats(&dy));
        register(&ops, gradient, grads);
    }
}

fn register<T: Clone + std::fmt::Debug + Send>(
    ops: &Ops<State<T>, 3>,
    (dx, dw, db): Gradient,
    grads: &mut Gradients,
) {
    let State {
        x, weight, bias, ..
    } = &ops.state;
    for ((parent, gradient), operand) in ops.parents.iter().zip([dx, dw, db]).zip([x, weight, bias])
    {
        if let Some(parent) = parent {
            grads.register::<Flex>(parent.id, like(gradient, operand));
        }
    }
}

macro_rules! taped {
    ($name:ident, $shape:ty, $run:ident, $backward:ident) => {
        pub(super) fn $name<C: CheckpointStrategy>(
            x: Taped<C>,
            weight: Taped<C>,
            bias: Taped<C>,
            shape: $shape,
        ) -> Taped<C> {
            let (x, x_node) = x.into_parts();
            let (weight, weight_node) = weight.into_parts();
            let (bias, bias_node) = bias.into_parts();
            let (x, weight, bias) = (packed(x), packed(weight), packed(bias));
            let (y, moments) = $run(&x, &weight, &bias, &shape);
            let nodes = [x_node, weight_node, bias_node];
            record::<C, _, _>($backward, nodes, y, || State {
                x,
                weight,
                bias,
                moments: Arc::new(moments),
                shape,
            })
        }
    };
}
taped!(taped_groups, NormShape, run_groups, GroupBackward);
taped!(taped_rows, RowShape, run_rows, RowBackward);
