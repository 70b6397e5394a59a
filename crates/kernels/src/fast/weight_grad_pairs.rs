//! The gradient of a convolution's weight by products of bfloat16 pairs.
//!
//! `dw[co][ci][tap] = sum over images and pixels q of dy[co][q] * x[ci][q + tap]`. Pixels are numbered on a grid with
//! room for the taps at the right of each row, where `dy` is zero, so that the input at a tap is the input a fixed number
//! of pixels further on. A pair is two neighbouring pixels: of `x` they lie next to each other in rows of bfloat16, which
//! may be read from any pixel on; `dy` is transposed to pairs of pixels by channels.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use rayon::prelude::*;

use super::{
    amx::{self, DEPTH, SIDE, TILE, Tiles},
    conv::ConvShape,
    expand::source_row,
    isa::Isa,
    pairs::{Kernel, round},
    shared::{Shared, copy_as, unwritten},
    simd::{Job, Simd, dispatch, dispatch_pairs},
};

/// Pixels of a tile.
const PIXELS: usize = 2 * DEPTH;
/// Tiles of pixels whose products are summed while both operands stay in the first-level cache.
const RUN: usize = 10;

/// The gradient of the weight, `[c_out, c_in, kh, kw]`.
pub(super) fn weight_grad(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert_eq!(dy.len(), shape.batch * c_out * oh * ow);
    let taps = shape.taps();
    let mut dw = vec![0.0; c_out * c_in * taps];
    if dw.is_empty() || dy.is_empty() {
        return dw;
    }
    let operands = Operands::new(isa, shape, x, dy);
    let (c_blocks, o_blocks) = (c_in.div_ceil(2 * SIDE), c_out.div_ceil(2 * SIDE));
    let kernel = shape.products.kernel(isa);
    // Where blocks are few, a task takes the taps of one row of the kernel.
    let parts = if c_blocks * o_blocks < 4 * rayon::current_num_threads() {
        shape.kernel[0]
    } else {
        1
    };
    let part = taps / parts;
    let out = Shared::new(&mut dw);
    (0..c_blocks * o_blocks * parts)
        .into_par_iter()
        .for_each(|task| {
            let (first, task) = (task % parts * part, task / parts);
            let (ci0, co0) = (task / o_blocks * 2 * SIDE, task % o_blocks * 2 * SIDE);
            let block = Block {
                operands: &operands,
                inputs: (c_in - ci0).min(2 * SIDE),
                outputs: (c_out - co0).min(2 * SIDE),
                ci0,
                co0,
                taps: &operands.taps[first..first + part],
            };
            let sums = match kernel {
                Kernel::Tiles => block.by_tiles(),
                _ => dispatch_pairs(isa, ByVectors(&block)),
            };
            for (tap, sums) in sums.iter().enumerate() {
                for l in 0..block.outputs {
                    for c in 0..block.inputs {
                        // SAFETY: these weights belong to this task alone, and the vector outlives it.
                        unsafe {
                            let at = ((co0 + l) * c_in + ci0 + c) * taps + first + tap;
                            *out.at(at, 1) = sums.0[c / SIDE][l / SIDE][c % SIDE][l % SIDE];
                        }
                    }
                }
            }
        });
    dw
}

/// Both operands on the grid.
struct Operands {
    /// `[image, input channel, pixel]`, the input at every phase of the stride, and zeros.
    x: Vec<u16>,
    /// `[image, sixteen output channels, pair of pixels, channel]`.
    dy: Vec<f32>,
    /// Images.
    batch: usize,
    /// Values of `x` for an image's channel.
    channel: usize,
    /// Input channels, with those that fill the last tile.
    inputs: usize,
    /// Sixteens of output channels.
    groups: usize,
    /// Tiles of pixels.
    tiles: usize,
    /// Pixels from an output's first input to each tap's.
    taps: Vec<usize>,
}

impl Operands {
    fn new(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Self {
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
    fn x(&self, image: usize, ci: usize, pixel: usize) -> *const u16 {
        let at = (image * self.inputs + ci) * self.channel + pixel;
        self.x[at..].as_ptr()
    }

    /// The address of `dy` from a tile of pixels of a sixteen of output channels on.
    fn dy(&self, image: usize, group: usize, tile: usize) -> *const f32 {
        let at = ((image * self.groups + group) * self.tiles + tile) * TILE;
        self.dy[at..].as_ptr()
    }

    /// Images and runs of tiles, in the order in which their products are summed.
    fn runs(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
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

/// One task: up to 32 input by 32 output channels, some taps.
struct Block<'a> {
    operands: &'a Operands,
    /// Their places on the grid, as in [`Operands::taps`].
    taps: &'a [usize],
    inputs: usize,
    outputs: usize,
    ci0: usize,
    co0: usize,
}

/// Sums for each tap, input channels by output channels.
type Sums = Vec<amx::Results>;

impl Block<'_> {
    fn zeros(&self) -> Sums {
        (self.taps.iter())
            .map(|_| amx::Results([[[[0.0; SIDE]; SIDE]; 2]; 2]))
            .collect()
    }

    fn by_tiles(&self) -> Sums {
        let operands = self.operands;
        let tiles = Tiles::new().expect("the set has tiles");
        let mut sums = self.zeros();
        let steps: Vec<usize> = (0..RUN).map(|step| 4 * TILE * step).collect();
        let (rows, columns) = (self.inputs.div_ceil(SIDE), self.outputs.div_ceil(SIDE));
        for (image, run) in operands.runs() {
            let dy = operands.dy(image, self.co0 / SIDE, run.start);
            for (tap, sums) in self.taps.iter().zip(&mut sums) {
                let tile = amx::Operands {
                    a: (operands.x(image, self.ci0, run.start * PIXELS + tap)).cast(),
                    a_second: 2 * SIDE * operands.channel,
                    a_stride: 2 * operands.channel,
                    a_step: 2 * PIXELS,
                    b: dy,
                    b_second: 4 * operands.tiles * TILE,
                    b_stride: 4 * SIDE,
                    steps: &steps[..run.len()],
                };
                // SAFETY: `x` has whole tiles of channels and, from any tap, whole tiles of pixels; `dy` has whole
                // tiles of both.
                unsafe {
                    match (rows, columns) {
                        (1, 1) => tiles.multiply::<1, 1>(&tile, sums),
                        (1, _) => tiles.multiply::<1, 2>(&tile, sums),
                        (_, 1) => tiles.multiply::<2, 1>(&tile, sums),
                        _ => tiles.multiply::<2, 2>(&tile, sums),
                    }
                }
            }
        }
        sums
    }
}

/// A block's sums by vectors.
struct ByVectors<'a>(&'a Block<'a>);

impl Job for ByVectors<'_> {
    type Out = Sums;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Sums {
        let block = self.0;
        let operands = block.operands;
        let mut sums = block.zeros();
        let places: Vec<Place> = (0..block.outputs.div_ceil(SIDE))
            .flat_map(|group| (0..SIDE).step_by(S::LANES).map(move |lane| [group, lane]))
            .collect();
        let wide = S::GRAD_SUMS >= 24;
        for (image, run) in operands.runs() {
            let pairs = run.len() * DEPTH;
            let dy = |[group, lane]: Place| {
                let dy = operands.dy(image, block.co0 / SIDE + group, run.start);
                dy.wrapping_add(lane)
            };
            for (tap, sums) in block.taps.iter().zip(&mut sums) {
                let from = |c: usize| operands.x(image, block.ci0 + c, run.start * PIXELS + tap);
                let mut rest = &places[..];
                // SAFETY: as in `by_tiles`; channels past the block's inputs are not read.
                unsafe {
                    while let ([a, b, tail @ ..], true) = (rest, wide) {
                        let to = [(*a, dy(*a)), (*b, dy(*b))];
                        each::<S, 12, 2>(s, block.inputs, &from, to, pairs, sums);
                        rest = tail;
                    }
                    for &place in rest {
                        let to = [(place, dy(place))];
                        if wide {
                            each::<S, 16, 1>(s, block.inputs, &from, to, pairs, sums);
                        } else if S::GRAD_SUMS >= 8 {
                            each::<S, 8, 1>(s, block.inputs, &from, to, pairs, sums);
                        } else {
                            each::<S, 1, 1>(s, block.inputs, &from, to, pairs, sums);
                        }
                    }
                }
            }
        }
        sums
    }
}

/// A vector of a block's output channels: which sixteen, and the first lane.
type Place = [usize; 2];

/// Adds the products of all input channels with some vectors of output channels, `C` input channels at a time.
///
/// # Safety
/// `from` and the vectors are valid for `pairs` pairs.
#[inline(always)]
unsafe fn each<S: Simd, const C: usize, const N: usize>(
    s: S,
    inputs: usize,
    from: &impl Fn(usize) -> *const u16,
    to: [(Place, *const f32); N],
    pairs: usize,
    sums: &mut amx::Results,
) {
    let mut c = 0;
    // SAFETY: by the caller's promise.
    unsafe {
        while c + C <= inputs {
            add::<S, C, N>(s, from, to, pairs, sums, c);
            c += C;
        }
        while C > 4 && c + 4 <= inputs {
            add::<S, 4, N>(s, from, to, pairs, sums, c);
            c += 4;
        }
        while c < inputs {
            add::<S, 1, N>(s, from, to, pairs, sums, c);
            c += 1;
        }
    }
}

/// Adds the products of `C` input channels from `c` with `N` vectors of output channels.
///
/// # Safety
/// As [`each`].
#[inline(always)]
unsafe fn add<S: Simd, const C: usize, const N: usize>(
    s: S,
    from: &impl Fn(usize) -> *const u16,
    to: [(Place, *const f32); N],
    pairs: usize,
    sums: &mut amx::Results,
    c: usize,
) {
    let x: [*const u16; C] = std::array::from_fn(|i| from(c + i));
    let mut acc = [[s.splat(0.0); N]; C];
    for q in 0..pairs {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut dy = [s.splat(0.0); N];
            for (v, (_, dy)) in dy.iter_mut().zip(to) {
                *v = s.load(dy.add(q * SIDE));
            }
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = s.splat(x.add(2 * q).cast::<f32>().read_unaligned());
                for (acc, dy) in acc.iter_mut().zip(dy) {
                    *acc = s.dot2(x, dy, *acc);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let c = c + i;
        for (&acc, ([group, lane], _)) in acc.iter().zip(to) {
            let to = &mut sums.0[c / SIDE][group][c % SIDE][lane..lane + S::LANES];
            // SAFETY: `to` is one vector.
            unsafe { s.store(to.as_mut_ptr(), s.add(s.load(to.as_ptr()), acc)) };
        }
    }
}
