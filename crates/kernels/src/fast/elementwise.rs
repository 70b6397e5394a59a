//! Pointwise activations and their gradients, in parallel chunks.

#![expect(unsafe_code, reason = "vector loads and stores inside checked chunks")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    loops::{map, zip},
    norm,
    simd::{Job, Simd, dispatch},
};

/// Values of one task.
const CHUNK: usize = 16 * 1024;

/// `x * sigmoid(x)`.
pub(crate) fn silu(isa: Isa, x: &[f32]) -> Vec<f32> {
    struct Silu<'a>(&'a [f32], &'a mut [f32]);
    impl Job for Silu<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            map!(s, self.0, self.1, |x| norm::silu(s, x));
        }
    }
    let mut y = vec![0.0; x.len()];
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(y, x)| dispatch(isa, Silu(x, y)));
    y
}

/// The gradient of SiLU's input.
pub(crate) fn silu_backward(isa: Isa, x: &[f32], dy: &[f32]) -> Vec<f32> {
    struct Backward<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Backward<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            zip!(s, self.0, self.1, self.2, |x, dy| norm::silu_grad(s, x, dy));
        }
    }
    let mut dx = vec![0.0; x.len()];
    let chunks = dx
        .par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .zip(dy.par_chunks(CHUNK));
    chunks.for_each(|((dx, x), dy)| dispatch(isa, Backward(x, dy, dx)));
    dx
}
