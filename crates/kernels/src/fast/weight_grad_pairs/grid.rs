//! Both operands on the grid of pixels.

#![expect(
    unsafe_code,
    reason = "memory that is not zeroed, and pairs as two halves"
)]

use rayon::prelude::*;

use super::{
    super::{
        amx::{DEPTH, SIDE, TILE},
        conv::ConvShape,
        expand::source_row,
        isa::Isa,
        pairs::round,
        shared::{copy_as, unwritten},
        simd::{Job, Simd, dispatch},
    },
    PIXELS, RUN,
};

/// Both operands on the grid.
pub(super) struct Operands {
    /// `[image, input channel, pixel]`, the input at every phase of the stride, and zeros.
    x: Vec<u16>,
    /// `[image, sixteen output channels, pair of pixels, channel]`.
    dy: Vec<f32>,
    /// Images.
    batch: usize,
    /// Values of `x` for an image's channel.
    pub(super) channel: usize,
    /// Input channels, with those that fill the last tile.
    inputs: usize,
    /// Sixteens of output channels.
    groups: usize,
    /// Tiles of pixels.
    pub(super) tiles: usize,
    /// Pixels from an output's first input to each tap's.
    pub(super) taps: Vec<usize>,
}

impl Operands {
    pub(super) fn new(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Self {
        let [c_in, h, w] = shape.input;
        let [c_out, oh, ow] = shape.output;
        let ([kh, kw], s) = (shape.kernel, shape.stride);
        let pitch = ow + (kw - 1) / s;
        let plane = (oh + (kh - 1) / s) * pitch;
        let taps: Vec<usize> = (0..kh * kw)
            .map(|tap| {
                let (ky, kx) = (tap / kw, tap % kw);
                (ky % s * s + kx % s) * plane + ky / s * pitch + kx / s
            })
            .collect();
        let tiles = (oh * pitch).div_ceil(PIXELS);
        let furthest = taps.iter().max().expect("a kernel has taps") + tiles * PIXELS;
        let channel = (s * s * plane).max(furthest).next_multiple_of(PIXELS);
        let inputs = c_in.next_multiple_of(SIDE);
        let groups = c_out.div_ceil(SIDE);

        // SAFETY: every channel is written below.
        let mut x_rows = unsafe { unwritten::<u16>(shape.batch * inputs * channel) };
        x_rows
            .par_chunks_mut(channel)
            .enumerate()
            .for_each(|(i, to)| {
                if i % inputs >= c_in {
                    to.fill(0);
                    return;
                }
                to[s * s * plane..].fill(0);
                let from = &x[(i / inputs * c_in + i % inputs) * h * w..][..h * w];
                let before = shape.before;
                let job = Spread {
                    from,
                    width: w,
                    to,
                    planes: [s, plane, pitch],
                    before,
                };
                dispatch(isa, job);
            });
        let half = tiles * DEPTH;
        // SAFETY: `Turn` writes every value.
        let mut dy_pairs = unsafe { unwritten::<f32>(shape.batch * groups * half * SIDE) };
        dy_pairs
            .par_chunks_mut(half * SIDE)
            .enumerate()
            .for_each(|(i, to)| {
                let co0 = i % groups * SIDE;
                let count = SIDE.min(c_out - co0);
                let from = &dy[(i / groups * c_out + co0) * oh * ow..][..count * oh * ow];
                dispatch(
                    isa,
                    Turn {
                        from,
                        rows: oh,
                        cols: ow,
                        pitch,
                        half,
                        to,
                    },
                );
            });
        Self {
            x: x_rows,
            dy: dy_pairs,
            batch: shape.batch,
            channel,
            inputs,
            groups,
            tiles,
            taps,
        }
    }

    /// The address of `x` from a pixel of an input channel on.
    pub(super) fn x(&self, image: usize, ci: usize, pixel: usize) -> *const u16 {
        let at = (image * self.inputs + ci) * self.channel + pixel;
        self.x[at..].as_ptr()
    }

    /// The address of `dy` from a tile of pixels of a sixteen of output channels on.
    pub(super) fn dy(&self, image: usize, group: usize, tile: usize) -> *const f32 {
        let at = ((image * self.groups + group) * self.tiles + tile) * TILE;
        self.dy[at..].as_ptr()
    }

    /// Images and runs of tiles, in the order in which their products are summed.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let runs = self.tiles.div_ceil(RUN);
        let length = self.tiles.div_ceil(runs);
        (0..self.batch).flat_map(move |image| {
            (0..self.tiles)
                .step_by(length)
                .map(move |first| (image, first..(first + length).min(self.tiles)))
        })
    }
}

/// A channel of the input as bfloat16 on the grid.
struct Spread<'a> {
    from: &'a [f32],
    width: usize,
    to: &'a mut [u16],
    /// Phases in each direction, values of one of their planes, and of its rows.
    planes: [usize; 3],
    before: [isize; 2],
}

impl Job for Spread<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let [phases, plane, pitch] = self.planes;
        for (phase, to) in self.to.chunks_mut(plane).take(phases * phases).enumerate() {
            let (py, px) = ((phase / phases) as isize, (phase % phases) as isize);
            for (r, to) in to.chunks_exact_mut(pitch).enumerate() {
                let at = (r * phases) as isize + py - self.before[0];
                let row = source_row(self.from, self.width, at);
                copy_as(to, row, px - self.before[1], phases, round);
            }
        }
    }
}

/// Up to sixteen channels of the output's gradient as pairs of pixels by channels.
struct Turn<'a> {
    from: &'a [f32],
    rows: usize,
    cols: usize,
    pitch: usize,
    /// Pairs of pixels.
    half: usize,
    to: &'a mut [f32],
}

impl Job for Turn<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            from,
            rows,
            cols,
            pitch,
            half,
            to,
        } = self;
        let mut grid = vec![0.0f32; SIDE * half];
        // SAFETY: an f32 is two u16 of any bits.
        let halves = unsafe {
            std::slice::from_raw_parts_mut(grid.as_mut_ptr().cast::<u16>(), 2 * grid.len())
        };
        for (to, from) in halves
            .chunks_exact_mut(2 * half)
            .zip(from.chunks_exact(rows * cols))
        {
            for (to, from) in to.chunks_mut(pitch).zip(from.chunks_exact(cols)) {
                copy_as(to, Some(from), 0, 1, round);
            }
        }
        assert_eq!(to.len(), half * SIDE);
        for l in (0..SIDE).step_by(S::LANES) {
            for q in (0..half).step_by(S::LANES) {
                // SAFETY: LANES channels from l and LANES pairs from q exist on both sides.
                unsafe {
                    let from = grid.as_ptr().add(l * half + q);
                    s.transpose(from, half, to.as_mut_ptr().add(q * SIDE + l), SIDE);
                }
            }
        }
    }
}
