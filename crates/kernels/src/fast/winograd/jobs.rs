//! The transforms' loops over channels, tiles and rows.

use std::ops::Range;

use burn::tensor::{bf16, f16};

use super::{
    super::{
        conv::ConvShape,
        expand::source_row,
        isa::Isa,
        packed::WeightOrder,
        shared::{Shared, copy_row},
        simd::{Job, Simd, dispatch},
        stored::Stored,
    },
    Plan, Run,
    transform::{self, POINTS, SIDE, STEP},
};

/// Which kernels are transformed, and where they go.
pub(super) struct Place {
    pub(super) outputs: Range<usize>,
    pub(super) channels: Range<usize>,
    /// The input channel at the start of a point, and channels of a point.
    pub(super) first_channel: usize,
    pub(super) depth: usize,
}

/// Transforms kernels to `[point, input channel, output channel]`.
///
/// # Safety
/// `POINTS * depth * outputs` values from `to` on are valid, and those of these channels no one else's.
pub(super) unsafe fn transform_kernels(
    isa: Isa,
    weight: Stored<'_>,
    order: &WeightOrder,
    place: Place,
    to: *mut f32,
) {
    macro_rules! transform {
        ($weight:expr, $widen:expr) => {{
            let (weight, widen) = ($weight, $widen);
            dispatch(
                isa,
                TransformKernels {
                    weight,
                    widen,
                    order,
                    place,
                    to,
                },
            )
        }};
    }
    match weight {
        Stored::F32(w) => transform!(w, |x: f32| x),
        Stored::Bf16(w) => transform!(w, bf16::to_f32),
        Stored::F16(w) => transform!(w, f16::to_f32),
    }
}

/// The most tiles of a panel, and the most lanes, of any instruction set.
const MOST: usize = 32;

/// Some channels of a panel of tiles.
pub(super) struct TransformTiles<'a> {
    pub(super) shape: &'a ConvShape,
    pub(super) x: &'a [f32],
    /// The panel's tiles.
    pub(super) runs: &'a [Run],
    pub(super) channels: Range<usize>,
    /// Values between points.
    pub(super) stride: usize,
    /// The panel, `[point, channel, tile]`.
    pub(super) to: *mut f32,
}

impl Job for TransformTiles<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [c_in, h, w] = self.shape.input;
        let width = 2 * S::LANES;
        assert!(width <= MOST && self.runs.iter().all(|run| run.lane + run.tiles <= width));
        // Rows of the tiles: columns 0 to 3, and 2 to 5, of each tile after the other.
        let mut rows = [[[0.0f32; STEP * MOST]; 2]; SIDE];
        for channel in self.channels {
            for run in self.runs {
                let plane = &self.x[(run.image * c_in + channel) * h * w..][..h * w];
                let place = STEP * run.lane..STEP * (run.lane + run.tiles);
                let y = run.y as isize - self.shape.before[0];
                let x = run.x as isize - self.shape.before[1];
                for (r, [first, last]) in rows.iter_mut().enumerate() {
                    let row = source_row(plane, w, y + r as isize);
                    copy_row(&mut first[place.clone()], row, x, 1);
                    copy_row(&mut last[place.clone()], row, x + 2, 1);
                }
            }
            for first in [0, S::LANES] {
                let mut down = [[[s.splat(0.0); SIDE]; STEP]; 2];
                for (which, down) in down.iter_mut().enumerate() {
                    for (j, down) in down.iter_mut().enumerate() {
                        let mut column = [s.splat(0.0); SIDE];
                        for (v, row) in column.iter_mut().zip(&rows) {
                            // SAFETY: a row holds STEP vectors from either `first`.
                            let from = row[which][STEP * first + j * S::LANES..].as_ptr();
                            *v = unsafe { s.load(from) };
                        }
                        *down = transform::input(s, column);
                    }
                }
                for r in 0..SIDE {
                    let of = |down: &[[S::V; SIDE]; STEP]| {
                        let [a, b, c, d] = down;
                        [a[r], b[r], c[r], d[r]]
                    };
                    let [c0, c1, c2, c3] = s.deinterleave(of(&down[0]));
                    let [_, _, c4, c5] = s.deinterleave(of(&down[1]));
                    let across = transform::input(s, [c0, c1, c2, c3, c4, c5]);
                    for (c, v) in across.into_iter().enumerate() {
                        let at = (r * SIDE + c) * self.stride + channel * width + first;
                        // SAFETY: the panel has `POINTS * stride` values.
                        unsafe { s.store(self.to.add(at), v) };
                    }
                }
            }
        }
    }
}

/// Some input channels of a block of kernels.
struct TransformKernels<'a, T, F> {
    weight: &'a [T],
    widen: F,
    order: &'a WeightOrder,
    place: Place,
    to: *mut f32,
}

impl<T: Copy, F: Fn(T) -> f32> Job for TransformKernels<'_, T, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [co_stride, ci_stride] = self.order.strides;
        let Place {
            outputs,
            channels,
            first_channel,
            depth,
        } = self.place;
        let rows = outputs.len();
        assert!(rows <= S::LANES && S::LANES <= MOST);
        assert!(channels.start >= first_channel && channels.end - first_channel <= depth);
        let mut g = [[0.0f32; MOST]; 9];
        for channel in channels {
            for (lane, output) in outputs.clone().enumerate() {
                let from = &self.weight[output * co_stride + channel * ci_stride..];
                for (to, &tap) in g.iter_mut().zip(&self.order.taps) {
                    to[lane] = (self.widen)(from[tap]);
                }
            }
            let mut kernel = [[s.splat(0.0); 3]; 3];
            for (r, row) in kernel.iter_mut().enumerate() {
                for (c, v) in row.iter_mut().enumerate() {
                    // SAFETY: a row of `g` holds a vector.
                    *v = unsafe { s.load(g[r * 3 + c].as_ptr()) };
                }
            }
            let kernel = transform::kernel(s, kernel);
            for (r, row) in kernel.iter().enumerate() {
                for (c, v) in row.iter().enumerate() {
                    let at = ((r * SIDE + c) * depth + channel - first_channel) * rows;
                    // SAFETY: `transform_kernels`' caller promised the values.
                    unsafe { s.store_part(self.to.add(at), *v, rows) };
                }
            }
        }
    }
}

/// A task's products to outputs.
pub(super) struct TransformBack<'a> {
    pub(super) plan: &'a Plan<'a>,
    /// `[point, row, tile]`.
    pub(super) products: &'a [f32],
    pub(super) rows: usize,
    /// Tiles of a row, with those that fill the last panel.
    pub(super) stride: usize,
    pub(super) first_row: usize,
    pub(super) first_tile: usize,
    pub(super) y: &'a Shared,
}

impl Job for TransformBack<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plan = self.plan;
        let [c_out, oh, ow] = plan.shape.output;
        let runs = plan.runs(self.first_tile..self.first_tile + self.stride);
        assert!(self.products.len() >= POINTS * self.rows * self.stride && S::LANES <= MOST);
        let mut lines = [[0.0f32; STEP * MOST]; STEP];
        for row in 0..self.rows {
            let channel = self.first_row + row;
            let bias = s.splat(plan.bias.map_or(0.0, |bias| bias[channel]));
            let mut transformed = usize::MAX;
            for run in &runs {
                let t0 = run.lane / S::LANES * S::LANES;
                if t0 != transformed {
                    transformed = t0;
                    let mut products = [[s.splat(0.0); SIDE]; SIDE];
                    for (r, to) in products.iter_mut().enumerate() {
                        for (c, v) in to.iter_mut().enumerate() {
                            let at = ((r * SIDE + c) * self.rows + row) * self.stride + t0;
                            // SAFETY: a row's length is a multiple of the lanes.
                            *v = unsafe { s.load(self.products.as_ptr().add(at)) };
                        }
                    }
                    let outputs = transform::output(s, products);
                    for (line, outputs) in lines.iter_mut().zip(outputs) {
                        for (j, v) in s.interleave(outputs).into_iter().enumerate() {
                            // SAFETY: a line holds STEP vectors.
                            unsafe { s.store(line.as_mut_ptr().add(j * S::LANES), s.add(v, bias)) };
                        }
                    }
                }
                let columns = (STEP * run.tiles).min(ow - run.x);
                for (r, line) in lines.iter().enumerate().take(oh - run.y) {
                    let at = ((run.image * c_out + channel) * oh + run.y + r) * ow + run.x;
                    let line = &line[STEP * (run.lane - t0)..][..columns];
                    // SAFETY: these outputs belong to these tiles alone.
                    unsafe { copy(s, line, self.y.at(at, columns)) };
                }
            }
        }
    }
}

/// Copies `from`.
///
/// # Safety
/// As many values from `to` on may be written.
#[inline(always)]
unsafe fn copy<S: Simd>(s: S, from: &[f32], to: *mut f32) {
    for at in (0..from.len()).step_by(S::LANES) {
        // SAFETY: within `from`, and by the caller's promise.
        unsafe {
            let (from, to) = (&from[at..], to.add(at));
            if from.len() >= S::LANES {
                s.store(to, s.load(from.as_ptr()));
            } else {
                s.store_part(to, s.load_part(from.as_ptr(), from.len()), from.len());
            }
        }
    }
}
