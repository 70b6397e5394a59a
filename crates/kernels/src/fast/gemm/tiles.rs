//! Products by matrix tiles: a task packs the part of `b` that it multiplies, a chunk at a time, so that it never leaves the
//! task's cache; what the next task packs is fetched from memory meanwhile.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    super::{
        amx::{self, DEPTH, Next, Place, SIDE, TILE, Tiles},
        packed::{even_parts, starts},
        shared::{Scratch, Shared, with_scratch},
        simd::{Job, Simd, dispatch},
    },
    Plan,
    micro::{Start, begin, put},
};

/// Most elements of a chunk: 1536 values and a low-rank update of rank 32 are one.
pub(super) const CHUNK: usize = 784;
/// Elements of `b` that a task packs at a time; they stay in the second-level cache.
const PACKED: usize = 4 * BLOCK * CHUNK;
/// Rows of a task.
const ROWS: usize = 1024;

/// Rows and columns of a block of tiles.
pub(super) const BLOCK: usize = 2 * SIDE;

impl Plan<'_> {
    /// All products, by tiles.
    pub(super) fn by_tiles(&self, out: &Shared) {
        let blocks = self.blocks.sizes.len();
        let (most_blocks, mut a) = self.room_for_blocks();
        for m0 in (0..blocks).step_by(most_blocks) {
            let range = m0..blocks.min(m0 + most_blocks);
            self.pack_blocks(range.clone(), a.get_mut());
            self.times_all_columns(range, a.get(), out);
        }
    }

    /// The packed blocks of `range` times all columns.
    pub(super) fn times_all_columns(&self, range: Range<usize>, a: &[f32], out: &Shared) {
        let panels_each = self.panels_each();
        assert_eq!(self.width, BLOCK);
        let batch = self.gemm.batch;
        let wanted = 4 * rayon::current_num_threads();
        // Where there are few columns (a low-rank update's factor), threads share the rows.
        let rows = range.len().div_ceil(ROWS / BLOCK);
        let rows = rows.max((wanted / (batch * panels_each)).min(range.len()));
        let rows = even_parts(range.len(), rows);
        let wanted = wanted.div_ceil(batch * rows.len());
        let most = (PACKED / (self.chunk * BLOCK)).max(1);
        let columns = panels_each.div_ceil(most).max(wanted.min(panels_each));
        let columns = even_parts(panels_each, columns);
        let (row_starts, column_starts) = (starts(&rows), starts(&columns));
        let part = |task: usize| {
            let (image, task) = (
                task / (rows.len() * columns.len()),
                task % (rows.len() * columns.len()),
            );
            let (column, row) = (task / rows.len(), task % rows.len());
            let first = image * panels_each + column_starts[column];
            (
                row_starts[row]..row_starts[row] + rows[row],
                first..first + columns[column],
            )
        };
        let tasks = batch * rows.len() * columns.len();
        (0..tasks).into_par_iter().for_each(|task| {
            let (blocks, panels) = part(task);
            let following = (task + 1 < tasks).then(|| part(task + 1).1);
            with_scratch(Scratch::Products, panels.len() * self.chunk * BLOCK, |b| {
                for k0 in (0..self.summed).step_by(self.chunk) {
                    let depth = self.chunk.min(self.summed - k0);
                    let b = &mut b[..panels.len() * depth * BLOCK];
                    for (panel, b) in panels.clone().zip(b.chunks_exact_mut(depth * BLOCK)) {
                        self.pack_panel(panel, panels_each, k0..k0 + depth, b);
                    }
                    let next = if k0 + depth < self.summed {
                        Some((panels.start, k0 + depth))
                    } else {
                        (following.clone().filter(|next| *next != panels))
                            .map(|next| (next.start, 0))
                    };
                    let next = next.map(|(panel, k0)| self.rows_of_panel(panel, panels_each, k0));
                    let job = self.task(
                        range.start,
                        blocks.clone(),
                        (panels.start, panels_each),
                        [k0, depth],
                        [a, b],
                        next,
                        out,
                    );
                    dispatch(self.isa, job);
                }
            });
        });
    }

    /// One chunk of a task; `blocks` are counted from the `first`.
    #[expect(clippy::too_many_arguments, reason = "one call")]
    fn task<'a>(
        &'a self,
        first: usize,
        blocks: Range<usize>,
        (panel, panels_each): (usize, usize),
        [k0, depth]: [usize; 2],
        [a, b]: [&'a [f32]; 2],
        next: Option<Next>,
        out: &Shared,
    ) -> Task<'a> {
        let (m, n) = (self.gemm.m, self.gemm.n);
        let (image, n0) = (panel / panels_each, panel % panels_each * BLOCK);
        let columns = (b.len() / depth).min(n - n0);
        let m0 = (first + blocks.start) * BLOCK;
        let rows = (blocks.len() * BLOCK).min(m - m0);
        Task {
            a: &a[blocks.start * BLOCK * self.padded..],
            padded: self.padded,
            rows,
            b,
            columns,
            // SAFETY: these rows and columns are this task's alone.
            c: unsafe { out.at((image * m + m0) * n + n0, (rows - 1) * n + columns) },
            c_stride: n,
            start: self.start(k0, m0..m0 + rows, n0..n0 + columns),
            k0,
            depth,
            next: next.unwrap_or(Next::nothing(b.as_ptr())),
        }
    }

    /// The rows of `b` that a panel is packed from, from element `k0` on.
    fn rows_of_panel(&self, panel: usize, panels_each: usize, k0: usize) -> Next {
        let stretch = &self.stretches[0];
        let b = stretch.b;
        let bytes = b.values.bytes();
        let first = panel / panels_each * self.gemm.n * stretch.k
            + panel % panels_each * BLOCK * b.row_stride
            + k0 * self.kernel.values() * b.k_stride;
        Next {
            at: (b.values.start().cast::<u8>()).wrapping_add(bytes * first),
            stride: bytes * b.row_stride,
            step: bytes * self.kernel.values() * DEPTH * b.k_stride,
        }
    }
}

/// Packed rows times packed panels, over one chunk.
pub(super) struct Task<'a> {
    /// All chunks of blocks of two rows of tiles, `[blocks, 2, padded / 16, 16, 16]`; the last may have one row of tiles.
    pub(super) a: &'a [f32],
    pub(super) padded: usize,
    pub(super) rows: usize,
    /// `[panels, depth, 32]`.
    pub(super) b: &'a [f32],
    pub(super) columns: usize,
    /// The first row's first column.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) start: Start<'a>,
    /// The chunk's first element and its elements.
    pub(super) k0: usize,
    pub(super) depth: usize,
    /// What is fetched meanwhile: rows of `b`, as many as there are columns.
    pub(super) next: Next,
}

impl Job for Task<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(S::LANES, SIDE, "tiles come with AVX-512");
        let tiles = Tiles::new().expect("the set has tiles");
        let steps = amx::Operands::steps_of_panel(self.depth / DEPTH);
        let mut results = amx::Results::ZERO;
        let mut fetched = 0;
        for (m0, a) in (0..self.rows)
            .step_by(BLOCK)
            .zip(self.a.chunks(BLOCK * self.padded))
        {
            for (n0, b) in (0..self.columns)
                .step_by(BLOCK)
                .zip(self.b.chunks_exact(self.depth * BLOCK))
            {
                let size = [BLOCK.min(self.rows - m0), BLOCK.min(self.columns - n0)];
                let next = if fetched < self.columns {
                    Next {
                        at: self.next.at.wrapping_add(fetched * self.next.stride),
                        ..self.next
                    }
                } else {
                    Next::nothing(b.as_ptr())
                };
                fetched += 4;
                self.block(
                    s,
                    &tiles,
                    [m0, n0],
                    size,
                    [a, b],
                    &steps,
                    next,
                    &mut results,
                );
            }
        }
    }
}

impl Task<'_> {
    /// Up to two by two tiles.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one call, in an inner loop")]
    fn block<S: Simd>(
        &self,
        s: S,
        tiles: &Tiles,
        [m0, n0]: [usize; 2],
        [rows, columns]: [usize; 2],
        [a, b]: [&[f32]; 2],
        steps: &[usize],
        next: Next,
        results: &mut amx::Results,
    ) {
        assert!(a.len() >= rows.next_multiple_of(SIDE) * self.padded);
        let whole = rows.is_multiple_of(SIDE) && columns.is_multiple_of(SIDE);
        let start = match self.start {
            Start::Row(bias) => Start::Row(&bias[m0..m0 + rows]),
            Start::Column(bias) => Start::Column(&bias[n0..n0 + columns]),
            start => start,
        };
        // SAFETY: the task's result is valid for its rows and columns and no one else's; `a` and `b` hold tiles of the
        // whole depth.
        unsafe {
            let c = self.c.add(m0 * self.c_stride + n0);
            let output = Place {
                at: c,
                stride: 4 * self.c_stride,
            };
            let start = match start {
                Start::Zero => Place::zeros(),
                Start::Column(bias) if whole => Place::every_row(bias),
                Start::Output if whole => output,
                start => {
                    for m in 0..rows {
                        for n in (0..columns).step_by(SIDE) {
                            let valid = (columns - n).min(SIDE);
                            let v = begin(s, start, m, n, c.add(m * self.c_stride + n), valid);
                            s.store(results.0[m][n..][..SIDE].as_mut_ptr(), v);
                        }
                    }
                    results.place()
                }
            };
            let out = if whole { output } else { results.place() };
            let a = &a[self.k0 / DEPTH * TILE..];
            let second = SIDE * self.padded;
            let operands = amx::Operands {
                next,
                ..amx::Operands::of_panel(a, second, b, steps, [start, out])
            };
            tiles.run([rows.div_ceil(SIDE), columns.div_ceil(SIDE)], &operands);
            if !whole {
                for m in 0..rows {
                    for n in (0..columns).step_by(SIDE) {
                        let v = s.load(results.0[m][n..][..SIDE].as_ptr());
                        put(s, c.add(m * self.c_stride + n), v, (columns - n).min(SIDE));
                    }
                }
            }
        }
    }
}
