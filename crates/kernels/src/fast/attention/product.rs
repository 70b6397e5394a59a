//! Products of small blocks: rows of queries by keys, of probabilities by values, and their transposes.

use super::super::simd::Simd;

/// Whether a product replaces its result or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    New,
    Add,
}

/// The `[count, d]` values of `x`, rows `stride` apart, in blocks of `rows` of them, `[blocks, d, rows]`, the last as long as there
/// are rows.
pub(super) fn pack(x: &[f32], stride: usize, [count, d]: [usize; 2], rows: usize) -> Vec<f32> {
    let mut to = vec![0.0; count * d];
    for (block, to) in to.chunks_mut(rows * d).enumerate() {
        let rows_here = to.len() / d;
        for i in 0..rows_here {
            let row = &x[(block * rows + i) * stride..][..d];
            for (to, x) in to[i..].iter_mut().step_by(rows_here).zip(row) {
                *to = *x;
            }
        }
    }
    to
}

/// The left operand of a product, in an order known when compiling.
pub(super) trait Left: Copy {
    /// From row `i` on, a whole number of blocks, for sums of length `depth`.
    ///
    /// # Safety
    /// There are such rows.
    unsafe fn skip(self, i: usize, depth: usize) -> Self;
    /// Where value `k` of row `m` lies, in a block of `M` rows.
    ///
    /// # Safety
    /// There is such a value.
    unsafe fn at<const M: usize>(self, m: usize, k: usize) -> *const f32;
}

/// Rows `STRIDE` apart.
#[derive(Clone, Copy)]
pub(super) struct InRows<const STRIDE: usize>(pub(super) *const f32);

impl<const STRIDE: usize> Left for InRows<STRIDE> {
    #[inline(always)]
    unsafe fn skip(self, i: usize, _: usize) -> Self {
        // SAFETY: by the caller's promise.
        Self(unsafe { self.0.add(i * STRIDE) })
    }
    #[inline(always)]
    unsafe fn at<const M: usize>(self, m: usize, k: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.0.add(k + m * STRIDE) }
    }
}

/// Columns `STRIDE` apart.
#[derive(Clone, Copy)]
pub(super) struct InColumns<const STRIDE: usize>(pub(super) *const f32);

impl<const STRIDE: usize> Left for InColumns<STRIDE> {
    #[inline(always)]
    unsafe fn skip(self, i: usize, _: usize) -> Self {
        // SAFETY: by the caller's promise.
        Self(unsafe { self.0.add(i) })
    }
    #[inline(always)]
    unsafe fn at<const M: usize>(self, m: usize, k: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.0.add(k * STRIDE + m) }
    }
}

/// As [`pack`] lays rows out.
#[derive(Clone, Copy)]
pub(super) struct InBlocks(pub(super) *const f32);

impl Left for InBlocks {
    #[inline(always)]
    unsafe fn skip(self, i: usize, depth: usize) -> Self {
        // SAFETY: by the caller's promise.
        Self(unsafe { self.0.add(i * depth) })
    }
    #[inline(always)]
    unsafe fn at<const M: usize>(self, m: usize, k: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.0.add(k * M + m) }
    }
}

/// `c[i][j] (+)= sum over k of a[i][k] b[k][j]` for `[rows, columns, depth]`; columns are whole vectors.
///
/// # Safety
/// `a` has `rows` rows of `depth`, `b` and `c` whole rows of `columns`.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, A: Left>(
    s: S,
    [rows, columns, depth]: [usize; 3],
    a: A,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
    sum: Sum,
) {
    let vectors = columns / S::LANES;
    let mut j = 0;
    while j < vectors {
        let n = (vectors - j).min(2);
        let mut i = 0;
        while i < rows {
            let m = (rows - i).min(S::ROWS);
            // SAFETY: by the caller's promise.
            unsafe {
                let a = a.skip(i, depth);
                let b = (b.add(j * S::LANES), b_stride);
                let c = (c.add(i * c_stride + j * S::LANES), c_stride);
                macro_rules! pick {
                    ($($m:literal)*) => {
                        match m {
                            $($m if $m <= S::ROWS => if n == 2 {
                                tile::<S, A, $m, 2>(s, depth, a, b, c, sum)
                            } else {
                                tile::<S, A, $m, 1>(s, depth, a, b, c, sum)
                            },)*
                            _ => unreachable!("{m} rows"),
                        }
                    };
                }
                pick!(1 2 3 4 5 6 7 8 9 10 11 12 13);
            }
            i += m;
        }
        j += n;
    }
}

/// `M` rows by `N` vectors of a product.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn tile<S: Simd, A: Left, const M: usize, const N: usize>(
    s: S,
    depth: usize,
    a: A,
    (b, b_stride): (*const f32, usize),
    (c, c_stride): (*mut f32, usize),
    sum: Sum,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut acc = [[s.splat(0.0); N]; M];
        for k in 0..depth {
            let mut x = [s.splat(0.0); N];
            for (n, x) in x.iter_mut().enumerate() {
                *x = s.load(b.add(k * b_stride + n * S::LANES));
            }
            for (m, acc) in acc.iter_mut().enumerate() {
                let a = s.splat(*a.at::<M>(m, k));
                for (acc, b) in acc.iter_mut().zip(x) {
                    *acc = s.fma(a, b, *acc);
                }
            }
        }
        for (m, acc) in acc.iter().enumerate() {
            for (n, &acc) in acc.iter().enumerate() {
                let c = c.add(m * c_stride + n * S::LANES);
                let acc = match sum {
                    Sum::New => acc,
                    Sum::Add => s.add(s.load(c), acc),
                };
                s.store(c, acc);
            }
        }
    }
}
