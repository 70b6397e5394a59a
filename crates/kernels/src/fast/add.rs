//! Sums of tensors, of a value for each channel, and of rows that a gate lets through.

#![expect(unsafe_code, reason = "results whose every value is written")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    loops::{Sum, map, zip},
    shared::unwritten,
    simd::{Job, Simd, dispatch},
};

/// Values of a task.
const CHUNK: usize = 16 * 1024;

/// `x + y`.
pub(crate) fn add(isa: Isa, x: &[f32], y: &[f32]) -> Vec<f32> {
    struct Add<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Add<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            zip!(s, self.0, self.1, self.2, |x, y| s.add(x, y));
        }
    }
    assert_eq!(x.len(), y.len());
    // SAFETY: the chunks' results cover it.
    let mut sum = unsafe { unwritten(x.len()) };
    sum.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .zip(y.par_chunks(CHUNK))
        .for_each(|((sum, x), y)| dispatch(isa, Add(x, y, sum)));
    sum
}

/// `x + y` in place of `x`: the same values.
pub(crate) fn add_to(isa: Isa, x: &mut [f32], y: &[f32]) {
    struct AddTo<'a>(&'a mut [f32], &'a [f32]);
    impl Job for AddTo<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            self.0.iter_mut().zip(self.1).for_each(|(x, y)| *x += y);
        }
    }
    assert_eq!(x.len(), y.len());
    x.par_chunks_mut(CHUNK)
        .zip(y.par_chunks(CHUNK))
        .for_each(|(x, y)| dispatch(isa, AddTo(x, y)));
}

/// `x + shift`, for `x` `[planes, plane]` and `shift` `[planes]`.
pub(crate) fn shift(isa: Isa, x: &[f32], shift: &[f32]) -> Vec<f32> {
    struct Shift<'a>(usize, &'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Shift<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let planes = self
                .1
                .chunks_exact(self.0)
                .zip(self.3.chunks_exact_mut(self.0));
            for ((x, y), shift) in planes.zip(self.2) {
                let shift = s.splat(*shift);
                map!(s, x, y, |x| s.add(x, shift));
            }
        }
    }
    if x.is_empty() {
        return Vec::new();
    }
    let plane = x.len() / shift.len();
    assert_eq!(x.len(), plane * shift.len());
    let together = (CHUNK / plane).max(1);
    // SAFETY: the planes' results cover it.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(together * plane)
        .zip(x.par_chunks(together * plane))
        .zip(shift.par_chunks(together))
        .for_each(|((y, x), shift)| dispatch(isa, Shift(plane, x, shift, y)));
    y
}

/// The gradient of `shift`: the sum over each plane of `dy`.
pub(crate) fn shift_grad(isa: Isa, dy: &[f32], planes: usize) -> Vec<f32> {
    if dy.is_empty() {
        return vec![0.0; planes];
    }
    dy.par_chunks(dy.len() / planes)
        .map(|plane| dispatch(isa, Sum(plane)) as f32)
        .collect()
}

/// The shape of a gated sum: rows of `d` values, `n` of them for each gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GatedShape {
    /// Rows that share a gate.
    pub(crate) n: usize,
    /// Values of a row.
    pub(crate) d: usize,
}

impl GatedShape {
    /// Each row of `to` and of `from` with its gate, in parallel.
    fn rows(
        &self,
        to: &mut [f32],
        from: &[f32],
        gate: &[f32],
        each: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
    ) {
        let Self { n, d } = *self;
        let together = (CHUNK / d).max(1);
        to.par_chunks_mut(together * d)
            .zip(from.par_chunks(together * d))
            .enumerate()
            .for_each(|(i, (to, from))| {
                let rows = to.chunks_exact_mut(d).zip(from.chunks_exact(d));
                for (row, (to, from)) in rows.enumerate() {
                    let image = (i * together + row) / n;
                    each(to, from, &gate[image * d..][..d]);
                }
            });
    }
}

/// `x + gate y`, for `x` and `y` `[images, n, d]` and `gate` `[images, d]`, in place of `x`.
pub(crate) fn gated_to(isa: Isa, shape: &GatedShape, x: &mut [f32], gate: &[f32], y: &[f32]) {
    struct Gated<'a>(&'a mut [f32], &'a [f32], &'a [f32]);
    impl Job for Gated<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let lanes = S::LANES;
            let rows =
                (self.0.chunks_mut(lanes)).zip(self.1.chunks(lanes).zip(self.2.chunks(lanes)));
            for (x, (gate, y)) in rows {
                // SAFETY: the three have that many values.
                unsafe {
                    let count = x.len();
                    let (gate, y) = (
                        s.load_part(gate.as_ptr(), count),
                        s.load_part(y.as_ptr(), count),
                    );
                    let sum = s.fma(gate, y, s.load_part(x.as_ptr(), count));
                    s.store_part(x.as_mut_ptr(), sum, count);
                }
            }
        }
    }
    assert_eq!(x.len(), y.len());
    assert_eq!(x.len(), gate.len() * shape.n);
    shape.rows(x, y, gate, |x, y, gate| dispatch(isa, Gated(x, gate, y)));
}

/// The gradient of `y`: `gate dy`.
pub(crate) fn gated_grad(isa: Isa, shape: &GatedShape, dy: &[f32], gate: &[f32]) -> Vec<f32> {
    struct Product<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Product<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            zip!(s, self.0, self.1, self.2, |dy, gate| s.mul(dy, gate));
        }
    }
    assert_eq!(dy.len(), gate.len() * shape.n);
    // SAFETY: the rows' results cover it.
    let mut to = unsafe { unwritten(dy.len()) };
    shape.rows(&mut to, dy, gate, |to, dy, gate| {
        dispatch(isa, Product(dy, gate, to));
    });
    to
}

/// The gradient of the gate: the sum over its rows of `dy y`, in f64.
pub(crate) fn gate_grad(shape: &GatedShape, dy: &[f32], y: &[f32]) -> Vec<f32> {
    let GatedShape { n, d } = *shape;
    assert_eq!(dy.len(), y.len());
    dy.par_chunks(n * d)
        .zip(y.par_chunks(n * d))
        .flat_map_iter(|(dy, y)| {
            let mut sums = vec![0.0f64; d];
            for (dy, y) in dy.chunks_exact(d).zip(y.chunks_exact(d)) {
                for (sum, (dy, y)) in sums.iter_mut().zip(dy.iter().zip(y)) {
                    *sum += f64::from(dy * y);
                }
            }
            sums.into_iter().map(|sum| sum as f32)
        })
        .collect()
}
