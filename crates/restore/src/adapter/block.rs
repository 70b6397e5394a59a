//! The Adapter Block in its four designs.

use burn::tensor::Tensor;
use priors::{
    nn::{Conv2d, GroupNorm},
    weights::Weights,
};

use super::BlockKind;
use crate::Error;

/// Epsilon of the adapter's norms.
const EPS: f64 = 1e-5;

/// Convolutions with SiLU before each but a bare first one; a norm first unless the input is the latent.
#[derive(Clone, Debug)]
pub(super) struct Block {
    norm: Option<GroupNorm>,
    convs: Vec<Conv2d>,
}

/// Whether a block's input is a feature, which is normalized and activated first, or the raw latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Feature,
    Latent,
}

impl Block {
    /// The block type's own shape, from `c_in` to `c` channels.
    pub(super) fn new(
        w: &Weights,
        kind: BlockKind,
        c_in: usize,
        c: usize,
        groups: usize,
        input: Input,
    ) -> Result<Self, Error> {
        let shape: Vec<(usize, usize, usize)> = match kind {
            BlockKind::D1 | BlockKind::D2 => vec![(c_in, c, 3), (c, c, 1)],
            BlockKind::D3 => vec![(c_in, c / 2, 3), (c / 2, c / 2, 3), (c / 2, c, 1)],
            BlockKind::D4 => vec![(c_in, c, 3)],
        };
        Self::of(w, c_in, &shape, groups, input)
    }

    /// Convolutions of `(c_in, c_out, kernel)`.
    pub(super) fn of(
        w: &Weights,
        c_in: usize,
        shape: &[(usize, usize, usize)],
        groups: usize,
        input: Input,
    ) -> Result<Self, Error> {
        let norm = || GroupNorm::new(&w.at("norm"), groups, c_in, EPS);
        let conv = |(i, &(a, b, kernel)): (usize, &(usize, usize, usize))| {
            Conv2d::new(&w.at(format!("convs.{i}")), a, b, kernel)
        };
        Ok(Self {
            norm: (input == Input::Feature).then(norm).transpose()?,
            convs: shape
                .iter()
                .enumerate()
                .map(conv)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Applies the block to `x` `[b, c_in, h, w]`.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = match &self.norm {
            Some(norm) => norm.silu(x),
            None => x,
        };
        for (i, conv) in self.convs.iter().enumerate() {
            if i > 0 {
                x = kernels::silu(x);
            }
            x = conv.forward(x);
        }
        x
    }
}
