//! Matrix products `c[m][n] = bias + sum over k of a[m][k] b[n][k]`, in f32 or of bfloat16 pairs. The sum may go on over
//! other operands: a low-rank update, in one pass over the result.
//!
//! This is a linear map, both its gradients, a 1x1 convolution and its input's gradient: either operand may be
//! contiguous along its rows or along `k`, and is rounded or widened while it is packed. Both are packed whole, or a
//! part of bounded size at a time; a task then makes a block of the result that stays in the second-level cache while
//! chunks of `k` are added to it (Goto and van de Geijn, 2008).
//!
//! Every output is summed along `k` in one order whatever the number of threads.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

pub(super) mod micro;
pub(super) mod pack;
mod tiles;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    micro::{Block, Micro, Start},
    pack::{Layout, Pack},
};
use super::{
    amx::SIDE,
    isa::Isa,
    kept::Kept,
    packed::{Lanes, Rows, even_parts, starts},
    pairs::{Kernel, Products},
    shared::Shared,
    simd::{dispatch, dispatch_pairs},
    stored::Stored,
};

/// Elements of a chunk of `k`: a panel of `b` (32 columns) stays in the first-level cache.
const CHUNK: usize = 384;
/// Rows of a task: the part of `a` that one chunk needs stays in the second-level cache.
const GROUP: usize = 104;
/// Columns of a task; with `GROUP` rows the result stays in the second-level cache too.
const COLUMNS: usize = 256;
/// Most elements of an operand that are packed at a time.
const PACKED: usize = 6 << 20;

/// `value[row][k]` at `row * row_stride + k * k_stride`, one of the strides being 1.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    /// All values.
    pub(super) values: Stored<'a>,
    /// Values between rows.
    pub(super) row_stride: usize,
    /// Values between steps along `k`.
    pub(super) k_stride: usize,
}

/// What is added to the products.
#[derive(Clone, Copy)]
pub(super) enum Bias<'a> {
    /// Nothing.
    None,
    /// A value for each row of the result.
    Rows(&'a [f32]),
    /// A value for each column.
    Columns(&'a [f32]),
}

/// Operands with which the sums go on.
#[derive(Clone, Copy)]
pub(super) struct More<'a> {
    /// How long.
    pub(super) k: usize,
    /// `[m, k]`.
    pub(super) a: Operand<'a>,
    /// `[n, k]`.
    pub(super) b: Operand<'a>,
}

/// The operands.
#[derive(Clone, Copy)]
pub(super) struct Gemm<'a> {
    /// Rows of the result.
    pub(super) m: usize,
    /// Columns of the result.
    pub(super) n: usize,
    /// Length of the sums.
    pub(super) k: usize,
    /// `[m, k]`, the same for the whole batch.
    pub(super) a: Operand<'a>,
    /// `[n, k]` for each product of the batch, `n * k` values apart.
    pub(super) b: Operand<'a>,
    /// Products that share `a`.
    pub(super) batch: usize,
    /// With what the sums go on, where the batch is of one.
    pub(super) more: Option<More<'a>>,
    /// Added to the products.
    pub(super) bias: Bias<'a>,
    /// How products are made.
    pub(super) products: Products,
}

/// Parts of the result's rows that a kernel takes at a time: their first rows and sizes.
struct Blocks {
    starts: Vec<usize>,
    sizes: Vec<usize>,
}

impl Blocks {
    fn new(isa: Isa, kernel: Kernel, m: usize) -> Self {
        let sizes = if kernel == Kernel::Tiles {
            (0..m)
                .step_by(2 * SIDE)
                .map(|at| (2 * SIDE).min(m - at))
                .collect()
        } else {
            even_parts(m, m.div_ceil(dispatch(isa, Rows)))
        };
        let starts = starts(&sizes);
        Self { starts, sizes }
    }

    /// Rows that a packed block holds.
    fn room(&self, kernel: Kernel, block: usize) -> usize {
        match kernel {
            Kernel::Tiles => self.sizes[block].next_multiple_of(SIDE),
            _ => self.sizes[block],
        }
    }
}

/// The product into `out` `[batch, m, n]`.
pub(super) fn run(isa: Isa, gemm: &Gemm<'_>, out: &mut [f32]) {
    let Gemm {
        batch,
        m,
        n,
        k,
        a,
        b,
        ..
    } = *gemm;
    assert_eq!(out.len(), batch * m * n);
    match gemm.bias {
        Bias::None => {}
        Bias::Rows(bias) => assert_eq!(bias.len(), m),
        Bias::Columns(bias) => assert_eq!(bias.len(), n),
    }
    if out.is_empty() {
        return;
    }
    if k == 0 {
        for (i, row) in out.chunks_mut(n).enumerate() {
            match gemm.bias {
                Bias::None => row.fill(0.0),
                Bias::Rows(bias) => row.fill(bias[i % m]),
                Bias::Columns(bias) => row.copy_from_slice(bias),
            }
        }
        return;
    }
    let kernel = gemm.products.kernel(isa);
    let elements = |k: usize| k.div_ceil(kernel.values()).next_multiple_of(kernel.depth());
    let mut stretches = vec![Stretch {
        a,
        b,
        k,
        elements: 0..elements(k),
    }];
    if let Some(More { k, a, b }) = gemm.more {
        assert!(batch == 1 && k > 0);
        let first = stretches[0].elements.end;
        stretches.push(Stretch {
            a,
            b,
            k,
            elements: first..first + elements(k),
        });
    }
    for Stretch { a, b, k, .. } in &stretches {
        let last =
            |rows: usize, of: &Operand<'_>| (rows - 1) * of.row_stride + (k - 1) * of.k_stride;
        assert!(a.values.len() > last(m, a));
        assert!(b.values.len() > (batch - 1) * n * k + last(n, b));
    }
    let padded = stretches[stretches.len() - 1].elements.end;
    let chunk = padded
        .div_ceil(padded.div_ceil(if kernel == Kernel::Tiles {
            tiles::CHUNK
        } else {
            CHUNK
        }))
        .next_multiple_of(kernel.depth());
    let plan = Plan {
        isa,
        gemm,
        stretches,
        kernel,
        width: 2 * dispatch(isa, Lanes),
        chunk,
        padded,
        blocks: Blocks::new(isa, kernel, m),
    };
    plan.run(out);
}

/// A stretch of the sums, over operands of its own.
struct Stretch<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    k: usize,
    /// Its elements of a packed row.
    elements: Range<usize>,
}

/// A product and how it is cut.
struct Plan<'a> {
    isa: Isa,
    gemm: &'a Gemm<'a>,
    stretches: Vec<Stretch<'a>>,
    kernel: Kernel,
    /// Columns of a panel.
    width: usize,
    /// Elements of a chunk.
    chunk: usize,
    /// Elements of a packed row.
    padded: usize,
    blocks: Blocks,
}

impl Plan<'_> {
    fn run(&self, out: &mut [f32]) {
        let Gemm { batch, n, .. } = *self.gemm;
        let panels_each = n.div_ceil(self.width);
        let panels = batch * panels_each;
        let most_panels = (PACKED / (self.padded * self.width)).clamp(1, panels);
        let blocks = self.blocks.sizes.len();
        let most_blocks = (PACKED / (self.padded * self.blocks.sizes[0])).clamp(1, blocks);
        let rows: usize = (0..most_blocks)
            .map(|i| self.blocks.room(self.kernel, i))
            .sum();
        if self.kernel == Kernel::Tiles {
            // SAFETY: packing writes what is read.
            let mut a = unsafe { Kept::new(self.padded * rows) };
            let out = Shared::new(out);
            for m0 in (0..blocks).step_by(most_blocks) {
                let range = m0..blocks.min(m0 + most_blocks);
                self.pack_blocks(range.clone(), a.get_mut());
                self.by_tiles(range, panels_each, a.get(), &out);
            }
            return;
        }
        // SAFETY: packing writes what is read.
        let (mut a, mut b) = unsafe {
            (
                Kept::new(self.padded * rows),
                Kept::new(self.padded * most_panels * self.width),
            )
        };
        let out = Shared::new(out);
        let mut a_holds = 0..0;
        for p0 in (0..panels).step_by(most_panels) {
            let part = p0..panels.min(p0 + most_panels);
            self.pack_panels(part.clone(), panels_each, b.get_mut());
            for m0 in (0..blocks).step_by(most_blocks) {
                let range = m0..blocks.min(m0 + most_blocks);
                if a_holds != range {
                    self.pack_blocks(range.clone(), a.get_mut());
                    a_holds = range.clone();
                }
                self.multiply(range, part.clone(), panels_each, a.get(), b.get(), &out);
            }
        }
    }

    /// Packs, by the machine's own rounding where products are of pairs.
    fn pack(&self, job: Pack<'_>) {
        match self.kernel {
            Kernel::Single => dispatch(self.isa, job),
            Kernel::Pair | Kernel::Tiles => dispatch_pairs(self.isa, job),
        }
    }

    /// Where the packed block is: `rows` before it, in a part that begins with block `first`.
    fn rows_before(&self, first: usize, block: usize) -> usize {
        self.blocks.starts[block] - self.blocks.starts[first]
    }

    fn pack_blocks(&self, range: Range<usize>, to: &mut [f32]) {
        let mut rest = to;
        let mut parts = Vec::with_capacity(range.len());
        for block in range {
            let (part, tail) =
                rest.split_at_mut(self.padded * self.blocks.room(self.kernel, block));
            parts.push((block, part));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(block, to)| {
            let rows = self.blocks.sizes[block];
            for stretch in &self.stretches {
                self.pack(Pack {
                    from: stretch.a,
                    offset: 0,
                    first: self.blocks.starts[block],
                    rows,
                    k: stretch.k,
                    skip: 0,
                    values: self.kernel.values(),
                    layout: match self.kernel {
                        Kernel::Tiles => Layout::Tiles,
                        _ => Layout::Interleaved(rows),
                    },
                    elements: stretch.elements.clone(),
                    padded: self.padded,
                    to: &mut *to,
                });
            }
        });
    }

    fn pack_panels(&self, range: Range<usize>, panels_each: usize, to: &mut [f32]) {
        to[..range.len() * self.padded * self.width]
            .par_chunks_mut(self.padded * self.width)
            .zip(range)
            .for_each(|(to, panel)| self.pack_panel(panel, panels_each, 0..self.padded, to));
    }

    /// Packs `elements` of a panel.
    fn pack_panel(&self, panel: usize, panels_each: usize, elements: Range<usize>, to: &mut [f32]) {
        let n = self.gemm.n;
        let (image, first) = (panel / panels_each, panel % panels_each * self.width);
        for stretch in &self.stretches {
            let start = elements.start.max(stretch.elements.start);
            let end = elements.end.min(stretch.elements.end);
            if start >= end {
                continue;
            }
            self.pack(Pack {
                from: stretch.b,
                offset: image * n * stretch.k,
                first,
                rows: self.width.min(n - first),
                k: stretch.k,
                skip: start - stretch.elements.start,
                values: self.kernel.values(),
                layout: Layout::Interleaved(self.width),
                elements: start - elements.start..end - elements.start,
                padded: self.padded,
                to: &mut *to,
            });
        }
    }

    /// The packed blocks times the packed panels.
    fn multiply(
        &self,
        blocks: Range<usize>,
        panels: Range<usize>,
        panels_each: usize,
        a: &[f32],
        b: &[f32],
        out: &Shared,
    ) {
        let size = self.blocks.sizes[blocks.start];
        let wanted = 4 * rayon::current_num_threads();
        let per_m = (GROUP / size).clamp(1, blocks.len());
        let mut per_n = (COLUMNS / self.width).clamp(1, panels.len());
        let m_tasks = blocks.len().div_ceil(per_m);
        while per_n > 2 && m_tasks * panels.len().div_ceil(per_n) < wanted {
            per_n = per_n.div_ceil(2);
        }
        let n_tasks = panels.len().div_ceil(per_n);
        let m_parts = even_parts(blocks.len(), m_tasks);
        let m_starts = starts(&m_parts);
        (0..m_tasks * n_tasks).into_par_iter().for_each(|task| {
            let (m_task, n_task) = (task / n_tasks, task % n_tasks);
            let first = blocks.start + m_starts[m_task];
            let rows = first..first + m_parts[m_task];
            let columns =
                panels.start + n_task * per_n..panels.end.min(panels.start + (n_task + 1) * per_n);
            for k0 in (0..self.padded).step_by(self.chunk) {
                let depth = self.chunk.min(self.padded - k0);
                for panel in columns.clone() {
                    let at = ((panel - panels.start) * self.padded + k0) * self.width;
                    self.panel(
                        rows.clone(),
                        blocks.start,
                        panel,
                        panels_each,
                        [k0, depth],
                        a,
                        &b[at..at + depth * self.width],
                        out,
                    );
                }
            }
        });
    }

    /// What a part of the result starts from.
    fn start(&self, k0: usize, rows: Range<usize>, columns: Range<usize>) -> Start<'_> {
        match self.gemm.bias {
            _ if k0 > 0 => Start::Output,
            Bias::None => Start::Zero,
            Bias::Rows(bias) => Start::Row(&bias[rows]),
            Bias::Columns(bias) => Start::Column(&bias[columns]),
        }
    }

    /// One chunk of a panel times a task's blocks.
    #[expect(clippy::too_many_arguments, reason = "one call, in an inner loop")]
    fn panel(
        &self,
        rows: Range<usize>,
        first: usize,
        panel: usize,
        panels_each: usize,
        [k0, depth]: [usize; 2],
        a: &[f32],
        b: &[f32],
        out: &Shared,
    ) {
        let Gemm { m, n, .. } = *self.gemm;
        let (image, n0) = (panel / panels_each, panel % panels_each * self.width);
        let columns = self.width.min(n - n0);
        let blocks: Vec<Block<'_>> = rows
            .map(|block| {
                let size = self.blocks.sizes[block];
                let at = self.rows_before(first, block) * self.padded;
                // Chunks of a block follow each other.
                let part = &a[at + k0 * size..at + (k0 + depth) * size];
                let row = self.blocks.starts[block];
                let start = self.start(k0, row..row + size, n0..n0 + columns);
                // SAFETY: these rows and columns are this task's alone.
                let c = unsafe { out.at((image * m + row) * n + n0, (size - 1) * n + columns) };
                Block {
                    a: part,
                    rows: size,
                    c,
                    start,
                }
            })
            .collect();
        let micro = Micro {
            blocks: &blocks,
            b,
            width: self.width,
            columns,
            c_stride: n,
            depth,
            next: b.as_ptr().wrapping_add(self.padded * self.width),
        };
        // SAFETY: the blocks' outputs are valid, as just checked, and no one else's.
        unsafe { micro::run(self.isa, self.kernel, &micro) };
    }
}
