//! Gradients through an autoencoder's halves piece by piece: the memory of one piece's tape and of what enters each.
//!
//! A half is walked without a tape first. Then, from the gradient of its end, each piece is walked again on a tape of its own,
//! the last first, as [`walk`](crate::walk) does with a prior.

use std::ops::Range;

use burn::tensor::{Gradients, Tensor};
use priors::{
    vae::{AutoencoderKl, Chain},
    weights::Weights,
};

use crate::{
    optimise::{Named, add_to},
    walk::leaf,
};

/// An autoencoder without a tape, and the same over the leaves of what trains.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) plain: &'a AutoencoderKl,
    pub(super) taped: &'a AutoencoderKl,
}

/// What is walked, and the gradients so far.
pub(super) struct Pieces<'a> {
    count: usize,
    weights: &'a Weights,
    gradients: Named,
}

/// What enters each piece of a half that was walked.
pub(super) struct Walked<'a> {
    taped: Chain<'a>,
    entering: Vec<(Range<usize>, Tensor<4>)>,
}

impl<'a> Pieces<'a> {
    /// In so many pieces, at least one; `weights` are what trains.
    pub(super) fn new(count: usize, weights: &'a Weights) -> Self {
        Self {
            count: count.max(1),
            weights,
            gradients: Named::new(),
        }
    }

    /// The moments of pictures `[b, 3, h, w]`, as a leaf, and the way there.
    pub(super) fn encode<'b>(&self, of: Pair<'b>, image: Tensor<4>) -> (Tensor<4>, Walked<'b>) {
        let x = of.plain.folded(image);
        self.walk(of.plain.encoder(), of.taped.encoder(), x)
    }

    /// The pictures, still folded, of an unscaled latent `[b, c, h, w]`, as a leaf, and the way there.
    pub(super) fn decode<'b>(&self, of: Pair<'b>, z: Tensor<4>) -> (Tensor<4>, Walked<'b>) {
        self.walk(of.plain.decoder(), of.taped.decoder(), z)
    }

    fn walk<'b>(
        &self,
        plain: Chain<'_>,
        taped: Chain<'b>,
        x: Tensor<4>,
    ) -> (Tensor<4>, Walked<'b>) {
        let n = plain.segments();
        let pieces = self.count.min(n);
        let mut x = x.without_autodiff();
        let mut entering = Vec::new();
        for piece in 0..pieces {
            let range = piece * n / pieces..(piece + 1) * n / pieces;
            entering.push((range.clone(), x.clone()));
            x = plain.forward(range, x);
        }
        (leaf(&mut x), Walked { taped, entering })
    }

    /// Adds the gradients of what trains on the way that was walked to the end's `gradient`; the gradient of what entered.
    pub(super) fn back(&mut self, walked: Walked<'_>, gradient: Tensor<4>) -> Tensor<4> {
        let Walked { taped, entering } = walked;
        entering
            .into_iter()
            .rev()
            .fold(gradient, |gradient, (range, mut x)| {
                let x = leaf(&mut x);
                let y = taped.forward(range, x.clone());
                let mut tape = (y * gradient).sum().backward();
                let below = x.grad_remove(&mut tape);
                self.collect(&mut tape);
                below.expect("a chain's end depends on its beginning")
            })
    }

    /// Adds the gradients of what trains on this tape.
    fn collect(&mut self, tape: &mut Gradients) {
        add_to(&mut self.gradients, self.weights.gradients(tape));
    }

    /// The sum of all gradients.
    pub(super) fn finish(self) -> Named {
        self.gradients
    }
}

/// The sum of gradients of which some may be missing.
pub(super) fn sum(gradients: impl IntoIterator<Item = Option<Tensor<4>>>) -> Option<Tensor<4>> {
    gradients.into_iter().flatten().reduce(|a, b| a + b)
}

/// The gradient of `x` through `f`, on a tape of its own, from that of `f(x)`.
pub(super) fn through(
    x: &Tensor<4>,
    f: impl FnOnce(Tensor<4>) -> Tensor<4>,
    gradient: Tensor<4>,
) -> Tensor<4> {
    let x = leaf(&mut x.clone());
    let mut tape = (f(x.clone()) * gradient).sum().backward();
    x.grad_remove(&mut tape)
        .expect("what f gives depends on it")
}
