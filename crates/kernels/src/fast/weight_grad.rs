//! The gradient of a convolution's weight.
//!
//! `dw[co][ci][tap] = sum over images and pixels q of dy[co][q] * x[ci][q * stride + tap]`. Lanes are output
//! channels: a task transposes `dy` to pixels by channels, pads `x`, and keeps a sum for each of a few pairs of input
//! channel and tap. Sums run over
//! at most [`PIXELS`] pixels before they are added up, always in the same order.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loop free of bounds checks"
)]

use rayon::prelude::*;

use super::{
    conv::ConvShape,
    expand::source_row,
    isa::Isa,
    shared::{Scratch, Shared, copy_row, with_scratch},
    simd::{Job, Simd, dispatch},
};

/// Pixels of one sum, so that their gradients stay in the first-level cache.
const PIXELS: usize = 256;
/// Pixels that are padded and transposed at a time.
const STRIP: usize = 1024;

/// The gradient of the weight, `[c_out, c_in, kh, kw]`.
pub(super) fn weight_grad(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert_eq!(dy.len(), shape.batch * c_out * oh * ow);
    let mut dw = vec![0.0; c_out * c_in * shape.taps()];
    if dw.is_empty() || dy.is_empty() {
        return dw;
    }
    let [vector, most] = dispatch(isa, GradLanes);
    let blocks = c_out.div_ceil(most);
    let ranges = (2 * rayon::current_num_threads())
        .div_ceil(blocks)
        .clamp(1, c_in.div_ceil(8));
    let range = c_in.div_ceil(ranges);
    let out = Shared::new(&mut dw);
    (0..blocks * c_in.div_ceil(range))
        .into_par_iter()
        .for_each(|task| {
            let (co0, ci0) = (task % blocks * most, task / blocks * range);
            let lanes = if c_out - co0 <= vector { vector } else { most };
            let block = Block {
                shape,
                x,
                dy,
                outputs: co0..(co0 + lanes).min(c_out),
                inputs: ci0..(ci0 + range).min(c_in),
                out: &out,
            };
            block.run(isa, lanes);
        });
    dw
}

/// Output channels of the smallest and of the largest block.
struct GradLanes;

impl Job for GradLanes {
    type Out = [usize; 2];
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [usize; 2] {
        [S::LANES, S::LANES * S::GRAD_VECTORS]
    }
}

/// One task: the taps between a block of output channels and a range of input channels.
struct Block<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    dy: &'a [f32],
    outputs: std::ops::Range<usize>,
    inputs: std::ops::Range<usize>,
    out: &'a Shared,
}

impl Block<'_> {
    /// Sums over all images and stores the result.
    fn run(self, isa: Isa, lanes: usize) {
        let ConvShape {
            batch,
            input: [c_in, h, w],
            output: [c_out, oh, ow],
            kernel: [kh, kw],
            ..
        } = *self.shape;
        let (stride, taps) = (self.shape.stride, self.shape.taps());
        let (c0, channels) = (self.inputs.start, self.inputs.len());
        let width = (ow - 1) * stride + kw;
        let strip_rows = (STRIP / ow).clamp(1, oh);
        let sum_rows = (PIXELS / ow).max(1);
        let plane = ((strip_rows - 1) * stride + kh) * width;
        let direct =
            taps == 1 && self.shape.before == [0, 0] && width <= w && (oh - 1) * stride < h;
        let mut sums = vec![0.0f32; channels * taps * lanes];
        for image in 0..batch {
            for y0 in (0..oh).step_by(strip_rows) {
                let rows = strip_rows.min(oh - y0);
                with_scratch(Scratch::Gradient, strip_rows * ow * lanes, |dy| {
                    let from = &self.dy[(image * c_out + self.outputs.start) * oh * ow + y0 * ow..];
                    let (channels_out, pixels) = (self.outputs.len(), rows * ow);
                    let to = &mut *dy;
                    dispatch(
                        isa,
                        Transpose {
                            from,
                            plane: oh * ow,
                            channels: channels_out,
                            pixels,
                            lanes,
                            to,
                        },
                    );
                    with_scratch(
                        Scratch::Input,
                        if direct { 0 } else { channels * plane },
                        |x| {
                            let planes = self.x[(image * c_in + c0) * h * w..].chunks_exact(h * w);
                            let first = (y0 * stride) as isize - self.shape.before[0];
                            if !direct {
                                for (to, from) in x.chunks_exact_mut(plane).zip(planes) {
                                    let used = (rows - 1) * stride + kh;
                                    for (r, to) in to.chunks_exact_mut(width).take(used).enumerate()
                                    {
                                        let row = source_row(from, w, first + r as isize);
                                        copy_row(to, row, -self.shape.before[1], 1);
                                    }
                                }
                            }
                            let (x, x_stride, width) = if direct {
                                (
                                    &self.x[(image * c_in + c0) * h * w + y0 * stride * w..],
                                    h * w,
                                    w,
                                )
                            } else {
                                (&x[..], plane, width)
                            };
                            for r0 in (0..rows).step_by(sum_rows) {
                                let rows = sum_rows.min(rows - r0);
                                let x = &x[r0 * stride * width..];
                                let dy = &dy[r0 * ow * lanes..][..rows * ow * lanes];
                                let part = Part {
                                    x,
                                    x_stride,
                                    width,
                                    stride,
                                    rows,
                                    cols: ow,
                                };
                                dispatch(
                                    isa,
                                    RunPart {
                                        part,
                                        channels,
                                        kernel: [kh, kw],
                                        lanes,
                                        dy,
                                        sums: &mut sums,
                                    },
                                );
                            }
                        },
                    );
                });
            }
        }
        for (l, co) in self.outputs.clone().enumerate() {
            let count = channels * taps;
            // SAFETY: these weights belong to this task alone, and the vector outlives it.
            let out = unsafe { self.out.at((co * c_in + c0) * taps, count) };
            for k in 0..count {
                // SAFETY: within `count`.
                unsafe { *out.add(k) = sums[k * lanes + l] };
            }
        }
    }
}

/// Turns channels by pixels into pixels by `lanes` channels, with zeros past the last channel.
struct Transpose<'a> {
    from: &'a [f32],
    plane: usize,
    channels: usize,
    pixels: usize,
    lanes: usize,
    to: &'a mut [f32],
}

impl Job for Transpose<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            from,
            plane,
            channels,
            pixels,
            lanes,
            to,
        } = self;
        assert!(to.len() >= pixels * lanes && from.len() >= (channels - 1) * plane + pixels);
        for l0 in (0..lanes).step_by(S::LANES) {
            let whole = l0 + S::LANES <= channels;
            let mut q = 0;
            while whole && q + S::LANES <= pixels {
                // SAFETY: LANES channels from l0 and LANES pixels from q exist on both sides.
                unsafe {
                    let from = from.as_ptr().add(l0 * plane + q);
                    s.transpose(from, plane, to.as_mut_ptr().add(q * lanes + l0), lanes);
                }
                q += S::LANES;
            }
            for q in q..pixels {
                for (l, to) in to[q * lanes + l0..][..S::LANES].iter_mut().enumerate() {
                    *to = if l0 + l < channels {
                        from[(l0 + l) * plane + q]
                    } else {
                        0.0
                    };
                }
            }
        }
    }
}

/// Adds a part's products to the sums.
struct RunPart<'a> {
    part: Part<'a>,
    channels: usize,
    kernel: [usize; 2],
    lanes: usize,
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl Job for RunPart<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.lanes > S::LANES {
            self.run_with::<S, 2>(s)
        } else {
            self.run_with::<S, 1>(s)
        }
    }
}

impl RunPart<'_> {
    /// Every pair of an input channel and a tap, as many at a time as registers hold.
    #[inline(always)]
    fn run_with<S: Simd, const N: usize>(mut self, s: S) {
        let [kh, kw] = self.kernel;
        let pairs = self.channels * kh * kw;
        assert!(self.sums.len() >= pairs * N * S::LANES);
        let most = S::GRAD_SUMS / N;
        let mut first = 0;
        while first < pairs {
            let left = (pairs - first).min(most);
            first += match left {
                12.. => self.pairs::<S, N, 12>(s, first),
                6.. => self.pairs::<S, N, 6>(s, first),
                4.. => self.pairs::<S, N, 4>(s, first),
                2.. => self.pairs::<S, N, 2>(s, first),
                _ => self.pairs::<S, N, 1>(s, first),
            };
        }
    }

    /// `C` pairs from `first`; gives back `C`.
    #[inline(always)]
    fn pairs<S: Simd, const N: usize, const C: usize>(&mut self, s: S, first: usize) -> usize {
        let [kh, kw] = self.kernel;
        let part = &self.part;
        let at: [usize; C] = std::array::from_fn(|i| {
            let (c, tap) = ((first + i) / (kh * kw), (first + i) % (kh * kw));
            c * part.x_stride + tap / kw * part.width + tap % kw
        });
        let lanes = N * S::LANES;
        let last = (part.rows - 1) * part.stride * part.width + (part.cols - 1) * part.stride;
        let furthest = at.iter().max().expect("C is not 0") + last;
        assert!(part.x.len() > furthest && self.dy.len() >= part.rows * part.cols * lanes);
        let mut acc = [[s.splat(0.0); N]; C];
        let mut dy = self.dy.as_ptr();
        for row in 0..part.rows {
            // SAFETY: the furthest elements were checked above.
            unsafe {
                let mut x = part.x.as_ptr().add(row * part.stride * part.width);
                for _ in 0..part.cols {
                    let g: [S::V; N] = std::array::from_fn(|n| s.load(dy.add(n * S::LANES)));
                    for (acc, at) in acc.iter_mut().zip(at) {
                        let x = s.splat(*x.add(at));
                        for (acc, g) in acc.iter_mut().zip(g) {
                            *acc = s.fma(x, g, *acc);
                        }
                    }
                    dy = dy.add(lanes);
                    x = x.wrapping_add(part.stride);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (n, &acc) in acc.iter().enumerate() {
                // SAFETY: `run_with` checked that every pair has its sums.
                unsafe {
                    let sum = self
                        .sums
                        .as_mut_ptr()
                        .add((first + i) * lanes + n * S::LANES);
                    s.store(sum, s.add(s.load(sum), acc));
                }
            }
        }
        C
    }
}

/// A few rows of pixels that go into one sum.
struct Part<'a> {
    x: &'a [f32],
    x_stride: usize,
    width: usize,
    stride: usize,
    rows: usize,
    cols: usize,
}
