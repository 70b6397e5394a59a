//! All tiles of a part are transformed, then multiplied: for many channels, or few tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    super::{
        gemm::micro::{self, Block, Micro, Start},
        kept::Kept,
        packed::WeightOrder,
        pairs::Kernel,
        shared::{Scratch, Shared, with_scratch},
        simd::dispatch,
        stored::Stored,
    },
    CHANNELS, PART, Plan,
    jobs::{Place, TransformBack, TransformTiles, transform_kernels},
    transform::POINTS,
};

/// Values of a task's products: they stay in the second-level cache.
const PRODUCTS: usize = 160 * 1024;
/// Tiles up to which a task takes all of them, so that each kernel is transformed where it is used.
const FEW: usize = 128;

impl Plan<'_> {
    pub(super) fn run_staged(
        &self,
        x: &[f32],
        weight: Stored<'_>,
        order: &WeightOrder,
        y: &Shared,
    ) {
        let panels = self.tiles.div_ceil(self.width);
        let most_panels = (PART / (POINTS * self.tile_stride())).clamp(1, panels);
        // SAFETY: the transform writes what is read.
        let mut tiles = unsafe { Kept::new(POINTS * self.tile_stride() * most_panels) };
        if panels <= FEW / self.width && panels == most_panels {
            self.transform_tiles(0..panels, x, tiles.get_mut());
            let kernels = Kernels::Raw(weight, order);
            return self.multiply(0..self.blocks.len(), 0..panels, kernels, tiles.get(), y);
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
                self.multiply(group, part.clone(), kernels, tiles.get(), y);
            }
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
            let runs = self.runs(first..first + self.width);
            let channels = part * CHANNELS..c_in.min((part + 1) * CHANNELS);
            // SAFETY: this panel's values of these channels are this task's alone.
            let to = unsafe { out.at(panel * each, each) };
            let job = TransformTiles {
                shape: self.shape,
                x,
                runs: &runs,
                channels,
                stride,
                to,
            };
            dispatch(self.isa, job);
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
                    depth,
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
