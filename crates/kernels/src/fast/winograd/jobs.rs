//! The transforms' loops over channels, tiles and rows.

use std::ops::Range;

use burn::tensor::{bf16, f16};

use super::{
    super::{
        conv::ConvShape,
        isa::Isa,
        packed::WeightOrder,
        shared::Shared,
        simd::{Job, Simd, dispatch},
        stored::Stored,
    },
    Corner, Plan,
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
    pub(super) corners: &'a [Corner],
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
        assert!(width <= MOST && self.corners.len() <= width);
        let mut d = [[0.0f32; MOST]; POINTS];
        for channel in self.channels {
            for (lane, corner) in self.corners.iter().enumerate() {
                let plane = &self.x[(corner.image * c_in + channel) * h * w..][..h * w];
                let inside = corner.y >= 0
                    && corner.x >= 0
                    && corner.y as usize + SIDE <= h
                    && corner.x as usize + SIDE <= w;
                if inside {
                    let from = corner.y as usize * w + corner.x as usize;
                    for (r, to) in d.chunks_exact_mut(SIDE).enumerate() {
                        let row = &plane[from + r * w..from + r * w + SIDE];
                        for (to, x) in to.iter_mut().zip(row) {
                            to[lane] = *x;
                        }
                    }
                } else {
                    for (r, to) in d.chunks_exact_mut(SIDE).enumerate() {
                        let y = corner.y + r as isize;
                        for (c, to) in to.iter_mut().enumerate() {
                            let x = corner.x + c as isize;
                            let there =
                                (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
                            to[lane] = if there {
                                plane[y as usize * w + x as usize]
                            } else {
                                0.0
                            };
                        }
                    }
                }
            }
            for first in [0, S::LANES] {
                let mut tile = [[s.splat(0.0); SIDE]; SIDE];
                for (r, row) in tile.iter_mut().enumerate() {
                    for (c, v) in row.iter_mut().enumerate() {
                        // SAFETY: a row of `d` holds two vectors.
                        *v = unsafe { s.load(d[r * SIDE + c].as_ptr().add(first)) };
                    }
                }
                let tile = transform::input(s, tile);
                for (r, row) in tile.iter().enumerate() {
                    for (c, v) in row.iter().enumerate() {
                        let at = (r * SIDE + c) * self.stride + channel * width + first;
                        // SAFETY: the panel has `POINTS * stride` values.
                        unsafe { s.store(self.to.add(at), *v) };
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
        let [grid_rows, grid_cols] = plan.grid;
        let tiles = self.stride.min(plan.tiles - self.first_tile);
        assert!(self.products.len() >= POINTS * self.rows * self.stride && S::LANES <= MOST);
        let mut lanes = [[0.0f32; MOST]; STEP * STEP];
        for row in 0..self.rows {
            let channel = self.first_row + row;
            let bias = plan.bias.map_or(0.0, |bias| bias[channel]);
            for t0 in (0..tiles).step_by(S::LANES) {
                let mut products = [[s.splat(0.0); SIDE]; SIDE];
                for (r, to) in products.iter_mut().enumerate() {
                    for (c, v) in to.iter_mut().enumerate() {
                        let at = ((r * SIDE + c) * self.rows + row) * self.stride + t0;
                        // SAFETY: a row's length is a multiple of the lanes.
                        *v = unsafe { s.load(self.products.as_ptr().add(at)) };
                    }
                }
                let outputs = transform::output(s, products);
                for (r, from) in outputs.iter().enumerate() {
                    for (c, v) in from.iter().enumerate() {
                        let v = s.add(*v, s.splat(bias));
                        // SAFETY: a row of `lanes` holds a vector.
                        unsafe { s.store(lanes[r * STEP + c].as_mut_ptr(), v) };
                    }
                }
                let first = self.first_tile + t0;
                for tile in first..first + S::LANES.min(tiles - t0) {
                    let lane = tile - first;
                    let image = tile / (grid_rows * grid_cols);
                    let (y0, x0) = (tile / grid_cols % grid_rows * STEP, tile % grid_cols * STEP);
                    let columns = STEP.min(ow - x0);
                    for r in 0..STEP.min(oh - y0) {
                        let at = ((image * c_out + channel) * oh + y0 + r) * ow + x0;
                        // SAFETY: these outputs belong to this tile alone.
                        let to = unsafe {
                            let to = self.y.at(at, columns);
                            std::slice::from_raw_parts_mut(to, columns)
                        };
                        for (c, to) in to.iter_mut().enumerate() {
                            *to = lanes[r * STEP + c][lane];
                        }
                    }
                }
            }
        }
    }
}
