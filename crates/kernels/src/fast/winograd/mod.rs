//! 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3): a quarter of the products.
//!
//! Tiles of 6x6 input values, 4 apart, and the kernels are transformed to 36 points each; at every point the outputs are a
//! matrix product over the input's channels; its transform back gives 4x4 outputs. The transformed operands are written in
//! the order in which the product's inner loop (`gemm::micro`) reads them. Where a panel of tiles in all channels fits the
//! second-level cache, a task does all three steps of it (`fused`); else tiles and kernels are transformed a part of bounded
//! size at a time and then multiplied (`staged`).
//!
//! The error is two to three times that of a direct sum where this is used (32 to 384 channels: below 1.5e-6 of the norm),
//! and what is not finite reaches all 4x4 outputs of the tiles that hold it. Source: Lavin and Gray, 1509.09308; that the
//! points decide the error: Barabasz et al., 1803.10986.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

mod fused;
mod jobs;
mod staged;
mod transform;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    jobs::{Place, transform_kernels},
    transform::{POINTS, STEP},
};
use super::{
    conv::ConvShape,
    isa::Isa,
    packed::{Lanes, Rows, WeightOrder, even_parts},
    pairs::Products,
    shared::{Shared, unwritten},
    simd::dispatch,
    stored::Stored,
};

/// Channels of a chunk of the sums, as in matrix products.
pub(super) const CHUNK: usize = 256;
/// Values of transformed tiles, or of transformed kernels, that are kept at a time.
pub(super) const PART: usize = 6 << 20;
/// Input channels that a task transforms.
const CHANNELS: usize = 32;

/// Whether the transforms cost less than the products they save.
pub(super) fn pays(shape: &ConvShape) -> bool {
    let [c_in, ..] = shape.input;
    let [c_out, oh, ow] = shape.output;
    let tiles = shape.batch * oh.div_ceil(STEP) * ow.div_ceil(STEP);
    let wasted = shape.batch * oh * ow < 9 * tiles;
    shape.kernel == [3, 3]
        && shape.stride == 1
        && shape.products == Products::F32
        && c_in.min(c_out) >= 32
        && tiles >= 16
        && !wasted
}

/// The convolution of `x` with a weight `[c_out, c_in, 3, 3]` that lies in `order`, plus the bias: `[b, c_out, oh, ow]`.
pub(super) fn run(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    order: &WeightOrder,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    run_with(isa, shape, x, (weight, order), bias, None)
}

/// As [`run`]; `fused` says whether a task does all steps of a panel, and changes no bits up to [`CHUNK`] channels.
pub(super) fn run_with(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    (weight, order): (Stored<'_>, &WeightOrder),
    bias: Option<&[f32]>,
    fused: Option<bool>,
) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    assert!(shape.kernel == [3, 3] && shape.stride == 1 && order.taps.len() == 9);
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert!(bias.is_none_or(|bias| bias.len() == c_out));
    let len = shape.batch * c_out * oh * ow;
    if len == 0 || c_in == 0 {
        return vec![0.0; len];
    }
    let blocks = even_parts(c_out, c_out.div_ceil(dispatch(isa, Rows)));
    let starts = (blocks.iter())
        .scan(0, |at, size| Some(std::mem::replace(at, *at + size)))
        .collect();
    let grid = [oh.div_ceil(STEP), ow.div_ceil(STEP)];
    let plan = Plan {
        isa,
        shape,
        grid,
        tiles: shape.batch * grid[0] * grid[1],
        width: 2 * dispatch(isa, Lanes),
        chunk: c_in.div_ceil(c_in.div_ceil(CHUNK)),
        blocks,
        starts,
        bias,
    };
    // SAFETY: every output is in one tile, and every tile is written.
    let mut y = unsafe { unwritten(len) };
    let out = Shared::new(&mut y);
    if fused.unwrap_or_else(|| plan.is_fused()) {
        plan.run_fused(x, weight, order, &out);
    } else {
        plan.run_staged(x, weight, order, &out);
    }
    y
}

/// A convolution and how it is cut.
struct Plan<'a> {
    isa: Isa,
    shape: &'a ConvShape,
    /// Rows and columns of tiles.
    grid: [usize; 2],
    /// Tiles of all images.
    tiles: usize,
    /// Tiles of a panel.
    width: usize,
    /// Channels of a chunk.
    chunk: usize,
    /// Output channels that the kernel takes at a time, and the first of each.
    blocks: Vec<usize>,
    starts: Vec<usize>,
    bias: Option<&'a [f32]>,
}

/// Neighbouring tiles of a row of an image's grid, in neighbouring lanes of a panel and of one vector.
#[derive(Clone, Copy)]
struct Run {
    /// The first tile's lane in the panel.
    lane: usize,
    tiles: usize,
    image: usize,
    /// Where the first tile's outputs begin.
    y: usize,
    x: usize,
}

impl Plan<'_> {
    fn channels(&self) -> usize {
        self.shape.input[0]
    }

    /// Values of a panel at a point: its tiles in all channels, and a cache line so that points fall into different sets.
    fn tile_stride(&self) -> usize {
        self.channels() * self.width + 16
    }

    /// The tiles that are in a range and in a picture, a run for each row of a grid and each vector.
    fn runs(&self, tiles: Range<usize>) -> Vec<Run> {
        let ([rows, cols], lanes) = (self.grid, self.width / 2);
        let end = tiles.end.min(self.tiles);
        let (mut runs, mut tile) = (Vec::new(), tiles.start);
        while tile < end {
            let (col, lane) = (tile % cols, tile - tiles.start);
            let count = (cols - col).min(lanes - lane % lanes).min(end - tile);
            runs.push(Run {
                lane,
                tiles: count,
                image: tile / (rows * cols),
                y: tile / cols % rows * STEP,
                x: col * STEP,
            });
            tile += count;
        }
        runs
    }

    /// `[block, point, input channel, output channel]`.
    fn transform_kernels(
        &self,
        blocks: Range<usize>,
        weight: Stored<'_>,
        order: &WeightOrder,
        to: &mut [f32],
    ) {
        let c_in = self.channels();
        let before = self.starts[blocks.start];
        let rows: usize = self.blocks[blocks.clone()].iter().sum();
        let out = Shared::new(&mut to[..rows * POINTS * c_in]);
        let parts = c_in.div_ceil(CHANNELS);
        (0..blocks.len() * parts).into_par_iter().for_each(|task| {
            let (block, part) = (blocks.start + task / parts, task % parts);
            let (first, rows) = (self.starts[block], self.blocks[block]);
            let channels = part * CHANNELS..c_in.min((part + 1) * CHANNELS);
            let each = POINTS * c_in * rows;
            // SAFETY: this block's values of these channels are this task's alone.
            let to = unsafe { out.at((first - before) * POINTS * c_in, each) };
            let place = Place {
                outputs: first..first + rows,
                channels,
                first_channel: 0,
                depth: c_in,
            };
            // SAFETY: as above.
            unsafe { transform_kernels(self.isa, weight, order, place, to) };
        });
    }
}
