//! Linear map with a low-rank update: the input through the narrow product is kept for the wide factor's gradient.

use burn::tensor::DType;

use super::{
    floats, in_dtype, packed, stored,
    tape::{
        Backward, CheckpointStrategy, Checkpointer, Flex, FlexTensor, Gradients, Ops, Taped, record,
    },
    tensor,
};
use crate::fast::{
    isa::Isa,
    linear::{self, Factors, LinearShape},
    loops::multiply,
};

/// The map and its update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRankShape {
    /// The map; its products are those of the factors too.
    pub(crate) map: LinearShape,
    /// Rank of the update.
    pub(crate) rank: usize,
    /// The update is multiplied with it.
    pub(crate) scale: f32,
}

impl LowRankShape {
    fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        multiply(&mut values, self.scale);
        values
    }
}

/// The result, and `scale x aT`.
pub(super) fn run(
    x: &FlexTensor,
    [weight, bias]: [&FlexTensor; 2],
    [a, b]: [&FlexTensor; 2],
    shape: &LowRankShape,
) -> (FlexTensor, FlexTensor) {
    let (map, bias) = (&shape.map, Some(floats(bias)));
    let factors = Factors {
        a: stored(a),
        b: stored(b),
        rank: shape.rank,
        scale: shape.scale,
    };
    let (isa, x, weight) = (Isa::current(), floats(x), stored(weight));
    let (y, low) = linear::forward_low_rank(isa, map, x, weight, bias, &factors);
    (
        tensor(y, [map.n, map.d_out]),
        tensor(low, [map.n, shape.rank]),
    )
}

#[derive(Clone, Debug)]
struct State {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
    a: Option<FlexTensor>,
    b: Option<FlexTensor>,
    low: Option<FlexTensor>,
    /// Of the weight, `a` and `b`.
    dtypes: [DType; 3],
    shape: LowRankShape,
}

#[derive(Debug)]
struct LowRankBackward;

impl Backward<Flex, 5> for LowRankBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [x, weight, bias, a, b] = ops.parents;
        let State {
            x: kept_x,
            weight: kept_weight,
            a: kept_a,
            b: kept_b,
            low,
            dtypes,
            shape,
        } = ops.state;
        let (isa, map) = (Isa::current(), &shape.map);
        let LinearShape { n, d_in, d_out, .. } = *map;
        let dy = packed(grads.consume::<Flex>(&ops.node));
        let dy = floats(&dy);
        let d_low = kept_b.map(|b| {
            shape.scaled(linear::input_grad(
                isa,
                &map.wide(shape.rank),
                dy,
                stored(&b),
            ))
        });
        let expected = "kept for a tracked input or factor";
        if let Some(x) = x {
            let (weight, a) = (kept_weight.expect(expected), kept_a.expect(expected));
            let d_low = d_low.as_deref().expect(expected);
            let dx = linear::input_grad_low_rank(isa, map, dy, stored(&weight), d_low, stored(&a));
            grads.register::<Flex>(x.id, tensor(dx, [n, d_in]));
        }
        let of_x = || floats(kept_x.as_ref().expect(expected));
        if let Some(weight) = weight {
            let dw = linear::weight_grad(isa, map, of_x(), dy);
            let dw = in_dtype(tensor(dw, [d_out, d_in]), dtypes[0]);
            grads.register::<Flex>(weight.id, dw);
        }
        if let Some(a) = a {
            let d_low = d_low.as_deref().expect(expected);
            let da = linear::weight_grad(isa, &map.narrow(shape.rank), of_x(), d_low);
            let da = in_dtype(tensor(da, [shape.rank, d_in]), dtypes[1]);
            grads.register::<Flex>(a.id, da);
        }
        if let Some(b) = b {
            let low = low.expect(expected);
            let db = linear::weight_grad(isa, &map.wide(shape.rank), floats(&low), dy);
            let db = in_dtype(tensor(db, [d_out, shape.rank]), dtypes[2]);
            grads.register::<Flex>(b.id, db);
        }
        if let Some(bias) = bias {
            let db = linear::bias_grad(map, dy);
            grads.register::<Flex>(bias.id, tensor(db, [d_out]));
        }
    }
}

pub(super) fn taped<C: CheckpointStrategy>(
    x: Taped<C>,
    [weight, bias]: [Taped<C>; 2],
    [a, b]: [Taped<C>; 2],
    shape: LowRankShape,
) -> Taped<C> {
    let of_x = x.is_tracked();
    let [of_weight, of_a, of_b] = [&weight, &a, &b].map(Taped::<C>::is_tracked);
    let [
        (x, x_node),
        (weight, weight_node),
        (bias, bias_node),
        (a, a_node),
        (b, b_node),
    ] = [x, weight, bias, a, b].map(Taped::<C>::into_parts);
    let [x, weight, bias, a, b] = [x, weight, bias, a, b].map(packed);
    let (y, low) = run(&x, [&weight, &bias], [&a, &b], &shape);
    let nodes = [x_node, weight_node, bias_node, a_node, b_node];
    record::<C, _, _>(LowRankBackward, nodes, y, || State {
        dtypes: [weight.dtype(), a.dtype(), b.dtype()],
        x: (of_weight || of_a).then_some(x),
        weight: of_x.then_some(weight),
        a: of_x.then_some(a),
        b: (of_x || of_a).then_some(b),
        low: of_b.then_some(low),
        shape,
    })
}
