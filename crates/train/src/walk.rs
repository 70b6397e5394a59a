//! Gradients of a denoising loss: over one tape, or piece by piece (vector-Jacobian products).
//!
//! Piece by piece, the network is first walked forwards without a tape, keeping what enters each
//! piece; then backwards: each piece is walked again on a tape of its own, its inputs as leaves, with
//! the gradient of its outputs as the seed. The memory is that of one piece. The low-quality features,
//! the embeddings and the text are leaves of every piece; their gradients are summed and one last
//! product runs through what made them.

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};
use priors::{
    any::{AnyFlow, AnyPrior},
    clip::ClipText,
    flow::{Conditioning, Flow, FlowVisitor, Prior},
    nn::{Bare, Tap},
    weights::Weights,
};
use restore::{
    adapter::{LqFeatures, RestorationAdapter, Scale},
    lora::Lora,
};

use crate::{
    config::Gradient,
    optimise::{Named, add_to},
};

/// The networks of a step, all plain or with the trained ones as leaves of a tape.
#[derive(Clone, Debug)]
pub struct Networks {
    /// The prior.
    pub prior: AnyPrior,
    /// The text encoder, where the text is not given ready made.
    pub text_encoder: Option<ClipText>,
    /// The Restoration Adapter.
    pub adapter: Option<RestorationAdapter>,
    /// LoRA in the prior.
    pub lora: Option<Lora>,
}

/// What a step feeds them.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The noisy latent, `[b, c, h, w]`.
    pub x: Tensor<4>,
    /// The model's timestep, `[b]`.
    pub t: Tensor<1>,
    /// Token ids of the prompts, or their encoding.
    pub text: Text,
    /// The low-quality latent, `[b, c, h, w]`.
    pub c_lq: Tensor<4>,
    /// How much of the adapter each sample gets.
    pub scale: Scale,
}

/// The text of a batch.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
pub enum Text {
    /// To be encoded by the text encoder that trains.
    Ids(Vec<Vec<u32>>),
    /// Encoded by a frozen one.
    Encoded(Conditioning),
}

impl Networks {
    fn tap(&self) -> &dyn Tap {
        match &self.lora {
            Some(lora) => lora,
            None => &Bare,
        }
    }

    /// What the prior is told by this text.
    pub fn conditioning(&self, text: &Text) -> Conditioning {
        match (text, &self.text_encoder) {
            (Text::Encoded(conditioning), _) => conditioning.clone(),
            (Text::Ids(ids), Some(encoder)) => {
                let encoded = encoder.forward(ids);
                Conditioning {
                    pooled: Some(encoded.pooled),
                    ..Conditioning::of_text(encoded.last)
                }
            }
            (Text::Ids(_), None) => unreachable!("ids come with a text encoder"),
        }
    }

    fn lq_features(&self, c_lq: &Tensor<4>) -> LqFeatures {
        match &self.adapter {
            Some(adapter) => adapter.lq_features(&self.prior, c_lq),
            None => LqFeatures::none(),
        }
    }

    fn step(&self, i: usize, flow: AnyFlow, lq: &LqFeatures, scale: &Scale) -> AnyFlow {
        let flow = self.prior.segment(i, flow, self.tap());
        match &self.adapter {
            Some(adapter) => adapter.after(i, flow, lq, scale),
            None => flow,
        }
    }

    /// The prediction, `[b, c, h, w]`.
    pub fn predict(&self, inputs: &Inputs) -> Tensor<4> {
        let lq = self.lq_features(&inputs.c_lq);
        let mut flow = self.prior.enter(
            inputs.x.clone(),
            inputs.t.clone(),
            &self.conditioning(&inputs.text),
        );
        for i in 0..self.prior.segments() {
            flow = self.step(i, flow, &lq, &inputs.scale);
        }
        self.prior.leave(flow)
    }
}

/// The loss of a prediction and the gradients of everything tracked in `weights`, by name.
///
/// `plain` and `taped` are the same networks, the second over the leaves of `weights`.
pub fn gradients(
    plain: &Networks,
    taped: &Networks,
    inputs: &Inputs,
    weights: &Weights,
    how: Gradient,
    loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
) -> (f64, Named) {
    match how {
        Gradient::Whole => {
            let loss = loss(taped.predict(inputs));
            let mut gradients = loss.backward();
            (
                f64::from(loss.into_scalar::<f32>()),
                weights.gradients(&mut gradients),
            )
        }
        Gradient::Cut(pieces) => Walk {
            plain,
            taped,
            inputs,
            weights,
            sum: Named::new(),
        }
        .run(pieces.max(1), loss),
    }
}

struct Walk<'a> {
    plain: &'a Networks,
    taped: &'a Networks,
    inputs: &'a Inputs,
    weights: &'a Weights,
    sum: Named,
}

impl Walk<'_> {
    fn run(mut self, pieces: usize, loss: impl FnOnce(Tensor<4>) -> Tensor<1>) -> (f64, Named) {
        let n = self.plain.prior.segments();
        let cut = |piece: usize| piece * n / pieces;
        let lq = self.plain.lq_features(&self.inputs.c_lq);
        let conditioning = self.plain.conditioning(&self.inputs.text);
        let mut flow =
            self.plain
                .prior
                .enter(self.inputs.x.clone(), self.inputs.t.clone(), &conditioning);
        let mut entering = Vec::new();
        for piece in 0..pieces {
            entering.push(flow.clone());
            for i in cut(piece)..cut(piece + 1) {
                flow = self.plain.step(i, flow, &lq, &self.inputs.scale);
            }
        }

        let enters = self.enters();
        let (mut state, mut context) = (Leaves::default(), Leaves::default());
        flow.visit_state(&mut state);
        // A transformer's last norm listens to the embedding.
        if enters == Enters::Trained {
            flow.visit_context(&mut context);
        }
        let loss = loss(self.taped.prior.leave(flow));
        let mut tape = loss.backward();
        let mut d_state = state.gradients(&mut tape);
        let mut d_context = context.gradients(&mut tape);
        self.collect(&mut tape);

        let lowest = (0..pieces).find(|&piece| cut(piece) < cut(piece + 1));
        for piece in (0..pieces).rev() {
            let flow = entering.pop().expect("one for each piece");
            let segments = cut(piece)..cut(piece + 1);
            if segments.is_empty() {
                continue;
            }
            // Between here and the end all skips are taken: none is set aside for an adapter that reads them.
            let reads_skips =
                (self.taped.adapter.as_ref()).is_some_and(RestorationAdapter::reads_skips);
            let touching = segments.start..if reads_skips { n } else { segments.end };
            let (mut flow, aside) = self.taped.prior.set_aside(touching, flow);
            let below = aside.skips();
            let (mut state, mut context) = (Leaves::default(), Leaves::default());
            // Over a frozen prior the embeddings, the text and the first feature are constants.
            if enters == Enters::Trained || Some(piece) != lowest {
                flow.visit_state(&mut state);
            }
            if enters == Enters::Trained {
                flow.visit_context(&mut context);
            }
            let mut lq = lq.clone();
            lq.visit_context(&mut context);
            for i in segments {
                flow = self.taped.step(i, flow, &lq, &self.inputs.scale);
            }
            let mut seed = Seed {
                gradients: &mut d_state,
                below,
                sum: None,
            };
            flow.visit_state(&mut seed);
            if seed.sum.is_none() {
                continue;
            }
            let mut tape = seed.backward();
            let passing = std::mem::take(&mut d_state)
                .into_iter()
                .filter(|(name, _)| name.starts_with("skips."));
            d_state = passing.collect();
            for (name, gradient) in state.gradients(&mut tape) {
                d_state.insert(lift(&name, below), gradient);
            }
            for (name, gradient) in context.gradients(&mut tape) {
                add(&mut d_context, name, gradient);
            }
            self.collect(&mut tape);
        }
        self.enter(d_state, d_context);
        (f64::from(loss.into_scalar::<f32>()), self.sum)
    }

    /// Whether what enters the first segment depends on anything that trains.
    fn enters(&self) -> Enters {
        let conditioning = self.taped.conditioning(&self.inputs.text);
        let (x, t) = (self.inputs.x.clone(), self.inputs.t.clone());
        let mut flow = self.taped.prior.enter(x, t, &conditioning);
        let mut tracked = Tracked(false);
        flow.visit_state(&mut tracked);
        flow.visit_context(&mut tracked);
        if tracked.0 {
            Enters::Trained
        } else {
            Enters::Frozen
        }
    }

    /// The last product, through what made the first feature, the embeddings, the text and the
    /// low-quality features.
    fn enter(&mut self, mut d_state: Grads, mut d_context: Grads) {
        let conditioning = self.taped.conditioning(&self.inputs.text);
        let mut flow =
            self.taped
                .prior
                .enter(self.inputs.x.clone(), self.inputs.t.clone(), &conditioning);
        let mut seed = Seed {
            gradients: &mut d_state,
            below: 0,
            sum: None,
        };
        flow.visit_state(&mut seed);
        let mut seed = Seed {
            gradients: &mut d_context,
            below: 0,
            sum: seed.sum,
        };
        flow.visit_context(&mut seed);
        let mut lq = self.taped.lq_features(&self.inputs.c_lq);
        lq.visit_context(&mut seed);
        if seed.sum.is_some() {
            let mut tape = seed.backward();
            self.collect(&mut tape);
        }
    }

    fn collect(&mut self, tape: &mut Gradients) {
        add_to(&mut self.sum, self.weights.gradients(tape));
    }
}

/// What makes the first feature, the embeddings and the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enters {
    /// Nothing that trains.
    Frozen,
    /// Something that does.
    Trained,
}

/// Whether any of the tensors it visits is tracked.
struct Tracked(bool);

impl FlowVisitor for Tracked {
    fn rank2(&mut self, _name: &str, tensor: &mut Tensor<2>) {
        self.0 |= tensor.is_tracked();
    }
    fn rank3(&mut self, _name: &str, tensor: &mut Tensor<3>) {
        self.0 |= tensor.is_tracked();
    }
    fn rank4(&mut self, _name: &str, tensor: &mut Tensor<4>) {
        self.0 |= tensor.is_tracked();
    }
}

/// A gradient of some rank, flat, with its shape kept by the tensor it belongs to.
#[derive(Clone, Debug)]
enum Any {
    Rank2(Tensor<2>),
    Rank3(Tensor<3>),
    Rank4(Tensor<4>),
}

type Grads = BTreeMap<String, Any>;

fn add(sum: &mut Grads, name: String, gradient: Any) {
    let total = match (sum.remove(&name), gradient) {
        (None, gradient) => gradient,
        (Some(Any::Rank2(a)), Any::Rank2(b)) => Any::Rank2(a + b),
        (Some(Any::Rank3(a)), Any::Rank3(b)) => Any::Rank3(a + b),
        (Some(Any::Rank4(a)), Any::Rank4(b)) => Any::Rank4(a + b),
        _ => unreachable!("a name keeps its rank"),
    };
    sum.insert(name, total);
}

/// Turns each tensor it visits into a leaf and remembers it.
#[derive(Default)]
struct Leaves(Vec<(String, Any)>);

/// Makes a leaf of a tensor.
pub(crate) fn leaf<const D: usize>(tensor: &mut Tensor<D>) -> Tensor<D> {
    *tensor = tensor.clone().without_autodiff().autodiff().require_grad();
    tensor.clone()
}

impl FlowVisitor for Leaves {
    fn rank2(&mut self, name: &str, tensor: &mut Tensor<2>) {
        self.0.push((name.to_owned(), Any::Rank2(leaf(tensor))));
    }
    fn rank3(&mut self, name: &str, tensor: &mut Tensor<3>) {
        self.0.push((name.to_owned(), Any::Rank3(leaf(tensor))));
    }
    fn rank4(&mut self, name: &str, tensor: &mut Tensor<4>) {
        self.0.push((name.to_owned(), Any::Rank4(leaf(tensor))));
    }
}

impl Leaves {
    fn gradients(self, tape: &mut Gradients) -> Grads {
        let of = |(name, leaf): (String, Any)| {
            let gradient = match leaf {
                Any::Rank2(leaf) => Any::Rank2(leaf.grad_remove(tape)?),
                Any::Rank3(leaf) => Any::Rank3(leaf.grad_remove(tape)?),
                Any::Rank4(leaf) => Any::Rank4(leaf.grad_remove(tape)?),
            };
            Some((name, gradient))
        };
        self.0.into_iter().filter_map(of).collect()
    }
}

/// Sums the products of outputs with their gradients; what it uses up is removed.
struct Seed<'a> {
    gradients: &'a mut Grads,
    /// Skips that pass below the visited flow's own.
    below: usize,
    sum: Option<Tensor<1>>,
}

/// The name of a skip in a flow that has `below` more of them underneath.
fn lift(name: &str, below: usize) -> String {
    match name
        .strip_prefix("skips.")
        .and_then(|i| i.parse::<usize>().ok())
    {
        Some(i) => format!("skips.{}", i + below),
        None => name.to_owned(),
    }
}

impl Seed<'_> {
    fn product<const D: usize>(&mut self, output: &Tensor<D>, gradient: Tensor<D>) {
        if !output.is_tracked() {
            return;
        }
        let product = (output.clone() * gradient).sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + product,
            None => product,
        });
    }

    fn backward(self) -> Gradients {
        self.sum
            .expect("an output that depends on a leaf")
            .backward()
    }
}

impl FlowVisitor for Seed<'_> {
    fn rank2(&mut self, name: &str, tensor: &mut Tensor<2>) {
        if let Some(Any::Rank2(gradient)) = self.gradients.remove(name) {
            self.product(tensor, gradient);
        }
    }
    fn rank3(&mut self, name: &str, tensor: &mut Tensor<3>) {
        if let Some(Any::Rank3(gradient)) = self.gradients.remove(name) {
            self.product(tensor, gradient);
        }
    }
    fn rank4(&mut self, name: &str, tensor: &mut Tensor<4>) {
        if let Some(Any::Rank4(gradient)) = self.gradients.remove(&lift(name, self.below)) {
            self.product(tensor, gradient);
        }
    }
}
