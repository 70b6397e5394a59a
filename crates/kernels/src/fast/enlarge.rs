//! Enlargement by repetition, and sums over what was repeated.

#![expect(unsafe_code, reason = "results whose every value is written")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    shared::unwritten,
    simd::{Job, Simd, dispatch},
};

/// Planes and how often their rows and columns are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EnlargeShape {
    /// Images times channels.
    pub(crate) planes: usize,
    /// Rows and columns.
    pub(crate) input: [usize; 2],
    /// Repetitions of rows and of columns; neither is 0.
    pub(crate) factors: [usize; 2],
}

impl EnlargeShape {
    /// Values of a small and of a large plane.
    fn sizes(&self) -> [usize; 2] {
        let small = self.input[0] * self.input[1];
        [small, small * self.factors[0] * self.factors[1]]
    }
}

/// Planes of a task.
const TOGETHER: usize = 4;

/// The enlarged planes.
pub(crate) fn forward(isa: Isa, shape: &EnlargeShape, x: &[f32]) -> Vec<f32> {
    let [small, large] = shape.sizes();
    assert_eq!(x.len(), shape.planes * small);
    if x.is_empty() {
        return Vec::new();
    }
    // SAFETY: every plane of the result is written.
    let mut y = unsafe { unwritten(shape.planes * large) };
    y.par_chunks_mut(TOGETHER * large)
        .zip(x.par_chunks(TOGETHER * small))
        .for_each(|(y, x)| dispatch(isa, Repeat { shape, x, y }));
    y
}

/// The gradient of the small planes: sums over the repetitions.
pub(crate) fn backward(isa: Isa, shape: &EnlargeShape, dy: &[f32]) -> Vec<f32> {
    let [small, large] = shape.sizes();
    assert_eq!(dy.len(), shape.planes * large);
    if dy.is_empty() {
        return Vec::new();
    }
    // SAFETY: every plane of the result is written.
    let mut dx = unsafe { unwritten(shape.planes * small) };
    dx.par_chunks_mut(TOGETHER * small)
        .zip(dy.par_chunks(TOGETHER * large))
        .for_each(|(dx, dy)| dispatch(isa, Gather { shape, dx, dy }));
    dx
}

struct Repeat<'a> {
    shape: &'a EnlargeShape,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Job for Repeat<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ([_, w], [fy, fx]) = (self.shape.input, self.shape.factors);
        let wide = w * fx;
        for (x, y) in self
            .x
            .chunks_exact(w)
            .zip(self.y.chunks_exact_mut(fy * wide))
        {
            let (first, rest) = y.split_at_mut(wide);
            if fx == 2 {
                for (y, x) in first.chunks_exact_mut(2).zip(x) {
                    y[0] = *x;
                    y[1] = *x;
                }
            } else {
                for (y, x) in first.chunks_exact_mut(fx).zip(x) {
                    y.fill(*x);
                }
            }
            for row in rest.chunks_exact_mut(wide) {
                row.copy_from_slice(first);
            }
        }
    }
}

struct Gather<'a> {
    shape: &'a EnlargeShape,
    dx: &'a mut [f32],
    dy: &'a [f32],
}

impl Job for Gather<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ([_, w], [fy, fx]) = (self.shape.input, self.shape.factors);
        let wide = w * fx;
        for (dx, dy) in self
            .dx
            .chunks_exact_mut(w)
            .zip(self.dy.chunks_exact(fy * wide))
        {
            if [fy, fx] == [2, 2] {
                let (first, second) = dy.split_at(wide);
                let rows = first.chunks_exact(2).zip(second.chunks_exact(2));
                for (dx, (a, b)) in dx.iter_mut().zip(rows) {
                    *dx = (a[0] + a[1]) + (b[0] + b[1]);
                }
                continue;
            }
            dx.fill(0.0);
            for row in dy.chunks_exact(wide) {
                for (dx, dy) in dx.iter_mut().zip(row.chunks_exact(fx)) {
                    *dx += dy.iter().sum::<f32>();
                }
            }
        }
    }
}
