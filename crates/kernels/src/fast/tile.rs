//! The innermost loop of a convolution: a block of output channels times a few vectors of pixels.
//!
//! `y[m][q] = sum over channels c and taps t of w[c][t][m] * x[c * stride + offset[t] + q]`, in that order
//! for every output, so that neither the blocking nor the number of threads changes a bit.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use std::marker::PhantomData;

use super::{
    amx::{self, DEPTH, Next, Place, SIDE, TILE, Tiles},
    isa::Isa,
    pairs::{Kernel, Pair, Product, Single},
    simd::{Job, Simd, dispatch, dispatch_pairs},
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

impl Strip<'_> {
    /// Floats from the strip's first pixel to the first of vector `v`.
    #[inline(always)]
    fn offset<S: Simd>(&self, v: usize) -> usize {
        if self.row_vectors == usize::MAX {
            v * S::LANES
        } else {
            v / self.row_vectors * self.row_stride + v % self.row_vectors * S::LANES
        }
    }
}

/// Runs a strip.
///
/// For [`Kernel::Tiles`] a block's weights are tiles `[channels / 16, taps, 16 outputs, 16 channels]` with zeros where a
/// tile is not full, the input has zeros for the channels that are missing from the last tile, and 15 more floats after
/// each channel's last pixel may be read.
///
/// # Safety
/// Every address that the description implies is valid, and no one else touches the outputs.
pub(super) unsafe fn run(isa: Isa, kernel: Kernel, strip: &Strip<'_>) {
    match kernel {
        Kernel::Single => dispatch(isa, RunStrip::<Single>(strip, PhantomData)),
        Kernel::Pair => dispatch_pairs(isa, RunStrip::<Pair>(strip, PhantomData)),
        Kernel::Tiles => dispatch(isa, RunTiles(strip)),
    }
}

struct RunTiles<'a>(&'a Strip<'a>);

impl Job for RunTiles<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(S::LANES, SIDE, "tiles come with AVX-512");
        let strip = self.0;
        let tiles = Tiles::new().expect("the set has tiles");
        let steps: Vec<usize> = (0..strip.channels.div_ceil(DEPTH))
            .flat_map(|group| {
                let first = group * DEPTH * strip.x_stride;
                strip.taps.iter().map(move |tap| 4 * (first + tap))
            })
            .collect();
        let vectors = strip.pixels.div_ceil(SIDE);
        let mut results = amx::Results::ZERO;
        let mut m0 = 0;
        for blocks in strip.blocks.chunks(2) {
            let rows = blocks.len();
            let (first, second) = (blocks[0].1, blocks[rows - 1].1);
            assert_eq!(first.len(), steps.len() * TILE);
            assert_eq!(second.len(), first.len());
            for v in (0..vectors).step_by(2) {
                let columns = (vectors - v).min(2);
                let window = Window {
                    strip,
                    blocks,
                    m0,
                    v,
                    columns,
                };
                // SAFETY: `run`'s caller promised the addresses.
                unsafe {
                    let (start, out) = window.places(s, &mut results);
                    let operands = amx::Operands {
                        a: first.as_ptr(),
                        a_second: (second.as_ptr() as usize).wrapping_sub(first.as_ptr() as usize),
                        a_stride: 4 * DEPTH,
                        a_step: 4 * TILE,
                        b: strip.x.add(strip.offset::<S>(v)),
                        b_second: 4 * (strip.offset::<S>(v + columns - 1) - strip.offset::<S>(v)),
                        b_stride: 4 * strip.x_stride,
                        steps: &steps,
                        start,
                        out,
                        next: Next::nothing(strip.x),
                    };
                    tiles.run([rows, columns], &operands);
                    if !window.is_whole() {
                        window.store(s, &results);
                    }
                }
            }
            m0 += blocks.iter().map(|block| block.0).sum::<usize>();
        }
    }
}

/// Up to two blocks by up to two vectors of a strip.
struct Window<'a> {
    strip: &'a Strip<'a>,
    blocks: &'a [(usize, &'a [f32])],
    /// The first block's first output channel.
    m0: usize,
    /// The first vector.
    v: usize,
    /// Vectors.
    columns: usize,
}

impl Window<'_> {
    /// Calls `f` with every output row's address in the strip, place in the results, channel and pixels.
    #[inline(always)]
    fn each_row(&self, mut f: impl FnMut(usize, [usize; 2], usize, usize)) {
        let mut channel = self.m0;
        for (i, block) in self.blocks.iter().enumerate() {
            for row in 0..block.0 {
                for n in 0..self.columns {
                    let first = (self.v + n) * SIDE;
                    let valid = (self.strip.pixels - first).min(SIDE);
                    let at = channel * self.strip.y_stride + first;
                    f(at, [i * SIDE + row, n * SIDE], channel, valid);
                }
                channel += 1;
            }
        }
    }

    /// Whether all tiles are full, so that they lie in the output as they are.
    fn is_whole(&self) -> bool {
        self.blocks.iter().all(|block| block.0 == SIDE)
            && (self.v + self.columns) * SIDE <= self.strip.pixels
    }

    /// What the tiles start from and where they go: the results where not both are in the output.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn places<S: Simd>(&self, s: S, results: &mut amx::Results) -> (Place, Place) {
        let strip = self.strip;
        let output = Place {
            // SAFETY: as `run`.
            at: unsafe { strip.y.add(self.m0 * strip.y_stride + self.v * SIDE) },
            stride: 4 * strip.y_stride,
        };
        let whole = self.is_whole();
        if !(whole && matches!(strip.start, Start::Output)) {
            // SAFETY: as `run`.
            unsafe { self.start(s, results) };
        }
        let place = results.place();
        match (whole, strip.start) {
            (true, Start::Output) => (output, output),
            (true, _) => (place, output),
            (false, _) => (place, place),
        }
    }

    /// Writes what the results start from.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn start<S: Simd>(&self, s: S, results: &mut amx::Results) {
        let strip = self.strip;
        self.each_row(|at, [row, column], channel, valid| {
            // SAFETY: as `run`; a row of the results is a vector.
            unsafe {
                let value = match strip.start {
                    Start::Zero => s.splat(0.0),
                    Start::Bias(bias) => s.splat(*bias.add(channel)),
                    Start::Output => s.load_part(strip.y.add(at), valid),
                };
                s.store(results.0[row][column..][..SIDE].as_mut_ptr(), value);
            }
        });
    }

    /// Stores the results.
    ///
    /// # Safety
    /// As `run`.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, results: &amx::Results) {
        self.each_row(|at, [row, column], _, valid| {
            // SAFETY: as `run`; a row of the results is a vector.
            unsafe {
                let value = s.load(results.0[row][column..][..SIDE].as_ptr());
                s.store_part(self.strip.y.add(at), value, valid);
            }
        });
    }
}

struct RunStrip<'a, P>(&'a Strip<'a>, PhantomData<P>);

impl<P: Product> Job for RunStrip<'_, P> {
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
                        4 => rows::<S, P, 4, false>(s, strip, m, m0, v, weights),
                        2 => rows::<S, P, 2, false>(s, strip, m, m0, v, weights),
                        1 => rows::<S, P, 1, false>(s, strip, m, m0, v, weights),
                        _ => rows::<S, P, 1, true>(s, strip, m, m0, v, weights),
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
unsafe fn rows<S: Simd, P: Product, const N: usize, const PART: bool>(
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
                    tile::<S, P, $m, N, PART>(s, strip, m0, v, weights)
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
unsafe fn tile<S: Simd, P: Product, const M: usize, const N: usize, const PART: bool>(
    s: S,
    strip: &Strip<'_>,
    m0: usize,
    v: usize,
    weights: &[f32],
) {
    let offset: [usize; N] = std::array::from_fn(|n| strip.offset::<S>(v + n));
    let valid = (strip.pixels - v * S::LANES).min(S::LANES);
    assert_eq!(weights.len(), strip.channels * strip.taps.len() * M);
    let mut sums = [[s.splat(0.0); N]; M];
    let mut w = weights.as_ptr();
    for c in 0..strip.channels {
        for &tap in strip.taps {
            // SAFETY: the caller promised the input; the weights' length was checked above.
            unsafe {
                let from = strip.x.add(c * strip.x_stride + tap);
                let mut x = [s.splat(0.0); N];
                for (x, offset) in x.iter_mut().zip(offset) {
                    *x = if PART {
                        s.load_part(from.add(offset), valid)
                    } else {
                        s.load(from.add(offset))
                    };
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let w = s.splat(*w.add(m));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = P::accumulate(s, w, x, *sum);
                    }
                }
                w = w.add(M);
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        for (n, &sum) in sums.iter().enumerate() {
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
