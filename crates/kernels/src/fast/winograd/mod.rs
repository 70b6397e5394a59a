//! 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3): a quarter of the products.
//!
//! Tiles of 6x6 input values, 4 apart, and the kernels are transformed to 36 points each; at every point the outputs are a
//! matrix product over the input's channels; its transform back gives 4x4 outputs. The transformed operands are written in
//! the order in which the product's inner loop (`gemm::micro`) reads them, tiles and kernels a part of bounded size at a time.
//!
//! The error is two to three times that of a direct sum where this is used (32 to 384 channels: below 1.5e-6 of the norm),
//! and what is not finite reaches all 4x4 outputs of the tiles that hold it. Source: Lavin and Gray, 1509.09308; that the
//! points decide the error: Barabasz et al., 1803.10986.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

mod jobs;
mod transform;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    jobs::{Place, TransformBack, TransformTiles, transform_kernels},
    transform::{POINTS, STEP},
};
use super::{
    conv::ConvShape,
    gemm::micro::{self, Block, Micro, Start},
    isa::Isa,
    kept::Kept,
    packed::{Lanes, Rows, WeightOrder, even_parts},
    pairs::{Kernel, Products},
    shared::{Scratch, Shared, unwritten, with_scratch},
    simd::dispatch,
    stored::Stored,
};

/// Channels of a chunk of the sums, as in matrix products.
const CHUNK: usize = 256;
/// Values of transformed tiles, or of transformed kernels, that are kept at a time.
pub(super) const PART: usize = 6 << 20;
/// Values of a task's products: they stay in the second-level cache.
const PRODUCTS: usize = 160 * 1024;
/// Tiles up to which a task takes all of them, so that each kernel is transformed where it is used.
const FEW: usize = 128;
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
    plan.run(x, weight, order, &mut y);
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

/// Where a tile's inputs begin; outside the picture they are zero.
#[derive(Clone, Copy)]
struct Corner {
    image: usize,
    y: isize,
    x: isize,
}

impl Plan<'_> {
    fn channels(&self) -> usize {
        self.shape.input[0]
    }

    /// Values of a panel at a point: its tiles in all channels, and a cache line so that points fall into different sets.
    fn tile_stride(&self) -> usize {
        self.channels() * self.width + 16
    }

    fn run(&self, x: &[f32], weight: Stored<'_>, order: &WeightOrder, y: &mut [f32]) {
        let panels = self.tiles.div_ceil(self.width);
        let most_panels = (PART / (POINTS * self.tile_stride())).clamp(1, panels);
        // SAFETY: the transform writes what is read.
        let mut tiles = unsafe { Kept::new(POINTS * self.tile_stride() * most_panels) };
        let y = Shared::new(y);
        if panels <= FEW / self.width && panels == most_panels {
            self.transform_tiles(0..panels, x, tiles.get_mut());
            let kernels = Kernels::Raw(weight, order);
            return self.multiply(0..self.blocks.len(), 0..panels, kernels, tiles.get(), &y);
        }
        let each = POINTS * self.channels();
        let most_blocks = (PART / (each * self.blocks[0])).clamp(1, self.blocks.len());
        let rows: usize = self.blocks[..most_blocks].iter().sum();
        // SAFETY: as above.
        let mut kernels = unsafe { Kept::new(each * rows) };
        let mut held = 0..0;
        for p0 in (0..panels).step_by(most_panels) {
            let part = p0..panels.min(p0 + most_panels);
            self.transform_tiles(part.clone(), x, tiles.get_mut());
            for b0 in (0..self.blocks.len()).step_by(most_blocks) {
                let group = b0..self.blocks.len().min(b0 + most_blocks);
                if held != group {
                    self.transform_kernels(group.clone(), weight, order, kernels.get_mut());
                    held = group.clone();
                }
                let kernels = Kernels::Transformed(kernels.get());
                self.multiply(group, part.clone(), kernels, tiles.get(), &y);
            }
        }
    }

    fn corner(&self, tile: usize) -> Corner {
        let [rows, cols] = self.grid;
        let (image, row, col) = (tile / (rows * cols), tile / cols % rows, tile % cols);
        Corner {
            image,
            y: (row * STEP) as isize - self.shape.before[0],
            x: (col * STEP) as isize - self.shape.before[1],
        }
    }

    /// `[panel, point, channel, tile]`.
    fn transform_tiles(&self, panels: Range<usize>, x: &[f32], to: &mut [f32]) {
        let c_in = self.channels();
        let stride = self.tile_stride();
        let each = POINTS * stride;
        let out = Shared::new(&mut to[..panels.len() * each]);
        let parts = c_in.div_ceil(CHANNELS);
        (0..panels.len() * parts).into_par_iter().for_each(|task| {
            let (panel, part) = (task / parts, task % parts);
            let first = (panels.start + panel) * self.width;
            let corners: Vec<Corner> = (first..self.tiles.min(first + self.width))
                .map(|tile| self.corner(tile))
                .collect();
            let channels = part * CHANNELS..c_in.min((part + 1) * CHANNELS);
            // SAFETY: this panel's values of these channels are this task's alone.
            let to = unsafe { out.at(panel * each, each) };
            let job = TransformTiles {
                shape: self.shape,
                x,
                corners: &corners,
                channels,
                stride,
                to,
            };
            dispatch(self.isa, job);
        });
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

    /// Some channels of some blocks, `[block, point, input channel, output channel]`.
    fn transform_chunk(
        &self,
        blocks: Range<usize>,
        channels: Range<usize>,
        weight: Stored<'_>,
        order: &WeightOrder,
        to: &mut [f32],
    ) {
        let mut rest = to;
        for block in blocks {
            let (first, rows) = (self.starts[block], self.blocks[block]);
            let (part, tail) = rest.split_at_mut(POINTS * channels.len() * rows);
            let place = Place {
                outputs: first..first + rows,
                channels: channels.clone(),
                first_channel: channels.start,
                depth: channels.len(),
            };
            // SAFETY: `part` is of that length.
            unsafe { transform_kernels(self.isa, weight, order, place, part.as_mut_ptr()) };
            rest = tail;
        }
    }

    /// The transformed kernels times the transformed tiles, transformed back.
    fn multiply(
        &self,
        blocks: Range<usize>,
        panels: Range<usize>,
        kernels: Kernels<'_>,
        tiles: &[f32],
        y: &Shared,
    ) {
        let wanted = 4 * rayon::current_num_threads();
        let whole = matches!(kernels, Kernels::Raw(..));
        let mut per_n = if whole {
            panels.len()
        } else {
            (128 / self.width).clamp(1, panels.len())
        };
        let most = PRODUCTS / (POINTS * self.width * self.blocks[0]);
        let mut per_m = (most / per_n).clamp(1, blocks.len());
        while per_m > 1 && blocks.len().div_ceil(per_m) * panels.len().div_ceil(per_n) < wanted {
            per_m -= 1;
        }
        while !whole
            && per_n > 1
            && blocks.len().div_ceil(per_m) * panels.len().div_ceil(per_n) < wanted
        {
            per_n -= 1;
        }
        let (m_tasks, n_tasks) = (blocks.len().div_ceil(per_m), panels.len().div_ceil(per_n));
        (0..m_tasks * n_tasks).into_par_iter().for_each(|task| {
            let (m_task, n_task) = (task / n_tasks, task % n_tasks);
            let at = blocks.start + m_task * per_m;
            let rows = at..blocks.end.min(at + per_m);
            let at = panels.start + n_task * per_n;
            let columns = at..panels.end.min(at + per_n);
            self.task(rows, columns, blocks.start, panels.start, kernels, tiles, y);
        });
    }

    /// Some blocks of output channels of some panels of tiles.
    #[expect(clippy::too_many_arguments, reason = "one call, from a loop")]
    fn task(
        &self,
        blocks: Range<usize>,
        panels: Range<usize>,
        first_block: usize,
        first_panel: usize,
        kernels: Kernels<'_>,
        tiles: &[f32],
        y: &Shared,
    ) {
        let (c_in, width) = (self.channels(), self.width);
        let rows: usize = self.blocks[blocks.clone()].iter().sum();
        let stride = panels.len() * width;
        let room = match kernels {
            Kernels::Transformed(_) => 0,
            Kernels::Raw(..) => POINTS * rows * self.chunk,
        };
        with_scratch(
            Scratch::Products,
            POINTS * rows * stride + room,
            |scratch| {
                let (products, room) = scratch.split_at_mut(POINTS * rows * stride);
                let out = Shared::new(products);
                // Kernels that are transformed here are so a chunk at a time; else a point's products stay in the cache.
                let pass = match kernels {
                    Kernels::Transformed(_) => c_in,
                    Kernels::Raw(..) => self.chunk,
                };
                for c0 in (0..c_in).step_by(pass) {
                    let kept = c0..c_in.min(c0 + pass);
                    let (kernels, first) = match kernels {
                        Kernels::Transformed(kernels) => (kernels, self.starts[first_block]),
                        Kernels::Raw(weight, order) => {
                            self.transform_chunk(blocks.clone(), kept.clone(), weight, order, room);
                            (&*room, self.starts[blocks.start])
                        }
                    };
                    let from = Multiplied {
                        kernels,
                        first,
                        kept,
                        tiles,
                        first_panel,
                    };
                    for point in 0..POINTS {
                        self.multiply_point(point, &from, blocks.clone(), panels.clone(), &out);
                    }
                }
                let job = TransformBack {
                    plan: self,
                    products: &*products,
                    rows,
                    stride,
                    first_row: self.starts[blocks.start],
                    first_tile: panels.start * width,
                    y,
                };
                dispatch(self.isa, job);
            },
        );
    }

    /// Adds the products of a task's kernels and tiles at a point to `out` `[point, output channel, tile]`.
    fn multiply_point(
        &self,
        point: usize,
        from: &Multiplied<'_>,
        blocks: Range<usize>,
        panels: Range<usize>,
        out: &Shared,
    ) {
        let width = self.width;
        let rows: usize = self.blocks[blocks.clone()].iter().sum();
        let stride = panels.len() * width;
        let kept = &from.kept;
        for k0 in kept.clone().step_by(self.chunk) {
            let depth = self.chunk.min(kept.end - k0);
            for (i, panel) in panels.clone().enumerate() {
                let operands: Vec<Block<'_>> = (blocks.clone())
                    .map(|block| {
                        let (start, here) = (self.starts[block], self.blocks[block]);
                        let at = (start - from.first) * POINTS * kept.len()
                            + (point * kept.len() + k0 - kept.start) * here;
                        let row = point * rows + start - self.starts[blocks.start];
                        let count = (here - 1) * stride + width;
                        Block {
                            a: &from.kernels[at..at + depth * here],
                            rows: here,
                            // SAFETY: the products are this task's alone.
                            c: unsafe { out.at(row * stride + i * width, count) },
                            start: if k0 == 0 { Start::Zero } else { Start::Output },
                        }
                    })
                    .collect();
                let at = ((panel - from.first_panel) * POINTS + point) * self.tile_stride();
                let b = &from.tiles[at + k0 * width..at + (k0 + depth) * width];
                let micro = Micro {
                    blocks: &operands,
                    b,
                    width,
                    columns: width.min(self.tiles - panel * width),
                    c_stride: stride,
                    k0,
                    depth,
                    padded: self.channels(),
                    next: b.as_ptr().wrapping_add(POINTS * self.tile_stride()),
                };
                // SAFETY: the blocks' outputs are valid, as just checked, and no one else's.
                unsafe { micro::run(self.isa, Kernel::Single, &micro) };
            }
        }
    }
}

/// What a task multiplies.
struct Multiplied<'a> {
    /// `[block, point, kept channel, output channel]`.
    kernels: &'a [f32],
    /// Their first output channel.
    first: usize,
    /// The input channels they have.
    kept: Range<usize>,
    /// `[panel, point, channel, tile]`.
    tiles: &'a [f32],
    first_panel: usize,
}

/// The weight, as it is or transformed.
#[derive(Clone, Copy)]
enum Kernels<'a> {
    /// Of some blocks, `[block, point, input channel, output channel]`.
    Transformed(&'a [f32]),
    /// Tasks transform what they need, where each kernel is needed by one task alone.
    Raw(Stored<'a>, &'a WeightOrder),
}
