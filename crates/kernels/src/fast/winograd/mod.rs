//! 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3): a quarter of the products.
//!
//! Tiles of 6x6 input values, 4 apart, and the kernels are transformed to 36 points each; at every point the outputs are a
//! matrix product over the input's channels; its transform back gives 4x4 outputs. The transformed operands are written in
//! the order in which the product's inner loop (`gemm::micro`) reads them, tiles and kernels a part of bounded size at a time.
//!
//! An error of f32 grows to about three times that of a direct sum, and what is not finite reaches all 4x4 outputs of the tiles
//! that hold it. Source: Lavin and Gray, 1509.09308; the points after Barabasz et al., 1803.10986.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

mod transform;

use std::ops::Range;

use burn::tensor::{bf16, f16};
use rayon::prelude::*;

use self::transform::{POINTS, SIDE, STEP};
use super::{
    conv::ConvShape,
    gemm::micro::{self, Block, Micro, Start},
    isa::Isa,
    kept::Kept,
    packed::{Lanes, Rows, WeightOrder, even_parts},
    pairs::{Kernel, Products},
    shared::{Scratch, Shared, unwritten, with_scratch},
    simd::{Job, Simd, dispatch},
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

/// Which kernels are transformed, and where they go.
struct Place {
    outputs: Range<usize>,
    channels: Range<usize>,
    /// The input channel at the start of a point, and channels of a point.
    first_channel: usize,
    depth: usize,
}

/// Transforms kernels to `[point, input channel, output channel]`.
///
/// # Safety
/// `POINTS * depth * outputs` values from `to` on are valid, and those of these channels no one else's.
unsafe fn transform_kernels(
    isa: Isa,
    weight: Stored<'_>,
    order: &WeightOrder,
    place: Place,
    to: *mut f32,
) {
    macro_rules! transform {
        ($weight:expr, $widen:expr) => {{
            let (weight, widen) = ($weight, $widen);
            dispatch(
                isa,
                TransformKernels {
                    weight,
                    widen,
                    order,
                    place,
                    to,
                },
            )
        }};
    }
    match weight {
        Stored::F32(w) => transform!(w, |x: f32| x),
        Stored::Bf16(w) => transform!(w, bf16::to_f32),
        Stored::F16(w) => transform!(w, f16::to_f32),
    }
}

/// The most tiles of a panel, and the most lanes, of any instruction set.
const MOST: usize = 32;

/// Some channels of a panel of tiles.
struct TransformTiles<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    corners: &'a [Corner],
    channels: Range<usize>,
    /// Values between points.
    stride: usize,
    /// The panel, `[point, channel, tile]`.
    to: *mut f32,
}

impl Job for TransformTiles<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [c_in, h, w] = self.shape.input;
        let width = 2 * S::LANES;
        assert!(width <= MOST && self.corners.len() <= width);
        let mut d = [[0.0f32; MOST]; POINTS];
        for channel in self.channels {
            for (lane, corner) in self.corners.iter().enumerate() {
                let plane = &self.x[(corner.image * c_in + channel) * h * w..][..h * w];
                let inside = corner.y >= 0
                    && corner.x >= 0
                    && corner.y as usize + SIDE <= h
                    && corner.x as usize + SIDE <= w;
                if inside {
                    let from = corner.y as usize * w + corner.x as usize;
                    for (r, to) in d.chunks_exact_mut(SIDE).enumerate() {
                        let row = &plane[from + r * w..from + r * w + SIDE];
                        for (to, x) in to.iter_mut().zip(row) {
                            to[lane] = *x;
                        }
                    }
                } else {
                    for (r, to) in d.chunks_exact_mut(SIDE).enumerate() {
                        let y = corner.y + r as isize;
                        for (c, to) in to.iter_mut().enumerate() {
                            let x = corner.x + c as isize;
                            let there =
                                (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
                            to[lane] = if there {
                                plane[y as usize * w + x as usize]
                            } else {
                                0.0
                            };
                        }
                    }
                }
            }
            for first in [0, S::LANES] {
                let mut tile = [[s.splat(0.0); SIDE]; SIDE];
                for (r, row) in tile.iter_mut().enumerate() {
                    for (c, v) in row.iter_mut().enumerate() {
                        // SAFETY: a row of `d` holds two vectors.
                        *v = unsafe { s.load(d[r * SIDE + c].as_ptr().add(first)) };
                    }
                }
                let tile = transform::input(s, tile);
                for (r, row) in tile.iter().enumerate() {
                    for (c, v) in row.iter().enumerate() {
                        let at = (r * SIDE + c) * self.stride + channel * width + first;
                        // SAFETY: the panel has `POINTS * stride` values.
                        unsafe { s.store(self.to.add(at), *v) };
                    }
                }
            }
        }
    }
}

/// Some input channels of a block of kernels.
struct TransformKernels<'a, T, F> {
    weight: &'a [T],
    widen: F,
    order: &'a WeightOrder,
    place: Place,
    to: *mut f32,
}

impl<T: Copy, F: Fn(T) -> f32> Job for TransformKernels<'_, T, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [co_stride, ci_stride] = self.order.strides;
        let Place {
            outputs,
            channels,
            first_channel,
            depth,
        } = self.place;
        let rows = outputs.len();
        assert!(rows <= S::LANES && S::LANES <= MOST);
        assert!(channels.start >= first_channel && channels.end - first_channel <= depth);
        let mut g = [[0.0f32; MOST]; 9];
        for channel in channels {
            for (lane, output) in outputs.clone().enumerate() {
                let from = &self.weight[output * co_stride + channel * ci_stride..];
                for (to, &tap) in g.iter_mut().zip(&self.order.taps) {
                    to[lane] = (self.widen)(from[tap]);
                }
            }
            let mut kernel = [[s.splat(0.0); 3]; 3];
            for (r, row) in kernel.iter_mut().enumerate() {
                for (c, v) in row.iter_mut().enumerate() {
                    // SAFETY: a row of `g` holds a vector.
                    *v = unsafe { s.load(g[r * 3 + c].as_ptr()) };
                }
            }
            let kernel = transform::kernel(s, kernel);
            for (r, row) in kernel.iter().enumerate() {
                for (c, v) in row.iter().enumerate() {
                    let at = ((r * SIDE + c) * depth + channel - first_channel) * rows;
                    // SAFETY: `transform_kernels`' caller promised the values.
                    unsafe { s.store_part(self.to.add(at), *v, rows) };
                }
            }
        }
    }
}

/// A task's products to outputs.
struct TransformBack<'a> {
    plan: &'a Plan<'a>,
    /// `[point, row, tile]`.
    products: &'a [f32],
    rows: usize,
    /// Tiles of a row, with those that fill the last panel.
    stride: usize,
    first_row: usize,
    first_tile: usize,
    y: &'a Shared,
}

impl Job for TransformBack<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plan = self.plan;
        let [c_out, oh, ow] = plan.shape.output;
        let [grid_rows, grid_cols] = plan.grid;
        let tiles = self.stride.min(plan.tiles - self.first_tile);
        assert!(self.products.len() >= POINTS * self.rows * self.stride && S::LANES <= MOST);
        let mut lanes = [[0.0f32; MOST]; STEP * STEP];
        for row in 0..self.rows {
            let channel = self.first_row + row;
            let bias = plan.bias.map_or(0.0, |bias| bias[channel]);
            for t0 in (0..tiles).step_by(S::LANES) {
                let mut products = [[s.splat(0.0); SIDE]; SIDE];
                for (r, to) in products.iter_mut().enumerate() {
                    for (c, v) in to.iter_mut().enumerate() {
                        let at = ((r * SIDE + c) * self.rows + row) * self.stride + t0;
                        // SAFETY: a row's length is a multiple of the lanes.
                        *v = unsafe { s.load(self.products.as_ptr().add(at)) };
                    }
                }
                let outputs = transform::output(s, products);
                for (r, from) in outputs.iter().enumerate() {
                    for (c, v) in from.iter().enumerate() {
                        let v = s.add(*v, s.splat(bias));
                        // SAFETY: a row of `lanes` holds a vector.
                        unsafe { s.store(lanes[r * STEP + c].as_mut_ptr(), v) };
                    }
                }
                for lane in 0..S::LANES.min(tiles - t0) {
                    let tile = self.first_tile + t0 + lane;
                    let image = tile / (grid_rows * grid_cols);
                    let (y0, x0) = (tile / grid_cols % grid_rows * STEP, tile % grid_cols * STEP);
                    let columns = STEP.min(ow - x0);
                    for r in 0..STEP.min(oh - y0) {
                        let at = ((image * c_out + channel) * oh + y0 + r) * ow + x0;
                        // SAFETY: these outputs belong to this tile alone.
                        let to = unsafe {
                            let to = self.y.at(at, columns);
                            std::slice::from_raw_parts_mut(to, columns)
                        };
                        for (c, to) in to.iter_mut().enumerate() {
                            *to = lanes[r * STEP + c][lane];
                        }
                    }
                }
            }
        }
    }
}
