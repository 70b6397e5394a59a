//! Products by vectors: both operands are packed, in parts of bounded size; a task makes a block of the result that stays in the
//! second-level cache while chunks of `k` are added to it.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    super::{
        kept::Kept,
        packed::{even_parts, starts},
        shared::Shared,
    },
    Gemm, PACKED, Plan,
    micro::{self, Block, Micro},
};

/// Elements of a chunk of `k`: a panel of `b` (32 columns) stays in the first-level cache.
pub(super) const CHUNK: usize = 384;
/// Rows of a task: the part of `a` that one chunk needs stays in the second-level cache.
const GROUP: usize = 104;
/// Columns of a task; with `GROUP` rows the result stays in the second-level cache too.
const COLUMNS: usize = 256;

impl Plan<'_> {
    /// All products, by vectors.
    pub(super) fn by_vectors(&self, out: &Shared) {
        let (panels_each, blocks) = (self.panels_each(), self.blocks.sizes.len());
        let panels = self.gemm.batch * panels_each;
        let most_panels = (PACKED / (self.padded * self.width)).clamp(1, panels);
        let (most_blocks, mut a) = self.room_for_blocks();
        // SAFETY: packing writes what is read.
        let mut b = unsafe { Kept::new(self.padded * most_panels * self.width) };
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
                self.multiply(range, part.clone(), panels_each, a.get(), b.get(), out);
            }
        }
    }

    /// Where the packed block is: `rows` before it, in a part that begins with block `first`.
    fn rows_before(&self, first: usize, block: usize) -> usize {
        self.blocks.starts[block] - self.blocks.starts[first]
    }

    fn pack_panels(&self, range: Range<usize>, panels_each: usize, to: &mut [f32]) {
        to[..range.len() * self.padded * self.width]
            .par_chunks_mut(self.padded * self.width)
            .zip(range)
            .for_each(|(to, panel)| self.pack_panel(panel, panels_each, 0..self.padded, to));
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
