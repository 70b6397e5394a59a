//! The innermost loop of a convolution: a block of output channels times a few vectors of pixels.
//!
//! `y[m][q] = sum over channels c and taps t of w[c][t][m] * x[c * stride + offset[t] + q]`, in that order
//! for every output, so that neither the blocking nor the number of threads changes a bit.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use super::{
    isa::Isa,
    simd::{Job, Simd, dispatch},
};

/// What an output starts from.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// Zero.
    Zero,
    /// The channel's bias, from this address.
    Bias(*const f32),
    /// What the output holds (the channels before this chunk).
    Output,
}

/// One run of blocks: every block of output channels at every vector of a strip of pixels.
pub(super) struct Strip<'a> {
    /// The expanded input of the chunk's first channel.
    pub(super) x: *const f32,
    /// Floats between channels of the input.
    pub(super) x_stride: usize,
    /// Input channels of this chunk.
    pub(super) channels: usize,
    /// Offset of each tap.
    pub(super) taps: &'a [usize],
    /// Vectors in a row and floats between rows, or `usize::MAX` where the pixels are contiguous.
    pub(super) row_vectors: usize,
    /// Floats between rows of the input.
    pub(super) row_stride: usize,
    /// Pixels of the strip.
    pub(super) pixels: usize,
    /// Blocks of output channels: their size and packed weights.
    pub(super) blocks: &'a [(usize, &'a [f32])],
    /// The output of the first block's first channel and the strip's first pixel.
    pub(super) y: *mut f32,
    /// Floats between channels of the output.
    pub(super) y_stride: usize,
    /// What the outputs start from.
    pub(super) start: Start,
}

/// Runs a strip.
///
/// # Safety
/// Every address that the description implies is valid, and no one else touches the outputs.
pub(super) unsafe fn run(isa: Isa, strip: &Strip<'_>) {
    dispatch(isa, RunStrip(strip));
}

struct RunStrip<'a>(&'a Strip<'a>);

impl Job for RunStrip<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let strip = self.0;
        let vectors = strip.pixels.div_ceil(S::LANES);
        let whole = strip.pixels / S::LANES;
        // Few channels leave room for more pixels.
        let most = strip.blocks.iter().map(|block| block.0).max().unwrap_or(0);
        let wide = if 4 * most <= 2 * S::ROWS && most <= 6 {
            4
        } else {
            2
        };
        let mut v = 0;
        while v < vectors {
            let n = match vectors - v {
                _ if v >= whole => 0,
                _ if wide == 4 && v + 4 <= whole => 4,
                _ if v + 2 <= whole => 2,
                _ => 1,
            };
            let mut m0 = 0;
            for &(m, weights) in strip.blocks {
                // SAFETY: `run`'s caller promised the addresses; v..v + n are vectors of the strip.
                unsafe {
                    match n {
                        4 => rows::<S, 4, false>(s, strip, m, m0, v, weights),
                        2 => rows::<S, 2, false>(s, strip, m, m0, v, weights),
                        1 => rows::<S, 1, false>(s, strip, m, m0, v, weights),
                        _ => rows::<S, 1, true>(s, strip, m, m0, v, weights),
                    }
                }
                m0 += m;
            }
            v += n.max(1);
        }
    }
}

/// Picks the tile with `m` rows.
///
/// # Safety
/// As `run`.
#[inline(always)]
unsafe fn rows<S: Simd, const N: usize, const PART: bool>(
    s: S,
    strip: &Strip<'_>,
    m: usize,
    m0: usize,
    v: usize,
    weights: &[f32],
) {
    macro_rules! pick {
        ($($m:literal)*) => {
            match m {
                // SAFETY: as `run`.
                $($m if $m <= S::ROWS && (N < 4 || $m <= 6) => unsafe {
                    tile::<S, $m, N, PART>(s, strip, m0, v, weights)
                },)*
                _ => unreachable!("a block of {m} channels"),
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8 9 10 11 12 13);
}

/// `M` output channels by `N` vectors; with `PART` the vector is the strip's incomplete last one.
///
/// # Safety
/// As `run`.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const N: usize, const PART: bool>(
    s: S,
    strip: &Strip<'_>,
    m0: usize,
    v: usize,
    weights: &[f32],
) {
    let offset: [usize; N] = std::array::from_fn(|n| {
        let v = v + n;
        if strip.row_vectors == usize::MAX {
            v * S::LANES
        } else {
            v / strip.row_vectors * strip.row_stride + v % strip.row_vectors * S::LANES
        }
    });
    let valid = (strip.pixels - v * S::LANES).min(S::LANES);
    assert_eq!(weights.len(), strip.channels * strip.taps.len() * M);
    let mut sums = [[s.splat(0.0); N]; M];
    let mut w = weights.as_ptr();
    for c in 0..strip.channels {
        for &tap in strip.taps {
            // SAFETY: the caller promised the input; the weights' length was checked above.
            unsafe {
                let x = strip.x.add(c * strip.x_stride + tap);
                let x: [S::V; N] = std::array::from_fn(|n| {
                    if PART {
                        s.load_part(x.add(offset[n]), valid)
                    } else {
                        s.load(x.add(offset[n]))
                    }
                });
                for (m, sums) in sums.iter_mut().enumerate() {
                    let w = s.splat(*w.add(m));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = s.fma(w, x, *sum);
                    }
                }
                w = w.add(M);
            }
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller promised the outputs and, with `Start::Bias`, the bias.
            unsafe {
                let y = strip.y.add((m0 + m) * strip.y_stride + (v + n) * S::LANES);
                let sum = match strip.start {
                    Start::Zero => sum,
                    Start::Bias(bias) => s.add(sum, s.splat(*bias.add(m0 + m))),
                    Start::Output if PART => s.add(sum, s.load_part(y, valid)),
                    Start::Output => s.add(sum, s.load(y)),
                };
                if PART {
                    s.store_part(y, sum, valid);
                } else {
                    s.store(y, sum);
                }
            }
        }
    }
}
