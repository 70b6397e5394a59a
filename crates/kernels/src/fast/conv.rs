//! Convolution of `[b, c, h, w]` and its gradients, without an im2col of the whole input.
//!
//! A task takes a strip of output rows of one image. It copies the rows it reads, padded, into its
//! cache, and runs blocks of output channels over vectors of pixels ([`tile`](super::tile)). The gradient of
//! the input is a convolution of the output's gradient with the flipped, transposed weight (for stride
//! `s`, one for each of the `s * s` phases of the input's pixels).

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

use rayon::prelude::*;

use super::{
    dot::{self, Dot, Order},
    isa::Isa,
    outer::{self, Outer},
    shared::{Scratch, Shared, copy_row, with_scratch},
    simd::{Job, Simd, dispatch},
    stored::Stored,
    tile::{self, Start, Strip},
    weight_grad,
};

/// A convolution's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConvShape {
    /// Images.
    pub(crate) batch: usize,
    /// Input channels, rows and columns.
    pub(crate) input: [usize; 3],
    /// Output channels, rows and columns.
    pub(crate) output: [usize; 3],
    /// Rows and columns of the weight.
    pub(crate) kernel: [usize; 2],
    /// Pixels of the input between outputs.
    pub(crate) stride: usize,
    /// Zero rows above and columns to the left of the input; negative where it is cropped.
    pub(crate) before: [isize; 2],
}

impl ConvShape {
    /// Taps of the weight.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether it is a 1x1 convolution of every pixel.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && self.stride == 1
            && self.before == [0, 0]
            && self.input[1..] == self.output[1..]
    }
}

/// Pixels for each output channel up to which a copy of every pixel's neighbourhood costs less than packing the weight.
const FEW: usize = 2;
/// Products in a sum from which that holds.
const DEEP: usize = 512;

/// A convolution as products of the weight's rows with every pixel's neighbourhood.
fn gathered(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    let [kh, kw] = shape.kernel;
    let taps = kh * kw;
    let mut y = vec![0.0; shape.batch * c_out * oh * ow];
    let operands = Dot {
        a: weight,
        m: c_out,
        n: shape.batch * oh * ow,
        k: c_in * taps,
        bias,
        order: Order::Planes(oh * ow),
    };
    let fill = |pixel: usize, k0: usize, to: &mut [f32]| {
        let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
        let x = &x[image * c_in * h * w..][..c_in * h * w];
        let top = (oy * shape.stride) as isize - shape.before[0];
        let left = (ox * shape.stride) as isize - shape.before[1];
        // The columns of the kernel that lie inside the picture.
        let first = (-left).clamp(0, kw as isize) as usize;
        let end = (w as isize - left).clamp(first as isize, kw as isize) as usize;
        // The chunk may begin and end inside a channel or a row of the kernel.
        let mut k = k0;
        let mut to = to;
        while !to.is_empty() {
            let (ci, ky, kx) = (k / taps, k % taps / kw, k % kw);
            let count = (kw - kx).min(to.len());
            let (row, rest) = to.split_at_mut(count);
            match source_row(&x[ci * h * w..(ci + 1) * h * w], w, top + ky as isize) {
                None => row.fill(0.0),
                Some(from) => {
                    for (i, to) in row.iter_mut().enumerate() {
                        let inside = (first..end).contains(&(kx + i));
                        *to = if inside {
                            from[(left + (kx + i) as isize) as usize]
                        } else {
                            0.0
                        };
                    }
                }
            }
            k += count;
            to = rest;
        }
    };
    dot::run(isa, &operands, &fill, &mut y);
    y
}

/// A 1x1 convolution or its transpose: `m` output channels, with the weight's strides over output and input channels.
fn pointwise(
    isa: Isa,
    m: usize,
    a_strides: [usize; 2],
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let n = shape.input[1] * shape.input[2];
    let operands = Outer {
        a: weight,
        a_strides,
        b: Stored::F32(x),
        batch: shape.batch,
        m,
        n,
        k: x.len() / (shape.batch * n).max(1),
        bias,
    };
    let mut y = vec![0.0; shape.batch * m * n];
    outer::run(isa, &operands, &mut y);
    y
}

/// `y = conv(x, weight) + bias`, `[b, c_out, oh, ow]`.
pub(crate) fn forward(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [c_in, ..] = shape.input;
    let taps = shape.taps();
    if shape.is_pointwise() {
        return pointwise(isa, shape.output[0], [c_in, 1], shape, x, weight, bias);
    }
    let [c_out, oh, ow] = shape.output;
    if shape.batch * oh * ow <= FEW * c_out && c_in * taps >= DEEP {
        return gathered(isa, shape, x, weight, bias);
    }
    let packed = Packed::new(isa, [c_out, c_in, taps], weight, |co, ci, tap| {
        (co * c_in + ci) * taps + tap
    });
    correlate(isa, shape, x, &packed, bias)
}

/// The gradient of the input, `[b, c_in, h, w]`.
pub(crate) fn input_grad(isa: Isa, shape: &ConvShape, dy: &[f32], weight: Stored<'_>) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    let [kh, kw] = shape.kernel;
    let s = shape.stride;
    if shape.is_pointwise() {
        return pointwise(isa, c_in, [1, c_in], shape, dy, weight, None);
    }
    let mut dx = if s == 1 {
        Vec::new()
    } else {
        vec![0.0; shape.batch * c_in * h * w]
    };
    for ry in 0..s {
        for rx in 0..s {
            // The input rows ry, ry + s, ... meet the taps ky0, ky0 + s, ... only.
            let phase = |r: usize, before: isize, k: usize, size: usize| {
                let first = (r as isize + before).rem_euclid(s as isize) as usize;
                let count = k.saturating_sub(first).div_ceil(s);
                let shift = (r as isize + before - first as isize) / s as isize;
                (
                    first,
                    count,
                    count as isize - 1 - shift,
                    size.saturating_sub(r).div_ceil(s),
                )
            };
            let (ky0, nky, top, rows) = phase(ry, shape.before[0], kh, h);
            let (kx0, nkx, left, cols) = phase(rx, shape.before[1], kw, w);
            let sub = ConvShape {
                batch: shape.batch,
                input: [c_out, oh, ow],
                output: [c_in, rows, cols],
                kernel: [nky, nkx],
                stride: 1,
                before: [top, left],
            };
            if sub.taps() == 0 || rows == 0 || cols == 0 {
                continue;
            }
            let packed = Packed::new(isa, [c_in, c_out, sub.taps()], weight, |ci, co, tap| {
                let (ty, tx) = (nky - 1 - tap / nkx, nkx - 1 - tap % nkx);
                ((co * c_in + ci) * kh + ky0 + s * ty) * kw + kx0 + s * tx
            });
            let part = correlate(isa, &sub, dy, &packed, None);
            if s == 1 {
                return part;
            }
            dx.par_chunks_mut(h * w)
                .zip(part.par_chunks(rows * cols))
                .for_each(|(dx, part)| {
                    for (row, part) in part.chunks(cols).enumerate() {
                        let row = &mut dx[(ry + s * row) * w..][..w];
                        for (x, part) in row[rx..].iter_mut().step_by(s).zip(part) {
                            *x = *part;
                        }
                    }
                });
        }
    }
    if dx.is_empty() {
        vec![0.0; shape.batch * c_in * h * w]
    } else {
        dx
    }
}

/// The gradient of the weight, `[c_out, c_in, kh, kw]`.
pub(crate) fn weight_grad(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    weight_grad::weight_grad(isa, shape, x, dy)
}

/// The gradient of the bias, `[c_out]`.
pub(crate) fn bias_grad(isa: Isa, shape: &ConvShape, dy: &[f32]) -> Vec<f32> {
    let [c_out, oh, ow] = shape.output;
    let plane = oh * ow;
    (0..c_out)
        .into_par_iter()
        .map(|co| {
            let images = (0..shape.batch).map(|b| &dy[(b * c_out + co) * plane..][..plane]);
            images.map(|plane| dispatch(isa, Sum(plane))).sum::<f64>() as f32
        })
        .collect()
}

/// The sum of a slice: f32 within 512 values, f64 across.
struct Sum<'a>(&'a [f32]);

impl Job for Sum<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mut total = 0.0;
        for block in self.0.chunks(512) {
            let mut sum = s.splat(0.0);
            for x in block.chunks(S::LANES) {
                // SAFETY: `x` has that many values.
                sum = s.add(sum, unsafe { s.load_part(x.as_ptr(), x.len()) });
            }
            total += f64::from(s.sum(sum));
        }
        total
    }
}

/// Input channels handled in one pass over a strip.
const CHUNK: usize = 128;
/// Floats of expanded input that a task keeps in its second-level cache.
const BUDGET: usize = 96 * 1024;

/// Weights in the order in which the tiles read them: chunk of input channels, block of output
/// channels, input channel, tap, output channel.
struct Packed {
    values: Vec<f32>,
    /// Sizes of the blocks of output channels.
    blocks: Vec<usize>,
    /// Input channels of a chunk; the last may have fewer.
    chunk: usize,
    /// Output channels, input channels, taps.
    dims: [usize; 3],
}

impl Packed {
    /// Packs the value that `index(c_out, c_in, tap)` points at.
    fn new(
        isa: Isa,
        dims: [usize; 3],
        weight: Stored<'_>,
        index: impl Fn(usize, usize, usize) -> usize + Sync,
    ) -> Self {
        let [c_out, c_in, taps] = dims;
        let blocks = even_parts(c_out, c_out.div_ceil(dispatch(isa, Rows)));
        let chunk = c_in.div_ceil(c_in.div_ceil(CHUNK));
        let mut values = vec![0.0; c_out * c_in * taps];
        let mut parts = Vec::new();
        let mut rest = &mut values[..];
        for ci0 in (0..c_in).step_by(chunk) {
            let channels = chunk.min(c_in - ci0);
            let mut co0 = 0;
            for &block in &blocks {
                let (part, tail) = rest.split_at_mut(channels * taps * block);
                parts.push((part, ci0, co0, block));
                rest = tail;
                co0 += block;
            }
        }
        let fill = |get: &(dyn Fn(usize) -> f32 + Sync)| {
            parts.into_par_iter().for_each(|(part, ci0, co0, block)| {
                for (k, to) in part.chunks_exact_mut(block).enumerate() {
                    for (m, to) in to.iter_mut().enumerate() {
                        *to = get(index(co0 + m, ci0 + k / taps, k % taps));
                    }
                }
            });
        };
        match weight {
            Stored::F32(w) => fill(&|i| w[i]),
            Stored::Bf16(w) => fill(&|i| w[i].to_f32()),
            Stored::F16(w) => fill(&|i| w[i].to_f32()),
        }
        Self {
            values,
            blocks,
            chunk,
            dims,
        }
    }

    /// The blocks `first..end` for the chunk of input channels from `ci0`.
    fn blocks(&self, ci0: usize, first: usize, end: usize) -> Vec<(usize, &[f32])> {
        let [c_out, c_in, taps] = self.dims;
        let depth = self.chunk.min(c_in - ci0) * taps;
        let mut at = ci0 * taps * c_out + self.blocks[..first].iter().sum::<usize>() * depth;
        let mut out = Vec::with_capacity(end - first);
        for &block in &self.blocks[first..end] {
            out.push((block, &self.values[at..at + block * depth]));
            at += block * depth;
        }
        out
    }
}

/// The most output channels of a block.
pub(super) struct Rows;

impl Job for Rows {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::ROWS
    }
}

/// `total` in `parts` sizes that differ by at most one, larger first.
pub(super) fn even_parts(total: usize, parts: usize) -> Vec<usize> {
    (0..parts)
        .map(|i| total / parts + usize::from(i < total % parts))
        .collect()
}

/// How a strip's input lies in the scratch buffer.
enum Layout {
    /// Padded rows; vectors do not cross output rows.
    Rows,
    /// A copy of each row for each column of the kernel, so that pixels are contiguous.
    Columns,
}

/// Correlates `x` with the packed weight and adds the bias.
fn correlate(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    packed: &Packed,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    let [kh, kw] = shape.kernel;
    let s = shape.stride;
    let lanes = dispatch(isa, Lanes);
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert_eq!(packed.dims, [c_out, c_in, shape.taps()]);
    assert!(bias.is_none_or(|bias| bias.len() == c_out));
    let mut y = vec![0.0; shape.batch * c_out * oh * ow];
    if y.is_empty() || c_in == 0 {
        return y;
    }

    let layout = if s == 1 && ow.is_multiple_of(lanes) {
        Layout::Rows
    } else {
        Layout::Columns
    };
    // Floats of one channel for a strip of `rows` output rows.
    let channel = |rows: usize| {
        let floats = match layout {
            Layout::Rows => (rows + kh - 1) * (ow + kw - 1),
            Layout::Columns => kw * s * (rows + (kh - 1) / s) * ow,
        };
        // An odd number of cache lines, so that channels fall into different sets.
        floats.next_multiple_of(16)
            + if floats.div_ceil(16).is_multiple_of(2) {
                16
            } else {
                0
            }
    };
    let threads = rayon::current_num_threads();
    let mut rows = oh;
    while rows > 1 && channel(rows) * packed.chunk > BUDGET && rows * ow > 128 {
        rows = rows.div_ceil(2);
    }
    while rows > 1 && shape.batch * oh.div_ceil(rows) < 4 * threads && rows * ow > 128 {
        rows = rows.div_ceil(2);
    }
    let strips = oh.div_ceil(rows);
    let groups = if threads > 1 && shape.batch * strips < 2 * threads {
        (2 * threads).min(packed.blocks.len())
    } else {
        1
    };
    let groups = even_parts(packed.blocks.len(), groups);

    let out = Shared::new(&mut y);
    (0..shape.batch * strips * groups.len())
        .into_par_iter()
        .for_each(|task| {
            let (group, task) = (task % groups.len(), task / groups.len());
            let (image, y0) = (task / strips, task % strips * rows);
            let rows = rows.min(oh - y0);
            let first = groups[..group].iter().sum::<usize>();
            let end = first + groups[group];
            let co0 = packed.blocks[..first].iter().sum::<usize>();
            let count = packed.blocks[first..end].iter().sum::<usize>();
            let image_x = &x[image * c_in * h * w..][..c_in * h * w];
            let stride = channel(rows);
            let taps: Vec<usize> = (0..kh * kw)
                .map(|tap| {
                    let (ky, kx) = (tap / kw, tap % kw);
                    match layout {
                        Layout::Rows => ky * (ow + kw - 1) + kx,
                        Layout::Columns => {
                            let plane_rows = rows + (kh - 1) / s;
                            ((kx * s + ky % s) * plane_rows + ky / s) * ow
                        }
                    }
                })
                .collect();
            for ci0 in (0..c_in).step_by(packed.chunk) {
                let channels = packed.chunk.min(c_in - ci0);
                with_scratch(Scratch::Input, channels * stride, |buffer| {
                    let planes = image_x[ci0 * h * w..].chunks_exact(h * w).take(channels);
                    match layout {
                        Layout::Rows => {
                            let width = ow + kw - 1;
                            for (to, plane) in buffer.chunks_exact_mut(stride).zip(planes) {
                                for (r, to) in
                                    to.chunks_exact_mut(width).take(rows + kh - 1).enumerate()
                                {
                                    let row =
                                        source_row(plane, w, (y0 + r) as isize - shape.before[0]);
                                    copy_row(to, row, -shape.before[1], 1);
                                }
                            }
                        }
                        Layout::Columns => {
                            let plane_rows = rows + (kh - 1) / s;
                            for (to, plane) in buffer.chunks_exact_mut(stride).zip(planes) {
                                for (i, to) in to
                                    .chunks_exact_mut(ow)
                                    .take(kw * s * plane_rows)
                                    .enumerate()
                                {
                                    let (r, phase) = (i % plane_rows, i / plane_rows % s);
                                    let kx = i / plane_rows / s;
                                    let at = ((y0 + r) * s + phase) as isize - shape.before[0];
                                    let row = source_row(plane, w, at);
                                    copy_row(to, row, kx as isize - shape.before[1], s);
                                }
                            }
                        }
                    }
                    let blocks = packed.blocks(ci0, first, end);
                    let from = &buffer[..];
                    let start = match bias {
                        _ if ci0 > 0 => Start::Output,
                        Some(bias) => Start::Bias(bias[co0..co0 + count].as_ptr()),
                        None => Start::Zero,
                    };
                    let plane = oh * ow;
                    // SAFETY: `from` holds `channels` planes with every tap's pixels; the outputs are this
                    // task's channels of this task's rows, and within `y`.
                    unsafe {
                        let y = out.at(
                            (image * c_out + co0) * plane + y0 * ow,
                            (count - 1) * plane + rows * ow,
                        );
                        let strip = Strip {
                            x: from.as_ptr(),
                            x_stride: stride,
                            channels,
                            taps: &taps,
                            row_vectors: match layout {
                                Layout::Rows => ow / lanes,
                                _ => usize::MAX,
                            },
                            row_stride: ow + kw - 1,
                            pixels: rows * ow,
                            blocks: &blocks,
                            y,
                            y_stride: plane,
                            start,
                        };
                        tile::run(isa, &strip);
                    }
                });
            }
        });
    y
}

/// Row `at` of a plane, if it has it.
pub(super) fn source_row(plane: &[f32], w: usize, at: isize) -> Option<&[f32]> {
    let at = usize::try_from(at).ok()?;
    plane.get(at * w..(at + 1) * w)
}

/// The lanes of an instruction set.
pub(super) struct Lanes;

impl Job for Lanes {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}
