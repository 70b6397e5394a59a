//! Sums of tensors, and of a value for each channel.

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
