//! Products of rows: `c[m][n] = bias[m] + sum over k of a[m][k] b[n][k]`, both operands contiguous along `k`.
//!
//! This is a linear map with its weight as the file holds it (`a` the weight, `b` the tokens), and a convolution with
//! many channels and few pixels (`b` the pixels' neighbourhoods). Lanes run along `k`, so a weight needs no packing;
//! 16-bit weights are widened a few rows at a time, or, where `b` has so few rows that a weight is read but once, as they are
//! multiplied. `b` is copied in chunks of `k` by the caller's `fill`.
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
/// The same where `b` has a few rows and `a` is read once: all of a usual row.
const WHOLE: usize = 8192;
/// Rows of `a` in a task and rows of `b` in a block; together they stay in the second-level cache.
const GROUP: usize = 48;
/// Rows of `a` in a tile.
const TILE: usize = 4;
/// Most lanes.
const MOST: usize = 16;
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
    let once = n <= dispatch(isa, Columns);
    let chunks = k.div_ceil(if once { WHOLE } else { CHUNK }).max(1);
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
                let task = Task {
                    dot,
                    m0,
                    count,
                    k0,
                    depth,
                    width,
                    b: &packed[..rows * width],
                    n0,
                    out: &out,
                };
                if once {
                    return dispatch(isa, Once(task));
                }
                let room = count.next_multiple_of(TILE) * width;
                with_scratch(Scratch::Gradient, room, |a| dispatch(isa, Widened(task, a)));
            });
        }
    }
}

/// Rows of `b` in a tile.
struct Columns;

impl Job for Columns {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::DOT_COLUMNS
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
    b: &'a [f32],
    n0: usize,
    out: &'a Shared,
}

/// A task whose rows of `a` are widened first, into this memory.
struct Widened<'a>(Task<'a>, &'a mut [f32]);

impl Job for Widened<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(task, to) = self;
        let Task {
            dot,
            m0,
            count,
            k0,
            depth,
            width,
            ..
        } = task;
        for (i, row) in to.chunks_exact_mut(width).enumerate() {
            if i < count {
                dot.a
                    .part((m0 + i) * dot.k + k0, depth)
                    .widen(s, &mut row[..depth]);
                row[depth..].fill(0.0);
            } else {
                row.fill(0.0);
            }
        }
        let rows = task.b.len() / width;
        for j0 in (0..rows).step_by(GROUP) {
            let end = rows.min(j0 + GROUP);
            for i in (0..count).step_by(TILE) {
                let a = Stored::F32(&to[i * width..(i + TILE) * width]);
                let mut j = j0;
                while j < end {
                    j += task.tiles(s, a, [width, width, TILE], i, j, end - j);
                }
            }
        }
    }
}

/// A task whose rows of `a` are widened as they are multiplied.
struct Once<'a>(Task<'a>);

impl Job for Once<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(task) = self;
        let Dot { a, k, .. } = *task.dot;
        let rows = task.b.len() / task.width;
        for i in (0..task.count).step_by(TILE) {
            let here = TILE.min(task.count - i);
            let a = a.part((task.m0 + i) * k + task.k0, (here - 1) * k + task.depth);
            let mut j = 0;
            while j < rows {
                j += task.tiles(s, a, [k, task.depth, here], i, j, rows - j);
            }
        }
    }
}

impl Task<'_> {
    /// `count` of `TILE` rows of `a`, `stride` apart and `depth` long, against up to `left` rows of `b` from `j` on; gives
    /// back against how many.
    #[inline(always)]
    fn tiles<S: Simd>(
        &self,
        s: S,
        a: Stored<'_>,
        size: [usize; 3],
        i: usize,
        j: usize,
        left: usize,
    ) -> usize {
        match left.min(S::DOT_COLUMNS) {
            6.. => self.tile::<S, 6>(s, a, size, i, j),
            3.. => self.tile::<S, 3>(s, a, size, i, j),
            2 => self.tile::<S, 2>(s, a, size, i, j),
            _ => self.tile::<S, 1>(s, a, size, i, j),
        }
    }

    /// As [`Self::tiles`], against `N`.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(
        &self,
        s: S,
        stored: Stored<'_>,
        [stride, depth, count]: [usize; 3],
        i: usize,
        j: usize,
    ) -> usize {
        let width = self.width;
        let whole = depth / S::LANES * S::LANES;
        assert!(
            stored.len() >= (count - 1) * stride + depth
                && (j + N) * width <= self.b.len()
                && width.is_multiple_of(S::LANES)
                && depth <= width
        );
        let mut sums = [[s.splat(0.0); N]; TILE];
        // Rows that are missing are the last one once more.
        let at: [usize; TILE] = std::array::from_fn(|row| row.min(count - 1) * stride);
        macro_rules! sum {
            ($a:expr, $load:ident) => {{
                let a = $a;
                // SAFETY: the rows lie in their slices, and whole vectors in the rows; the 16-bit types are their bits.
                unsafe {
                    let b = self.b.as_ptr().add(j * width);
                    let mut k = 0;
                    while k < depth {
                        let mut x = [s.splat(0.0); N];
                        for (j, x) in x.iter_mut().enumerate() {
                            *x = s.load(b.add(j * width + k));
                        }
                        for (at, sums) in at.iter().zip(&mut sums) {
                            let from = a.as_ptr().add(at + k);
                            s.prefetch(from.wrapping_add(TILE * stride).cast());
                            let v = if k < whole {
                                s.$load(from.cast())
                            } else {
                                let mut rest = [0.0; MOST];
                                let left = depth - k;
                                stored.part(at + k, left).widen(s, &mut rest[..left]);
                                s.load(rest.as_ptr())
                            };
                            for (sum, b) in sums.iter_mut().zip(x) {
                                *sum = s.fma(v, b, *sum);
                            }
                        }
                        k += S::LANES;
                    }
                }
            }};
        }
        match stored {
            Stored::F32(a) => sum!(a, load),
            Stored::Bf16(a) => sum!(a, load_bf16),
            Stored::F16(a) => sum!(a, load_f16),
        }
        let dot = self.dot;
        for (row, sums) in sums.iter().enumerate().take(count.min(self.count - i)) {
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
