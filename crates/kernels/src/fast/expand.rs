//! The input of a strip of output rows, padded and laid out for the tiles.

use super::{
    conv::ConvShape,
    pairs::Kernel,
    shared::{copy_pairs, copy_row},
    simd::{Job, Simd},
};

/// How a strip's input lies in the scratch buffer.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// Padded rows; vectors do not cross output rows.
    Rows,
    /// A copy of each row for each column of the kernel, so that pixels are contiguous.
    Columns,
}

impl Layout {
    /// The layout for vectors of so many lanes.
    pub(super) fn of(shape: &ConvShape, lanes: usize) -> Self {
        match shape.stride == 1 && shape.output[2].is_multiple_of(lanes) {
            true => Self::Rows,
            false => Self::Columns,
        }
    }
}

/// A strip's input rows.
#[derive(Clone, Copy)]
pub(super) struct Expand<'a> {
    pub(super) shape: &'a ConvShape,
    pub(super) layout: Layout,
    /// The strip's first output row.
    pub(super) y0: usize,
    /// Its output rows.
    pub(super) rows: usize,
}

impl Expand<'_> {
    /// Floats of one element of the channels: an odd number of cache lines, so that elements fall into different sets.
    pub(super) fn floats(&self) -> usize {
        let ([kh, kw], s, ow) = (self.shape.kernel, self.shape.stride, self.shape.output[2]);
        let floats = match self.layout {
            Layout::Rows => (self.rows + kh - 1) * (ow + kw - 1),
            Layout::Columns => kw * s * self.plane_rows() * ow,
        };
        16 * (floats.div_ceil(16) | 1)
    }

    /// Each tap's offset.
    pub(super) fn taps(&self) -> Vec<usize> {
        let ([kh, kw], s, ow) = (self.shape.kernel, self.shape.stride, self.shape.output[2]);
        let offset = |tap: usize| {
            let (ky, kx) = (tap / kw, tap % kw);
            match self.layout {
                Layout::Rows => ky * (ow + kw - 1) + kx,
                Layout::Columns => ((kx * s + ky % s) * self.plane_rows() + ky / s) * ow,
            }
        };
        (0..kh * kw).map(offset).collect()
    }

    /// Floats between the first pixels of two output rows.
    pub(super) fn row_stride(&self) -> usize {
        let (kw, ow) = (self.shape.kernel[1], self.shape.output[2]);
        match self.layout {
            Layout::Rows => ow + kw - 1,
            Layout::Columns => ow,
        }
    }

    /// Vectors in a row, or `usize::MAX` where the pixels are contiguous.
    pub(super) fn row_vectors(&self, lanes: usize) -> usize {
        match self.layout {
            Layout::Rows => self.shape.output[2] / lanes,
            Layout::Columns => usize::MAX,
        }
    }

    /// Rows of one phase of the input.
    fn plane_rows(&self) -> usize {
        self.rows + (self.shape.kernel[0] - 1) / self.shape.stride
    }
}

/// Expands one element of the channels: one plane or a pair of them, of which the second may be missing.
pub(super) struct ExpandChannel<'a> {
    pub(super) expand: Expand<'a>,
    pub(super) kernel: Kernel,
    pub(super) first: &'a [f32],
    pub(super) second: &'a [f32],
    pub(super) to: &'a mut [f32],
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
        let plane_rows = self.expand.plane_rows();
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
