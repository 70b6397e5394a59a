//! The transforms of Winograd's F(4x4, 3x3): a vector of tiles, or of kernels, at a time.
//!
//! The points are 0, 3/4, -3/4, 3/2, -3/2 and infinity. They are exact in binary, as are their products in the matrices of
//! the input and of the output, and their error is half of that of the usual 0, 1, -1, 2, -2.

use super::super::simd::Simd;

/// Values on a side of a transformed tile.
pub(super) const SIDE: usize = 6;
/// Outputs on a side of a tile.
pub(super) const STEP: usize = 4;
/// Values of a transformed tile.
pub(super) const POINTS: usize = SIDE * SIDE;

const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// `B^T d`: six values of an input's column, or row.
#[inline(always)]
pub(super) fn input<S: Simd>(s: S, d: [S::V; SIDE]) -> [S::V; SIDE] {
    let [d0, d1, d2, d3, d4, d5] = d;
    let ends = s.splat(-(A2 + B2));
    let first = s.fma(ends, d2, d4);
    let last = s.fma(ends, d3, d5);
    let both = s.splat(A2 * B2);
    let (a2, b2) = (s.splat(-A2), s.splat(-B2));
    let even_a = s.fma(b2, d2, d4);
    let even_b = s.fma(a2, d2, d4);
    let odd_a = s.mul(s.splat(A), s.fma(b2, d1, d3));
    let odd_b = s.mul(s.splat(B), s.fma(a2, d1, d3));
    [
        s.fma(both, d0, first),
        s.add(even_a, odd_a),
        s.sub(even_a, odd_a),
        s.add(even_b, odd_b),
        s.sub(even_b, odd_b),
        s.fma(both, d1, last),
    ]
}

/// `G g`: three values of a kernel's column.
#[inline(always)]
fn kernel_column<S: Simd>(s: S, [g0, g1, g2]: [S::V; 3]) -> [S::V; SIDE] {
    // 1 / product of the differences from the other points: for A and -A, then for B and -B.
    const AT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
    const AT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
    let (a, b) = (s.splat(AT_A), s.splat(AT_B));
    let even_a = s.mul(a, s.fma(s.splat(A2), g2, g0));
    let even_b = s.mul(b, s.fma(s.splat(B2), g2, g0));
    let odd_a = s.mul(s.splat(AT_A * A), g1);
    let odd_b = s.mul(s.splat(AT_B * B), g1);
    [
        s.mul(s.splat(1.0 / (A2 * B2)), g0),
        s.add(even_a, odd_a),
        s.sub(even_a, odd_a),
        s.add(even_b, odd_b),
        s.sub(even_b, odd_b),
        g2,
    ]
}

/// `A^T m`: four outputs of a column of products.
#[inline(always)]
fn output_column<S: Simd>(s: S, m: [S::V; SIDE]) -> [S::V; STEP] {
    let [m0, m1, m2, m3, m4, m5] = m;
    let (even_a, odd_a) = (s.add(m1, m2), s.sub(m1, m2));
    let (even_b, odd_b) = (s.add(m3, m4), s.sub(m3, m4));
    [
        s.add(m0, s.add(even_a, even_b)),
        s.fma(s.splat(B), odd_b, s.mul(s.splat(A), odd_a)),
        s.fma(s.splat(B2), even_b, s.mul(s.splat(A2), even_a)),
        s.add(
            m5,
            s.fma(s.splat(B2 * B), odd_b, s.mul(s.splat(A2 * A), odd_a)),
        ),
    ]
}

/// `G g G^T` of kernels `g[row][column]`.
#[inline(always)]
pub(super) fn kernel<S: Simd>(s: S, g: [[S::V; 3]; 3]) -> [[S::V; SIDE]; SIDE] {
    let mut columns = [[s.splat(0.0); SIDE]; 3];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = kernel_column(s, [g[0][x], g[1][x], g[2][x]]);
    }
    let mut out = [[s.splat(0.0); SIDE]; SIDE];
    for (y, row) in out.iter_mut().enumerate() {
        let [a, b, c] = columns;
        *row = kernel_column(s, [a[y], b[y], c[y]]);
    }
    out
}

/// `A^T m A` of products `m[row][column]`.
#[inline(always)]
pub(super) fn output<S: Simd>(s: S, m: [[S::V; SIDE]; SIDE]) -> [[S::V; STEP]; STEP] {
    let mut columns = [[s.splat(0.0); STEP]; SIDE];
    for (x, column) in columns.iter_mut().enumerate() {
        *column = output_column(s, [m[0][x], m[1][x], m[2][x], m[3][x], m[4][x], m[5][x]]);
    }
    let mut out = [[s.splat(0.0); STEP]; STEP];
    for (y, row) in out.iter_mut().enumerate() {
        let [a, b, c, d, e, f] = columns;
        *row = output_column(s, [a[y], b[y], c[y], d[y], e[y], f[y]]);
    }
    out
}
