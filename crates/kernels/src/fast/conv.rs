//! Convolution of `[b, c, h, w]` and its gradients, without an im2col of the whole input.
//!
//! A task takes a strip of output rows of one image. It copies the rows it reads, padded, into its
//! cache, and runs blocks of output channels over vectors of pixels ([`tile`](super::tile)). The gradient of
//! the input is a convolution of the output's gradient with the flipped, transposed weight (for stride
//! `s`, one for each of the `s * s` phases of the input's pixels).

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

use burn::tensor::{bf16, f16};
use rayon::prelude::*;

use super::{
    amx::{DEPTH, SIDE, TILE},
    dot::{self, Dot, Order},
    isa::Isa,
    outer::{self, Outer},
    pairs::{Kernel, Products, pair},
    shared::{Scratch, Shared, copy_pairs, copy_row, unwritten, with_scratch},
    simd::{Job, Simd, dispatch},
    stored::Stored,
    tile::{self, Start, Strip},
    weight_grad, weight_grad_pairs,
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
    /// How products are made, 1x1 convolutions aside.
    pub(crate) products: Products,
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
    // SAFETY: the product writes every value.
    let mut y = unsafe { unwritten(shape.batch * m * n) };
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
    if shape.batch * oh * ow <= FEW * c_out
        && c_in * taps >= DEEP
        && shape.products == Products::F32
    {
        return gathered(isa, shape, x, weight, bias);
    }
    let order = WeightOrder {
        strides: [c_in * taps, taps],
        taps: (0..taps).collect(),
    };
    let packed = Packed::new(isa, shape.products, [c_out, c_in], &order, weight);
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
                products: shape.products,
            };
            if sub.taps() == 0 || rows == 0 || cols == 0 {
                continue;
            }
            let order = WeightOrder {
                strides: [kh * kw, c_in * kh * kw],
                taps: (0..sub.taps())
                    .map(|tap| {
                        let (ty, tx) = (nky - 1 - tap / nkx, nkx - 1 - tap % nkx);
                        (ky0 + s * ty) * kw + kx0 + s * tx
                    })
                    .collect(),
            };
            let packed = Packed::new(isa, shape.products, [c_in, c_out], &order, weight);
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
    match shape.products {
        Products::Bf16 if !shape.is_pointwise() => {
            weight_grad_pairs::weight_grad(isa, shape, x, dy)
        }
        _ => weight_grad::weight_grad(isa, shape, x, dy),
    }
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
pub(super) struct Sum<'a>(pub(super) &'a [f32]);

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

/// Elements of the input's channels handled in one pass over a strip.
const CHUNK: usize = 128;
/// Floats of expanded input that a task keeps in its second-level cache.
const BUDGET: usize = 96 * 1024;

/// Where a weight's values lie: `weight[co][ci][tap]` at `co * strides[0] + ci * strides[1] + taps[tap]`.
struct WeightOrder {
    strides: [usize; 2],
    taps: Vec<usize>,
}

/// Weights in the order in which the tiles read them: chunk of input channels, block of output
/// channels, element of the input's channels, tap, output channel; or as [`tile::run`] describes.
struct Packed {
    kernel: Kernel,
    values: Vec<f32>,
    /// Sizes of the blocks of output channels.
    blocks: Vec<usize>,
    /// Elements of a chunk of input channels; the last may have fewer.
    chunk: usize,
    /// Output channels, elements of the input's channels, taps.
    dims: [usize; 3],
}

impl Packed {
    fn new(
        isa: Isa,
        products: Products,
        [c_out, c_in]: [usize; 2],
        order: &WeightOrder,
        weight: Stored<'_>,
    ) -> Self {
        let kernel = products.kernel(isa);
        let taps = order.taps.len();
        let elements = c_in.div_ceil(kernel.values());
        let blocks = if kernel == Kernel::Tiles {
            (0..c_out)
                .step_by(SIDE)
                .map(|co| SIDE.min(c_out - co))
                .collect()
        } else {
            even_parts(c_out, c_out.div_ceil(dispatch(isa, Rows)))
        };
        let mut chunk = elements.div_ceil(elements.div_ceil(CHUNK));
        if kernel == Kernel::Tiles {
            chunk = chunk.next_multiple_of(DEPTH);
        }
        let mut packed = Self {
            kernel,
            values: Vec::new(),
            blocks,
            chunk,
            dims: [c_out, elements, taps],
        };
        let mut starts = Vec::new();
        let mut len = 0;
        for e0 in (0..elements).step_by(chunk) {
            let mut co0 = 0;
            for &block in &packed.blocks {
                let size = packed.size(e0, block);
                starts.push((size, e0, co0, block));
                len += size;
                co0 += block;
            }
        }
        packed.values = vec![0.0; len];
        let mut rest = &mut packed.values[..];
        let mut parts = Vec::with_capacity(starts.len());
        for (size, e0, co0, block) in starts {
            let (part, tail) = rest.split_at_mut(size);
            parts.push((part, e0, co0, block));
            rest = tail;
        }
        macro_rules! fill {
            ($weight:expr, $widen:expr) => {
                parts.into_par_iter().for_each(|(part, e0, co0, block)| {
                    let count = chunk.min(elements - e0);
                    pack(
                        kernel,
                        $weight,
                        $widen,
                        order,
                        c_in,
                        [e0, count, co0, block],
                        part,
                    )
                })
            };
        }
        match weight {
            Stored::F32(w) => fill!(w, |x: f32| x),
            Stored::Bf16(w) => fill!(w, bf16::to_f32),
            Stored::F16(w) => fill!(w, f16::to_f32),
        }
        packed
    }

    /// Values of a block for the chunk from element `e0`.
    fn size(&self, e0: usize, block: usize) -> usize {
        let [_, elements, taps] = self.dims;
        let count = self.chunk.min(elements - e0);
        if self.kernel == Kernel::Tiles {
            count.div_ceil(DEPTH) * taps * TILE
        } else {
            count * taps * block
        }
    }

    /// The blocks `first..end` for the chunk from element `e0`.
    fn blocks(&self, e0: usize, first: usize, end: usize) -> Vec<(usize, &[f32])> {
        let sizes = |e0: usize, blocks: &[usize]| -> usize {
            blocks.iter().map(|&block| self.size(e0, block)).sum()
        };
        let mut at = sizes(e0, &self.blocks[..first]);
        if e0 > 0 {
            // Chunks before this one are whole.
            at += e0 / self.chunk * sizes(0, &self.blocks);
        }
        let mut out = Vec::with_capacity(end - first);
        for &block in &self.blocks[first..end] {
            let size = self.size(e0, block);
            out.push((block, &self.values[at..at + size]));
            at += size;
        }
        out
    }
}

/// Packs a block: `count` elements from `e0`, `block` outputs from `co0`.
#[inline(always)]
fn pack<T: Copy>(
    kernel: Kernel,
    weight: &[T],
    widen: impl Fn(T) -> f32,
    order: &WeightOrder,
    c_in: usize,
    [e0, count, co0, block]: [usize; 4],
    to: &mut [f32],
) {
    let [co_stride, ci_stride] = order.strides;
    let taps = order.taps.len();
    for e in 0..count {
        let ci = kernel.values() * (e0 + e);
        for (t, &tap) in order.taps.iter().enumerate() {
            let (first, step) = if kernel == Kernel::Tiles {
                ((e / DEPTH * taps + t) * TILE + e % DEPTH, DEPTH)
            } else {
                ((e * taps + t) * block, 1)
            };
            let to = to[first..].iter_mut().step_by(step).take(block);
            let from = &weight[co0 * co_stride + ci * ci_stride + tap..];
            let values = from.iter().step_by(co_stride);
            if kernel == Kernel::Single {
                for (to, value) in to.zip(values) {
                    *to = widen(*value);
                }
            } else if ci + 1 < c_in {
                let seconds = from[ci_stride..].iter().step_by(co_stride);
                for (to, (value, second)) in to.zip(values.zip(seconds)) {
                    *to = pair(widen(*value), widen(*second));
                }
            } else {
                for (to, value) in to.zip(values) {
                    *to = pair(widen(*value), 0.0);
                }
            }
        }
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
#[derive(Clone, Copy)]
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
    let elements = c_in.div_ceil(packed.kernel.values());
    assert_eq!(packed.dims, [c_out, elements, shape.taps()]);
    assert!(bias.is_none_or(|bias| bias.len() == c_out));
    let len = shape.batch * c_out * oh * ow;
    if len == 0 || c_in == 0 {
        return vec![0.0; len];
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

    // SAFETY: the tasks write every row of every output channel before they read it.
    let mut y = unsafe { unwritten(len) };
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
            for e0 in (0..elements).step_by(packed.chunk) {
                let channels = packed.chunk.min(elements - e0);
                let (stored, slack) = match packed.kernel {
                    Kernel::Tiles => (channels.next_multiple_of(DEPTH), SIDE),
                    _ => (channels, 0),
                };
                with_scratch(Scratch::Input, stored * stride + slack, |buffer| {
                    let (expanded, rest) = buffer.split_at_mut(channels * stride);
                    rest.fill(0.0);
                    let planes = image_x[e0 * packed.kernel.values() * h * w..]
                        .chunks(packed.kernel.values() * h * w);
                    let expand = Expand {
                        shape,
                        layout,
                        y0,
                        rows,
                    };
                    for (to, planes) in expanded.chunks_exact_mut(stride).zip(planes) {
                        let (first, second) = planes.split_at(h * w);
                        dispatch(
                            isa,
                            ExpandChannel {
                                expand,
                                kernel: packed.kernel,
                                first,
                                second,
                                to,
                            },
                        );
                    }
                    let blocks = packed.blocks(e0, first, end);
                    let from = &buffer[..];
                    let start = match bias {
                        _ if e0 > 0 => Start::Output,
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
                        tile::run(isa, packed.kernel, &strip);
                    }
                });
            }
        });
    y
}

/// A strip's input rows.
#[derive(Clone, Copy)]
struct Expand<'a> {
    shape: &'a ConvShape,
    layout: Layout,
    /// The strip's first output row.
    y0: usize,
    /// Its output rows.
    rows: usize,
}

/// Expands one element of the channels: one plane or a pair of them, of which the second may be missing.
struct ExpandChannel<'a> {
    expand: Expand<'a>,
    kernel: Kernel,
    first: &'a [f32],
    second: &'a [f32],
    to: &'a mut [f32],
}

impl Job for ExpandChannel<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Expand {
            shape,
            layout,
            y0,
            rows,
        } = self.expand;
        let ([_, _, w], [kh, kw], s) = (shape.input, shape.kernel, shape.stride);
        let ow = shape.output[2];
        let planes = Planes {
            kernel: self.kernel,
            first: self.first,
            second: self.second,
            width: w,
            stride: s,
        };
        match layout {
            Layout::Rows => {
                let width = ow + kw - 1;
                let lines = self.to.chunks_exact_mut(width).take(rows + kh - 1);
                for (r, to) in lines.enumerate() {
                    planes.copy(to, (y0 + r) as isize - shape.before[0], -shape.before[1]);
                }
            }
            Layout::Columns => {
                let plane_rows = rows + (kh - 1) / s;
                let lines = self.to.chunks_exact_mut(ow).take(kw * s * plane_rows);
                for (i, to) in lines.enumerate() {
                    let (r, phase) = (i % plane_rows, i / plane_rows % s);
                    let kx = i / plane_rows / s;
                    let at = ((y0 + r) * s + phase) as isize - shape.before[0];
                    planes.copy(to, at, kx as isize - shape.before[1]);
                }
            }
        }
    }
}

/// One element of the channels; the second plane is empty where it is missing.
#[derive(Clone, Copy)]
struct Planes<'a> {
    kernel: Kernel,
    first: &'a [f32],
    second: &'a [f32],
    width: usize,
    stride: usize,
}

impl Planes<'_> {
    /// Row `at` from column `first`, in steps of the stride.
    #[inline(always)]
    fn copy(self, to: &mut [f32], at: isize, first: isize) {
        let row = source_row(self.first, self.width, at);
        if self.kernel == Kernel::Single {
            copy_row(to, row, first, self.stride);
        } else {
            let second = source_row(self.second, self.width, at);
            copy_pairs(to, row, second, first, self.stride);
        }
    }
}

/// Row `at` of a plane, if it has it.
#[inline(always)]
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
