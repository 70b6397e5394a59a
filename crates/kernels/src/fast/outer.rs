//! Matrix products `c[m][n] = bias[m] + sum over k of a[m][k] b[k][n]`, lanes along `n`.
//!
//! `a` may be read across or along its rows, so that this serves 1x1 convolutions, their input's gradient and both
//! gradients of a linear map. Both operands are packed a chunk of `k` at a time: `a` in blocks of rows, `b` in panels of
//! two vectors, which the tiles of the convolutions ([`tile`]) then multiply.
//!
//! Every output is summed along `k` in one order whatever the number of threads.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    packed::{Lanes, Rows, even_parts},
    pairs::Kernel,
    shared::{Shared, unwritten},
    simd::{Job, Simd, dispatch},
    stored::Stored,
    tile::{self, Start, Strip},
};

/// Largest chunk of `k`: a panel and a block of it stay in the first-level cache.
const CHUNK: usize = 256;
/// Rows of a task; with a panel they stay in the second-level cache.
const GROUP: usize = 96;

/// The operands.
#[derive(Clone, Copy)]
pub(super) struct Outer<'a> {
    /// `a[m][k]` at `m * a_strides[0] + k * a_strides[1]`; the same for the whole batch.
    pub(super) a: Stored<'a>,
    /// See `a`.
    pub(super) a_strides: [usize; 2],
    /// `[batch, k, n]`.
    pub(super) b: Stored<'a>,
    /// Products that share `a`.
    pub(super) batch: usize,
    /// Rows of `a` and of the result.
    pub(super) m: usize,
    /// Columns of `b` and of the result.
    pub(super) n: usize,
    /// Length of the sums.
    pub(super) k: usize,
    /// Added to every product of row `m`.
    pub(super) bias: Option<&'a [f32]>,
}

/// The product into `out` `[batch, m, n]`.
pub(super) fn run(isa: Isa, outer: &Outer<'_>, out: &mut [f32]) {
    let Outer { batch, m, n, k, .. } = *outer;
    assert_eq!(outer.b.len(), batch * k * n);
    assert_eq!(out.len(), batch * m * n);
    assert!(outer.bias.is_none_or(|bias| bias.len() == m));
    if out.is_empty() {
        return;
    }
    if k == 0 {
        for (i, row) in out.chunks_mut(n).enumerate() {
            row.fill(outer.bias.map_or(0.0, |bias| bias[i % m]));
        }
        return;
    }
    let [am, ak] = outer.a_strides;
    assert!(outer.a.len() > (m - 1) * am + (k - 1) * ak);
    let width = 2 * dispatch(isa, Lanes);
    let panels = n.div_ceil(width);
    let chunk = k.div_ceil(k.div_ceil(CHUNK));
    let blocks = even_parts(m, m.div_ceil(dispatch(isa, Rows)));
    let starts: Vec<usize> = (blocks.iter())
        .scan(0, |at, block| Some(std::mem::replace(at, *at + block)))
        .collect();
    let per_task = (GROUP / blocks[0]).max(1);
    let m_tasks = blocks.len().div_ceil(per_task);
    // A task takes as many panels as leave a few tasks for each thread.
    let wanted = (4 * rayon::current_num_threads()).div_ceil(batch * m_tasks);
    let panels_per_task = panels.div_ceil(wanted.min(panels));
    let n_tasks = panels.div_ceil(panels_per_task);

    // SAFETY: packing writes what is read of them.
    let (mut a_packed, mut b_packed) = unsafe {
        (
            unwritten::<f32>(m * chunk),
            unwritten::<f32>(batch * panels * chunk * width),
        )
    };
    let out = Shared::new(out);
    for k0 in (0..k).step_by(chunk) {
        let depth = chunk.min(k - k0);
        let mut rest = &mut a_packed[..m * depth];
        let mut parts = Vec::with_capacity(blocks.len());
        for (&block, &m0) in blocks.iter().zip(&starts) {
            let (part, tail) = rest.split_at_mut(block * depth);
            parts.push((part, block, m0));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(part, block, m0)| {
            let block = PackRows {
                a: outer.a,
                strides: outer.a_strides,
                at: m0 * am + k0 * ak,
                block,
                to: part,
            };
            dispatch(isa, block);
        });
        b_packed[..batch * panels * depth * width]
            .par_chunks_mut(depth * width)
            .enumerate()
            .for_each(|(i, panel)| {
                let (image, n0) = (i / panels, i % panels * width);
                let columns = width.min(n - n0);
                let job = PackPanel {
                    b: outer.b,
                    at: (image * k + k0) * n + n0,
                    stride: n,
                    columns,
                    width,
                    to: panel,
                };
                dispatch(isa, job);
            });
        (0..batch * m_tasks * n_tasks)
            .into_par_iter()
            .for_each(|task| {
                let (n_task, rest) = (task % n_tasks, task / n_tasks);
                let (m_task, image) = (rest % m_tasks, rest / m_tasks);
                let range = m_task * per_task..((m_task + 1) * per_task).min(blocks.len());
                let m0 = starts[range.start];
                let task_blocks: Vec<(usize, &[f32])> = range
                    .map(|i| {
                        let part = &a_packed[starts[i] * depth..][..blocks[i] * depth];
                        (blocks[i], part)
                    })
                    .collect();
                let rows: usize = task_blocks.iter().map(|block| block.0).sum();
                let start = match outer.bias {
                    _ if k0 > 0 => Start::Output,
                    Some(bias) => Start::Bias(bias[m0..m0 + rows].as_ptr()),
                    None => Start::Zero,
                };
                let first = n_task * panels_per_task;
                for panel in first..(first + panels_per_task).min(panels) {
                    let n0 = panel * width;
                    let columns = width.min(n - n0);
                    let b = &b_packed[(image * panels + panel) * depth * width..][..depth * width];
                    // SAFETY: the panel holds `depth` rows of `width`; the outputs are this task's rows and columns.
                    unsafe {
                        let y = out.at((image * m + m0) * n + n0, (rows - 1) * n + columns);
                        let strip = Strip {
                            x: b.as_ptr(),
                            x_stride: width,
                            channels: depth,
                            taps: &[0],
                            row_vectors: usize::MAX,
                            row_stride: 0,
                            pixels: columns,
                            blocks: &task_blocks,
                            y,
                            y_stride: n,
                            start,
                        };
                        tile::run(isa, Kernel::Single, &strip);
                    }
                }
            });
    }
}

/// Rows of `a` from `at` on, as the tiles read them: `[depth, block]`.
struct PackRows<'a> {
    a: Stored<'a>,
    strides: [usize; 2],
    at: usize,
    block: usize,
    to: &'a mut [f32],
}

impl Job for PackRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [am, ak] = self.strides;
        if am == 1 {
            for (k, to) in self.to.chunks_exact_mut(self.block).enumerate() {
                self.a.part(self.at + k * ak, self.block).widen(s, to);
            }
            return;
        }
        let depth = self.to.len() / self.block;
        macro_rules! fill {
            ($a:expr, $f:expr) => {{
                let a = $a;
                for m in 0..self.block {
                    let row = a[self.at + m * am..].iter().step_by(ak).take(depth);
                    for (to, v) in self.to[m..].iter_mut().step_by(self.block).zip(row) {
                        *to = $f(*v);
                    }
                }
            }};
        }
        match self.a {
            Stored::F32(a) => fill!(a, |v| v),
            Stored::Bf16(a) => fill!(a, burn::tensor::bf16::to_f32),
            Stored::F16(a) => fill!(a, burn::tensor::f16::to_f32),
        }
    }
}

/// A panel of `b`: `[depth, width]` with zeros past the last column.
struct PackPanel<'a> {
    b: Stored<'a>,
    at: usize,
    stride: usize,
    columns: usize,
    width: usize,
    to: &'a mut [f32],
}

impl Job for PackPanel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (k, to) in self.to.chunks_exact_mut(self.width).enumerate() {
            let row = self.b.part(self.at + k * self.stride, self.columns);
            row.widen(s, &mut to[..self.columns]);
            to[self.columns..].fill(0.0);
        }
    }
}
