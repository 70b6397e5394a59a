//! Products of rows: `c[m][n] = bias[m] + sum over k of a[m][k] b[n][k]`, both operands contiguous along `k`.
//!
//! This is a linear map with its weight as the file holds it (`a` the weight, `b` the tokens), and a convolution with
//! many channels and few pixels (`b` the pixels' neighbourhoods). Lanes run along `k`, so a weight needs no packing and
//! 16-bit weights are widened a few rows at a time. `b` is copied in chunks of `k` by the caller's `fill`.
//!
//! Every output is summed in the same order (chunks of `k`, then lanes) whatever the number of threads.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use rayon::prelude::*;

use super::{
    isa::Isa,
    packed::Lanes,
    shared::{Scratch, Shared, unwritten, with_scratch},
    simd::{Job, Simd, dispatch},
    stored::Stored,
};

/// Largest chunk of `k`: four rows of it stay in the first-level cache.
const CHUNK: usize = 1024;
/// Rows of `a` in a task and rows of `b` in a block; together they stay in the second-level cache.
const GROUP: usize = 48;
/// Rows of `a` in a tile.
const TILE: usize = 4;
/// Most floats of `b` that are packed at a time.
const PACKED: usize = 4 << 20;

/// Where `c[m][n]` lies.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Planes of so many values: at `(n / plane * m_all + m) * plane + n % plane`.
    Planes(usize),
    /// At `n * m_all + m`.
    ByB,
}

/// The operands but for `b`.
#[derive(Clone, Copy)]
pub(super) struct Dot<'a> {
    /// `[m, k]`.
    pub(super) a: Stored<'a>,
    /// Rows of `a`.
    pub(super) m: usize,
    /// Rows of `b`.
    pub(super) n: usize,
    /// Length of the rows.
    pub(super) k: usize,
    /// Added to every product of row `m`.
    pub(super) bias: Option<&'a [f32]>,
    /// The layout of the result.
    pub(super) order: Order,
}

/// A part of `b` to be copied: row `n`, values `k0..k0 + to.len()`.
pub(super) type Fill<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// The product into `out` `[m * n]`.
pub(super) fn run(isa: Isa, dot: &Dot<'_>, fill: &Fill<'_>, out: &mut [f32]) {
    let Dot { m, n, k, .. } = *dot;
    assert_eq!(dot.a.len(), m * k);
    assert_eq!(out.len(), m * n);
    assert!(dot.bias.is_none_or(|bias| bias.len() == m));
    if out.is_empty() {
        return;
    }
    let lanes = dispatch(isa, Lanes);
    let chunks = k.div_ceil(CHUNK).max(1);
    let chunk = k.div_ceil(chunks).next_multiple_of(lanes).max(lanes);
    let block = (PACKED / chunk).clamp(GROUP, n.max(GROUP)) / GROUP * GROUP;
    // SAFETY: every row that is read is filled first.
    let mut packed = unsafe { unwritten::<f32>(block.min(n) * chunk) };
    let out = Shared::new(out);
    for n0 in (0..n).step_by(block) {
        let rows = block.min(n - n0);
        for k0 in (0..k.max(1)).step_by(chunk) {
            let depth = chunk.min(k - k0);
            let width = depth.next_multiple_of(lanes).max(lanes);
            packed[..rows * width]
                .par_chunks_mut(width)
                .enumerate()
                .with_min_len(8)
                .for_each(|(i, row)| {
                    fill(n0 + i, k0, &mut row[..depth]);
                    row[depth..].fill(0.0);
                });
            let mut group = GROUP;
            while group > TILE && m.div_ceil(group) < 4 * rayon::current_num_threads() {
                group = (group / 2).next_multiple_of(TILE);
            }
            (0..m.div_ceil(group)).into_par_iter().for_each(|task| {
                let m0 = task * group;
                let count = group.min(m - m0);
                with_scratch(
                    Scratch::Gradient,
                    count.next_multiple_of(TILE) * width,
                    |a| {
                        let job = Task {
                            dot,
                            m0,
                            count,
                            k0,
                            depth,
                            width,
                            a,
                            b: &packed[..rows * width],
                            n0,
                            out: &out,
                        };
                        dispatch(isa, job);
                    },
                );
            });
        }
    }
}

/// A few rows of `a` against all packed rows of `b`, over one chunk of `k`.
struct Task<'a> {
    dot: &'a Dot<'a>,
    m0: usize,
    count: usize,
    k0: usize,
    depth: usize,
    width: usize,
    a: &'a mut [f32],
    b: &'a [f32],
    n0: usize,
    out: &'a Shared,
}

impl Job for Task<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            dot,
            m0,
            count,
            k0,
            depth,
            width,
            ..
        } = self;
        for (i, row) in self.a.chunks_exact_mut(width).enumerate() {
            if i < count {
                dot.a
                    .part((m0 + i) * dot.k + k0, depth)
                    .widen(s, &mut row[..depth]);
                row[depth..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        let rows = self.b.len() / width;
        for j0 in (0..rows).step_by(GROUP) {
            let end = rows.min(j0 + GROUP);
            for i in (0..count).step_by(TILE) {
                let mut j = j0;
                while j < end {
                    j += match (end - j).min(S::DOT_COLUMNS) {
                        6.. => self.tile::<S, 6>(s, i, j),
                        3.. => self.tile::<S, 3>(s, i, j),
                        2 => self.tile::<S, 2>(s, i, j),
                        _ => self.tile::<S, 1>(s, i, j),
                    };
                }
            }
        }
    }
}

impl Task<'_> {
    /// `TILE` rows of `a` from `i` against `N` rows of `b` from `j`; gives back `N`.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, s: S, i: usize, j: usize) -> usize {
        let width = self.width;
        assert!(
            (i + TILE) * width <= self.a.len()
                && (j + N) * width <= self.b.len()
                && width.is_multiple_of(S::LANES)
        );
        let mut sums = [[s.splat(0.0); N]; TILE];
        // SAFETY: the rows lie in their slices, and whole vectors in the rows.
        unsafe {
            let (a, b) = (
                self.a.as_ptr().add(i * width),
                self.b.as_ptr().add(j * width),
            );
            for k in (0..width).step_by(S::LANES) {
                let mut x = [s.splat(0.0); N];
                for (j, x) in x.iter_mut().enumerate() {
                    *x = s.load(b.add(j * width + k));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = s.load(a.add(i * width + k));
                    for (sum, b) in sums.iter_mut().zip(x) {
                        *sum = s.fma(a, b, *sum);
                    }
                }
            }
        }
        let dot = self.dot;
        for (row, sums) in sums.iter().enumerate().take(self.count - i) {
            let m = self.m0 + i + row;
            for (column, &sum) in sums.iter().enumerate() {
                let n = self.n0 + j + column;
                let at = match dot.order {
                    Order::Planes(plane) => (n / plane * dot.m + m) * plane + n % plane,
                    Order::ByB => n * dot.m + m,
                };
                let sum = s.sum(sum);
                // SAFETY: row `m` belongs to this task alone, and the result outlives it.
                unsafe {
                    let c = self.out.at(at, 1);
                    *c = match (self.k0, dot.bias) {
                        (0, Some(bias)) => bias[m] + sum,
                        (0, None) => sum,
                        _ => *c + sum,
                    };
                }
            }
        }
        N
    }
}
