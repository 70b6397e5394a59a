//! A convolution as products of the weight's rows with every pixel's neighbourhood, for few pixels of many channels.

use super::{
    conv::ConvShape,
    dot::{self, Dot, Order},
    expand::source_row,
    isa::Isa,
    pairs::Products,
    stored::Stored,
};

/// Pixels for each output channel up to which a copy of every pixel's neighbourhood costs less than packing the weight.
const FEW: usize = 2;
/// Products in a sum from which that holds.
const DEEP: usize = 512;

/// Whether there are few pixels and deep sums.
pub(super) fn pays(shape: &ConvShape) -> bool {
    let [c_out, oh, ow] = shape.output;
    shape.batch * oh * ow <= FEW * c_out
        && shape.input[0] * shape.taps() >= DEEP
        && shape.products == Products::F32
}

/// `y = conv(x, weight) + bias`, `[b, c_out, oh, ow]`.
pub(super) fn run(
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
