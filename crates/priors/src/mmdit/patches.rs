//! Latents to tokens and back: patch embedding with a cropped table of positions (`PatchEmbed`).

use burn::tensor::{FloatDType, Tensor};
use kernels::Padding;

use super::MmDitConfig;
use crate::{
    Error,
    nn::Conv2d,
    weights::{Init, Weights},
};

/// Patches and their positions.
#[derive(Clone, Debug)]
pub(super) struct Patches {
    proj: Conv2d,
    /// `[1, side side, d]`, row by row.
    table: Tensor<3>,
    side: usize,
}

impl Patches {
    pub(super) fn new(w: &Weights, config: &MmDitConfig) -> Result<Self, Error> {
        let (c, d, p) = (config.in_channels, config.width(), config.patch_size);
        let init = Init::fan_in(c * p * p);
        let side = config.pos_embed_max_size;
        Ok(Self {
            proj: Conv2d::with(&w.at("proj"), c, d, p, p, Padding::same(0), init)?,
            table: w.tensor("pos_embed", [1, side * side, d], Init::Normal(0.02))?,
            side,
        })
    }

    /// Tokens `[b, n, d]` of `x` `[b, c, h, w]`, without positions, and how many rows and columns of them.
    pub(super) fn tokens(&self, x: Tensor<4>) -> (Tensor<3>, [usize; 2]) {
        let y = self.proj.forward(x);
        let [b, d, h, w] = y.dims();
        (y.reshape([b, d, h * w]).swap_dims(1, 2), [h, w])
    }

    /// The positions `[1, h w, d]` of a grid in the middle of the table.
    pub(super) fn positions(&self, [h, w]: [usize; 2]) -> Tensor<3> {
        let side = self.side;
        assert!(h.max(w) <= side, "{h}x{w} tokens, at most {side} a side");
        let d = self.table.dims()[2];
        let (top, left) = ((side - h) / 2, (side - w) / 2);
        let rows = self.table.clone().narrow(1, top * side, h * side);
        rows.reshape([h, side, d])
            .narrow(1, left, w)
            .cast(FloatDType::F32)
            .reshape([1, h * w, d])
    }
}

/// Tokens `[b, h w, p p c]` to `[b, c, h p, w p]`.
pub(super) fn unpatchify(x: Tensor<3>, [h, w]: [usize; 2], p: usize) -> Tensor<4> {
    let [b, _, width] = x.dims();
    let c = width / (p * p);
    x.reshape([b, h, w, p, p, c])
        .permute([0, 5, 1, 3, 2, 4])
        .reshape([b, c, h * p, w * p])
}
