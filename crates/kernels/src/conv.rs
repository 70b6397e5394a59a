//! Two-dimensional convolution (cross-correlation, as in PyTorch).

use burn::tensor::{Tensor, module, ops::ConvOptions};

use crate::{extension, fast::conv::ConvShape, products};

/// Zero rows and columns added around the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same number of zeros on all four sides.
    pub const fn same(n: usize) -> Self {
        Self {
            top: n,
            left: n,
            bottom: n,
            right: n,
        }
    }
}

/// Convolves `x` `[b, c_in, h, w]` with `weight` `[c_out, c_in, kh, kw]` and adds `bias` `[c_out]`.
///
/// A weight in half precision is widened to the input's type.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: Padding,
) -> Tensor<4> {
    crate::refuse_empty("conv2d", &x.dims());
    if extension::is_fast(&x) && extension::is_weight(weight.dtype()) {
        let bias = bias.map(|bias| crate::linear::like(bias, x.dtype()));
        let shape = shape(&x, &weight, stride, padding);
        return extension::conv2d(x, weight, bias, shape);
    }
    conv2d_plain(x, weight, bias, stride, padding)
}

/// [`conv2d`] by burn's own operations.
fn conv2d_plain(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    stride: usize,
    padding: Padding,
) -> Tensor<4> {
    let weight = crate::linear::like(weight, x.dtype());
    let bias = bias.map(|bias| crate::linear::like(bias, x.dtype()));
    let x = if padding.top == padding.bottom && padding.left == padding.right {
        return module::conv2d(
            x,
            weight,
            bias,
            ConvOptions::new([stride; 2], [padding.top, padding.left], [1, 1], 1),
        );
    } else {
        pad(x, padding)
    };
    module::conv2d(
        x,
        weight,
        bias,
        ConvOptions::new([stride; 2], [0, 0], [1, 1], 1),
    )
}

fn shape(x: &Tensor<4>, weight: &Tensor<4>, stride: usize, padding: Padding) -> ConvShape {
    let [batch, c_in, h, w] = x.dims();
    let [c_out, weight_in, kh, kw] = weight.dims();
    assert_eq!(
        c_in, weight_in,
        "conv2d: channels of the input and of the weight"
    );
    let (rows, cols) = (
        h + padding.top + padding.bottom,
        w + padding.left + padding.right,
    );
    assert!(
        stride > 0 && rows >= kh && cols >= kw,
        "conv2d: a {kh}x{kw} kernel with stride {stride} on {rows}x{cols} padded pixels"
    );
    ConvShape {
        batch,
        input: [c_in, h, w],
        output: [c_out, (rows - kh) / stride + 1, (cols - kw) / stride + 1],
        kernel: [kh, kw],
        stride,
        before: [padding.top as isize, padding.left as isize],
        products: products::of(weight.dtype()),
    }
}

fn pad(x: Tensor<4>, padding: Padding) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let Padding {
        top,
        left,
        bottom,
        right,
    } = padding;
    let zeros = Tensor::zeros(
        [b, c, h + top + bottom, w + left + right],
        (&x.device(), x.dtype()),
    );
    zeros.slice_assign([0..b, 0..c, top..top + h, left..left + w], x)
}
