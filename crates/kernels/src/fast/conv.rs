//! Convolution of `[b, c, h, w]` and its gradients, without an im2col of the whole input.
//!
//! A task takes a strip of output rows of one image. It copies the rows it reads, padded, into its
//! cache, and runs blocks of output channels over vectors of pixels ([`tile`](super::tile)). The gradient of
//! the input is a convolution of the output's gradient with the flipped, transposed weight (for stride
//! `s`, one for each of the `s * s` phases of the input's pixels).

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

use rayon::prelude::*;

use super::{
    amx::{DEPTH, SIDE},
    by_outputs,
    expand::{Expand, ExpandChannel, Layout},
    gathered,
    gemm::{self, Bias, Gemm, Operand},
    isa::Isa,
    loops::Sum,
    packed::{Lanes, Packed, WeightOrder, even_parts},
    pairs::{Kernel, Products},
    shared::{Scratch, Shared, unwritten, with_scratch},
    simd::dispatch,
    stored::Stored,
    tile::{self, Start, Strip},
    weight_grad, weight_grad_pairs, winograd,
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

    /// The same for operands that are rounded already.
    pub(crate) fn of_rounded(self) -> Self {
        Self {
            products: self.products.of_rounded(),
            ..self
        }
    }

    /// Whether it is a 1x1 convolution of every pixel.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && self.stride == 1
            && self.before == [0, 0]
            && self.input[1..] == self.output[1..]
    }
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
    let product = Gemm {
        m,
        n,
        k: x.len() / (shape.batch * n).max(1),
        a: Operand {
            values: weight,
            row_stride: a_strides[0],
            k_stride: a_strides[1],
        },
        b: Operand::columns(Stored::F32(x), n),
        batch: shape.batch,
        more: None,
        bias: bias.map_or(Bias::None, Bias::Rows),
        products: shape.products,
    };
    // SAFETY: the product writes every value.
    let mut y = unsafe { unwritten(shape.batch * m * n) };
    gemm::run(isa, &product, &mut y);
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
    if shape.is_pointwise() && !by_outputs::pays(isa, shape) {
        return pointwise(isa, shape.output[0], [c_in, 1], shape, x, weight, bias);
    }
    if !winograd::pays(shape) && gathered::pays(shape) {
        return gathered::run(isa, shape, x, weight, bias);
    }
    let order = WeightOrder {
        strides: [c_in * taps, taps],
        taps: (0..taps).collect(),
    };
    weighted(isa, shape, x, weight, &order, bias)
}

/// The convolution with a weight that lies in `order`.
fn weighted(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    order: &WeightOrder,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    if winograd::pays(shape) {
        return winograd::run(isa, shape, x, weight, order, bias);
    }
    if by_outputs::pays(isa, shape) {
        return by_outputs::run(isa, shape, x, weight, order, bias);
    }
    in_strips(isa, shape, x, weight, order, bias)
}

/// The same by strips of pixels, with the whole weight packed first.
pub(super) fn in_strips(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    order: &WeightOrder,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (c_in, c_out) = (shape.input[0], shape.output[0]);
    let packed = Packed::new(isa, shape.products, [c_out, c_in], order, weight);
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
            let part = weighted(isa, &sub, dy, weight, &order, None);
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

/// Floats of expanded input that a task keeps in its second-level cache.
const BUDGET: usize = 96 * 1024;

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
    let lanes = dispatch(isa, Lanes);
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    let elements = c_in.div_ceil(packed.kernel.values());
    assert_eq!(packed.dims, [c_out, elements, shape.taps()]);
    assert!(bias.is_none_or(|bias| bias.len() == c_out));
    let len = shape.batch * c_out * oh * ow;
    if len == 0 || c_in == 0 {
        return vec![0.0; len];
    }

    let layout = Layout::of(shape, lanes);
    let strip_of = |y0: usize, rows: usize| Expand {
        shape,
        layout,
        y0,
        rows,
    };
    let channel = |rows: usize| strip_of(0, rows).floats();
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
            let expand = strip_of(y0, rows);
            let (stride, taps) = (expand.floats(), expand.taps());
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
                            row_vectors: expand.row_vectors(lanes),
                            row_stride: expand.row_stride(),
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
