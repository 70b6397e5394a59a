//! Matrix products `c[m][n] = bias + sum over k of a[m][k] b[n][k]`, in f32 or of bfloat16 pairs. The sum may go on over
//! other operands: a low-rank update, in one pass over the result.
//!
//! This is a linear map, both its gradients, a 1x1 convolution and its input's gradient: either operand may be
//! contiguous along its rows or along `k`, and is rounded or widened while it is packed, a part of bounded size at a time
//! (Goto and van de Geijn, 2008). What a task makes of the packed operands is in `vectors` and in `tiles`.
//!
//! Every output is summed along `k` in one order whatever the number of threads.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

pub(super) mod micro;
pub(super) mod pack;
mod tiles;
mod update;
mod vectors;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    micro::Start,
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

pub(super) use update::{Update, run_with_update};

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

impl<'a> Operand<'a> {
    /// Contiguous along the sum.
    pub(super) fn rows(values: Stored<'a>, row_stride: usize) -> Self {
        Self {
            values,
            row_stride,
            k_stride: 1,
        }
    }

    /// Contiguous along the rows.
    pub(super) fn columns(values: Stored<'a>, k_stride: usize) -> Self {
        Self {
            values,
            row_stride: 1,
            k_stride,
        }
    }
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

impl Gemm<'_> {
    /// The bias has a value for each row or column.
    fn check_bias(&self) {
        match self.bias {
            Bias::None => {}
            Bias::Rows(bias) => assert_eq!(bias.len(), self.m),
            Bias::Columns(bias) => assert_eq!(bias.len(), self.n),
        }
    }
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
    let Gemm { batch, m, n, k, .. } = *gemm;
    assert_eq!(out.len(), batch * m * n);
    gemm.check_bias();
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
    Plan::new(isa, gemm).run(out);
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
    /// Elements that are summed.
    summed: usize,
    /// Elements of a packed row of `a`.
    padded: usize,
    blocks: Blocks,
}

impl<'a> Plan<'a> {
    /// Of a product of at least one value and one summand.
    fn new(isa: Isa, gemm: &'a Gemm<'a>) -> Self {
        let Gemm {
            batch,
            m,
            n,
            k,
            a,
            b,
            ..
        } = *gemm;
        assert!(batch * m * n * k > 0);
        gemm.check_bias();
        let kernel = gemm.products.kernel(isa);
        let mut stretches = vec![Stretch {
            a,
            b,
            k,
            elements: 0..elements(kernel, k),
        }];
        if let Some(More { k, a, b }) = gemm.more {
            assert!(batch == 1 && k > 0);
            let first = stretches[0].elements.end;
            stretches.push(Stretch {
                a,
                b,
                k,
                elements: first..first + elements(kernel, k),
            });
        }
        for Stretch { a, b, k, .. } in &stretches {
            let last =
                |rows: usize, of: &Operand<'_>| (rows - 1) * of.row_stride + (k - 1) * of.k_stride;
            assert!(a.values.len() > last(m, a));
            assert!(b.values.len() > (batch - 1) * n * k + last(n, b));
        }
        let summed = stretches[stretches.len() - 1].elements.end;
        let chunk = summed
            .div_ceil(summed.div_ceil(match kernel {
                Kernel::Tiles => tiles::CHUNK,
                Kernel::Single | Kernel::Pair => vectors::CHUNK,
            }))
            .next_multiple_of(kernel.depth());
        Self {
            isa,
            gemm,
            stretches,
            kernel,
            width: 2 * dispatch(isa, Lanes),
            chunk,
            summed,
            padded: summed,
            blocks: Blocks::new(isa, kernel, m),
        }
    }
}

/// Elements of so many values, with what fills the last of the kernel's steps.
fn elements(kernel: Kernel, k: usize) -> usize {
    k.div_ceil(kernel.values()).next_multiple_of(kernel.depth())
}

impl Plan<'_> {
    fn run(&self, out: &mut [f32]) {
        let out = Shared::new(out);
        match self.kernel {
            Kernel::Tiles => self.by_tiles(&out),
            Kernel::Single | Kernel::Pair => self.by_vectors(&out),
        }
    }

    /// Panels of each product.
    fn panels_each(&self) -> usize {
        self.gemm.n.div_ceil(self.width)
    }

    /// Blocks of `a` that are packed at a time, and memory for them.
    fn room_for_blocks(&self) -> (usize, Kept) {
        let sizes = &self.blocks.sizes;
        let most = (PACKED / (self.padded * sizes[0])).clamp(1, sizes.len());
        let rows: usize = (0..most).map(|i| self.blocks.room(self.kernel, i)).sum();
        // SAFETY: packing writes what is read.
        (most, unsafe { Kept::new(self.padded * rows) })
    }

    /// Packs, by the machine's own rounding where products are of pairs.
    fn pack(&self, job: Pack<'_>) {
        match self.kernel {
            Kernel::Single => dispatch(self.isa, job),
            Kernel::Pair | Kernel::Tiles => dispatch_pairs(self.isa, job),
        }
    }

    /// Packed blocks of `a` and their parts of `to`.
    fn parts<'b>(&self, range: Range<usize>, to: &'b mut [f32]) -> Vec<(usize, &'b mut [f32])> {
        let mut rest = to;
        let mut parts = Vec::with_capacity(range.len());
        for block in range {
            let room = self.padded * self.blocks.room(self.kernel, block);
            let (part, tail) = rest.split_at_mut(room);
            parts.push((block, part));
            rest = tail;
        }
        parts
    }

    fn pack_blocks(&self, range: Range<usize>, to: &mut [f32]) {
        let parts = self.parts(range, to);
        parts.into_par_iter().for_each(|(block, to)| {
            for stretch in &self.stretches {
                self.pack_block(block, stretch, self.blocks.starts[block], to);
            }
        });
    }

    /// Packs a block's part of a stretch, which is the operand's rows from `first` on.
    fn pack_block(&self, block: usize, stretch: &Stretch<'_>, first: usize, to: &mut [f32]) {
        let rows = self.blocks.sizes[block];
        self.pack(Pack {
            from: stretch.a,
            offset: 0,
            first,
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
            to,
        });
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

    /// What a part of the result starts from.
    fn start(&self, k0: usize, rows: Range<usize>, columns: Range<usize>) -> Start<'_> {
        match self.gemm.bias {
            _ if k0 > 0 => Start::Output,
            Bias::None => Start::Zero,
            Bias::Rows(bias) => Start::Row(&bias[rows]),
            Bias::Columns(bias) => Start::Column(&bias[columns]),
        }
    }
}
