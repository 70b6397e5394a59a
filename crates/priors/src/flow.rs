//! The seam every prior shares: enter, segments, leave, with sites where an adapter may stand.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::nn::Tap;

/// Where an adapter may stand: after the segment that ends one of the network's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Index of the block, in the order of the network.
    pub block: usize,
    /// The segment after which the adapter stands.
    pub segment: usize,
    /// The block's diffusers name, `down_blocks.0` for example.
    pub name: String,
    /// Channels of the feature there.
    pub channels: usize,
    /// How many times smaller than the latent each side of the feature is.
    pub downscale: usize,
}

/// What the text says to the network.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// Encoded text tokens, `[b, n, d]`.
    pub text: Tensor<3>,
    /// Pooled text, `[b, d]`, where the network takes it (SDXL, SD3).
    pub pooled: Option<Tensor<2>>,
    /// Original height and width, crop top and left, target height and width in pixels, `[b, 6]`, where the
    /// network takes them (SDXL).
    pub time_ids: Option<Tensor<2>>,
}

impl Conditioning {
    /// Text tokens `[b, n, d]` and nothing else.
    pub fn of_text(text: Tensor<3>) -> Self {
        Self {
            text,
            pooled: None,
            time_ids: None,
        }
    }
}

/// Sees every tensor of a flow by turns, each under a name; the ranks are those that occur.
pub trait FlowVisitor {
    /// An embedding, `[b, d]`.
    fn rank2(&mut self, name: &str, tensor: &mut Tensor<2>);
    /// Tokens, `[b, n, d]`.
    fn rank3(&mut self, name: &str, tensor: &mut Tensor<3>);
    /// A feature, `[b, c, h, w]`.
    fn rank4(&mut self, name: &str, tensor: &mut Tensor<4>);
}

/// What travels from segment to segment.
pub trait Flow: Clone {
    /// Visits the tensors that segments change: the feature, tokens, skips.
    fn visit_state(&mut self, visitor: &mut dyn FlowVisitor);
    /// Visits the tensors that segments only read: embeddings, text.
    fn visit_context(&mut self, visitor: &mut dyn FlowVisitor);
}

/// A denoising network as a sequence of segments.
///
/// `leave(segment(n - 1, .. segment(0, enter(x, t, cond))))` is the network.
pub trait Prior {
    /// What travels from segment to segment.
    type Flow: Flow;

    /// Embeds the noisy latent `x` `[b, c, h, w]`, the model's timestep `t` `[b]` and the conditioning.
    fn enter(&self, x: Tensor<4>, t: Tensor<1>, conditioning: &Conditioning) -> Self::Flow;

    /// Number of segments.
    fn segments(&self) -> usize;

    /// Name of segment `i`, a diffusers module path.
    fn segment_name(&self, i: usize) -> &str;

    /// Applies segment `i`; `tap` may change the output of a named projection.
    fn segment(&self, i: usize, flow: Self::Flow, tap: &dyn Tap) -> Self::Flow;

    /// The prediction, `[b, c, h, w]`.
    fn leave(&self, flow: Self::Flow) -> Tensor<4>;

    /// Where adapters may stand, in order.
    fn sites(&self) -> &[Site];

    /// How many times smaller than the latent the coarsest feature is: the latent's sides must be
    /// multiples of this.
    fn downscale(&self) -> usize;

    /// The longest side of a latent the network takes, where there is one.
    fn largest(&self) -> Option<usize> {
        None
    }

    /// Splits a flow that stands before `segments` into what they touch and what only passes by, so
    /// that a backward walk need not carry the latter.
    fn set_aside(&self, segments: Range<usize>, flow: Self::Flow) -> (Self::Flow, Self::Flow);

    /// Joins what [`Prior::set_aside`] split, after the segments.
    fn put_back(&self, aside: Self::Flow, flow: Self::Flow) -> Self::Flow;

    /// The whole network without an adapter.
    fn forward(
        &self,
        x: Tensor<4>,
        t: Tensor<1>,
        conditioning: &Conditioning,
        tap: &dyn Tap,
    ) -> Tensor<4> {
        let mut flow = self.enter(x, t, conditioning);
        for i in 0..self.segments() {
            flow = self.segment(i, flow, tap);
        }
        self.leave(flow)
    }
}
