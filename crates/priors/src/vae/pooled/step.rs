//! The autoencoder's segments taken apart into steps that tiles can stop between.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::{
    moments::Moments,
    plan::{Rect, Tile},
    values,
};
use crate::{
    nn::{Conv2d, GroupNorm},
    vae::{Body, Segment},
};
use kernels::Activation;

/// A step of the chain.
pub(super) enum Step<'a> {
    /// Convolution that keeps the size.
    Conv(&'a Conv2d),
    /// Convolution that halves it.
    Down(&'a Conv2d),
    /// Doubling by repetition.
    Up,
    /// Norm by the whole feature's statistics.
    Norm(&'a GroupNorm, Activation),
    /// The feature is remembered for [`Step::Add`].
    Keep,
    /// What was remembered is added, through a convolution where the channels change.
    Add(Option<&'a Conv2d>),
    /// A segment that needs the whole feature at once.
    Whole(&'a Segment),
}

/// The feature between two steps, and what is remembered.
pub(super) struct State {
    pub(super) x: Tensor<4>,
    pub(super) residual: Option<Tensor<4>>,
}

/// What a tile's values cover, and which part of them is right and the tile's own.
pub(super) struct Covered {
    pub(super) grown: Rect,
    pub(super) core: Rect,
}

/// Encoder or decoder as steps.
pub(super) struct Chain<'a> {
    pub(super) steps: Vec<Step<'a>>,
}

impl<'a> Chain<'a> {
    pub(super) fn of(segments: &'a [Segment]) -> Self {
        let mut steps = Vec::new();
        for segment in segments {
            match &segment.body {
                Body::Conv(conv) => steps.push(Step::Conv(conv)),
                Body::Down(conv) => steps.push(Step::Down(conv)),
                Body::Up(conv) => steps.extend([Step::Up, Step::Conv(conv)]),
                Body::Out(parts) => {
                    steps.extend([Step::Norm(&parts.0, Activation::Silu), Step::Conv(&parts.1)]);
                }
                Body::Attention(_) => steps.push(Step::Whole(segment)),
                Body::Resnet(resnet) => {
                    let (norms, convs, shortcut) = resnet.parts();
                    steps.push(Step::Keep);
                    for (norm, conv) in norms.into_iter().zip(convs) {
                        steps.extend([Step::Norm(norm, Activation::Silu), Step::Conv(conv)]);
                    }
                    steps.push(Step::Add(shortcut));
                }
            }
        }
        Self { steps }
    }

    /// Statistics of nothing, for step `norm`.
    pub(super) fn empty(&self, norm: usize) -> Moments {
        match &self.steps[norm] {
            Step::Norm(norm, _) => Moments::new(norm.channels(), norm.groups()),
            _ => unreachable!("plans name norms"),
        }
    }

    /// Runs `steps` on one tile of what is kept before them.
    pub(super) fn forward(
        &self,
        kept: &State,
        steps: Range<usize>,
        tile: &Tile,
        norms: &[Option<Moments>],
    ) -> (State, Covered) {
        let mut grown = tile.grown;
        let part = |x: &Tensor<4>| {
            let [b, c, _, _] = x.dims();
            let (rows, columns) = (
                grown.top..grown.top + grown.height,
                grown.left..grown.left + grown.width,
            );
            x.clone().slice([0..b, 0..c, rows, columns])
        };
        let mut x = part(&kept.x);
        let mut residual = kept.residual.as_ref().map(part);
        for i in steps {
            x = match &self.steps[i] {
                Step::Conv(conv) => conv.forward(x),
                Step::Down(conv) => {
                    grown = grown.map(|side| side / 2);
                    conv.forward(x)
                }
                Step::Up => {
                    grown = grown.map(|side| 2 * side);
                    kernels::upsample_nearest2x(x)
                }
                Step::Norm(norm, activation) => {
                    let moments = norms[i]
                        .as_ref()
                        .expect("statistics are made before they are used");
                    normalized(x, norm, moments, *activation)
                }
                Step::Keep => {
                    residual = Some(x.clone());
                    x
                }
                Step::Add(shortcut) => {
                    let kept = residual.take().expect("remembered before");
                    let kept = match shortcut {
                        Some(conv) => conv.forward(kept),
                        None => kept,
                    };
                    kernels::add(kept, x)
                }
                Step::Whole(_) => unreachable!("stages of tiles end before it"),
            };
        }
        let core = tile.core_at(grown);
        (State { x, residual }, Covered { grown, core })
    }
}

/// `x` `[1, c, h, w]` normalized by these statistics.
fn normalized(
    x: Tensor<4>,
    norm: &GroupNorm,
    moments: &Moments,
    activation: Activation,
) -> Tensor<4> {
    let (shape, device) = (x.dims(), x.device());
    let [weight, bias] = norm.affine();
    let mut all = values(x);
    let plane = shape[2] * shape[3];
    let moments: Vec<_> = moments.per_channel(norm.eps()).collect();
    let channels = all.par_chunks_exact_mut(plane).zip(moments);
    let affine = weight.into_par_iter().zip(bias);
    channels
        .zip(affine)
        .for_each(|((values, (mean, rstd)), (w, b))| {
            // Centred first: a mean far from zero would cost the difference its digits.
            let (mean, scale) = (mean as f32, (rstd * f64::from(w)) as f32);
            values.iter_mut().for_each(|x| *x = (*x - mean) * scale + b);
        });
    let y = Tensor::from_data(TensorData::new(all, shape), (&device, DType::F32));
    match activation {
        Activation::None => y,
        Activation::Silu => kernels::silu(y),
    }
}
