//! Pointwise activations, gated ones, and their gradients, in parallel chunks.

#![expect(unsafe_code, reason = "vector loads and stores inside checked chunks")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    loops::{map, zip},
    norm,
    shared::unwritten,
    simd::{Job, Simd, dispatch},
};

/// Values of one task.
const CHUNK: usize = 16 * 1024;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, with the error function.
    Gelu,
    /// GELU by the hyperbolic tangent: `x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

/// `2 sqrt(2 / pi)`.
const TANH_SLOPE: f32 = 1.595_769;
/// The cubic's weight in GELU by the hyperbolic tangent.
const TANH_CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;

impl Function {
    #[inline(always)]
    fn value<S: Simd>(self, s: S, x: S::V) -> S::V {
        match self {
            Self::Silu => norm::silu(s, x),
            Self::Gelu => s.mul(x, phi(s, x)),
            Self::GeluTanh => s.mul(x, s.sigmoid(tanh_argument(s, x))),
            Self::QuickGelu => s.mul(x, s.sigmoid(s.mul(x, s.splat(QUICK)))),
        }
    }

    /// The slope at `x`.
    #[inline(always)]
    fn slope<S: Simd>(self, s: S, x: S::V) -> S::V {
        let one = s.splat(1.0);
        match self {
            Self::Silu => norm::silu_grad(s, x, one),
            Self::Gelu => {
                // Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi)
                let density = s.mul(
                    s.exp(s.mul(s.mul(x, x), s.splat(-0.5))),
                    s.splat(0.398_942_3),
                );
                s.fma(x, density, phi(s, x))
            }
            Self::GeluTanh => {
                let sigma = s.sigmoid(tanh_argument(s, x));
                let square = s.mul(x, x);
                let inner = s.fma(
                    square,
                    s.splat(3.0 * TANH_SLOPE * TANH_CUBIC),
                    s.splat(TANH_SLOPE),
                );
                sigmoid_slope(s, x, sigma, inner)
            }
            Self::QuickGelu => {
                let sigma = s.sigmoid(s.mul(x, s.splat(QUICK)));
                sigmoid_slope(s, x, sigma, s.splat(QUICK))
            }
        }
    }
}

/// The slope of `x sigmoid(u(x))`: `sigma + x sigma (1 - sigma) u'`.
#[inline(always)]
fn sigmoid_slope<S: Simd>(s: S, x: S::V, sigma: S::V, inner: S::V) -> S::V {
    let rest = s.sub(s.splat(1.0), sigma);
    s.mul(sigma, s.fma(s.mul(x, inner), rest, s.splat(1.0)))
}

#[inline(always)]
fn tanh_argument<S: Simd>(s: S, x: S::V) -> S::V {
    let square = s.mul(x, x);
    let slope = s.fma(
        square,
        s.splat(TANH_SLOPE * TANH_CUBIC),
        s.splat(TANH_SLOPE),
    );
    s.mul(x, slope)
}

/// The normal distribution's `Phi(x) = (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
fn phi<S: Simd>(s: S, x: S::V) -> S::V {
    let erf = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    s.fma(erf, s.splat(0.5), s.splat(0.5))
}

/// The error function as a quotient of polynomials in `x^2` (that of Eigen), within 4e-7.
#[inline(always)]
fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.clamp(x, -4.0, 4.0);
    let t = s.mul(x, x);
    let above = polynomial(
        s,
        t,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below = polynomial(
        s,
        t,
        [
            -1.456_607_2e-5,
            -2.133_740_6e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    s.div(s.mul(x, above), below)
}

/// A polynomial in `t`, the highest power's coefficient first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, t: S::V, coefficients: [f32; N]) -> S::V {
    let mut p = s.splat(0.0);
    for c in coefficients {
        p = s.fma(p, t, s.splat(c));
    }
    p
}

/// `y = f(x)`.
struct Apply<'a>(Function, &'a [f32], &'a mut [f32]);

impl Job for Apply<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One loop for each function, not a choice for each vector.
        match self.0 {
            Function::Silu => map!(s, self.1, self.2, |x| Function::Silu.value(s, x)),
            Function::Gelu => map!(s, self.1, self.2, |x| Function::Gelu.value(s, x)),
            Function::GeluTanh => map!(s, self.1, self.2, |x| Function::GeluTanh.value(s, x)),
            Function::QuickGelu => map!(s, self.1, self.2, |x| Function::QuickGelu.value(s, x)),
        }
    }
}

/// `y = f(x)`.
pub(crate) fn apply(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
    // SAFETY: the chunks' results cover it.
    let mut y = unsafe { unwritten(x.len()) };
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(y, x)| dispatch(isa, Apply(function, x, y)));
    y
}

/// `f(x)` in place of `x`: the same values.
pub(crate) fn apply_to(isa: Isa, function: Function, x: &mut [f32]) {
    /// Values that are copied first; they stay in the first-level cache.
    const BLOCK: usize = 1024;
    x.par_chunks_mut(CHUNK).for_each(|x| {
        let mut copy = [0.0; BLOCK];
        for x in x.chunks_mut(BLOCK) {
            let copy = &mut copy[..x.len()];
            copy.copy_from_slice(x);
            dispatch(isa, Apply(function, copy, x));
        }
    });
}

/// The gradient of `x`.
pub(crate) fn backward(isa: Isa, function: Function, x: &[f32], dy: &[f32]) -> Vec<f32> {
    struct Backward<'a>(Function, &'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Backward<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            macro_rules! run {
                ($f:expr) => {
                    zip!(s, self.1, self.2, self.3, |x, dy| s.mul(dy, $f.slope(s, x)))
                };
            }
            match self.0 {
                Function::Silu => {
                    zip!(s, self.1, self.2, self.3, |x, dy| norm::silu_grad(s, x, dy));
                }
                Function::Gelu => run!(Function::Gelu),
                Function::GeluTanh => run!(Function::GeluTanh),
                Function::QuickGelu => run!(Function::QuickGelu),
            }
        }
    }
    assert_eq!(x.len(), dy.len());
    // SAFETY: the chunks' results cover it.
    let mut dx = unsafe { unwritten(x.len()) };
    let chunks = dx
        .par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .zip(dy.par_chunks(CHUNK));
    chunks.for_each(|((dx, x), dy)| dispatch(isa, Backward(function, x, dy, dx)));
    dx
}

/// `y = h gelu(gate)` for rows `[h, gate]` of `2 d` values.
pub(crate) fn geglu(isa: Isa, d: usize, x: &[f32]) -> Vec<f32> {
    struct Rows<'a>(usize, &'a [f32], &'a mut [f32]);
    impl Job for Rows<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let d = self.0;
            for (x, y) in self.1.chunks_exact(2 * d).zip(self.2.chunks_exact_mut(d)) {
                let (h, gate) = x.split_at(d);
                zip!(s, h, gate, y, |h, gate| s
                    .mul(h, Function::Gelu.value(s, gate)));
            }
        }
    }
    assert!(x.len().is_multiple_of(2 * d));
    // SAFETY: the rows' results cover it.
    let mut y = unsafe { unwritten(x.len() / 2) };
    let rows = (CHUNK / d).max(1);
    let chunks = y.par_chunks_mut(rows * d).zip(x.par_chunks(2 * rows * d));
    chunks.for_each(|(y, x)| dispatch(isa, Rows(d, x, y)));
    y
}

/// The gradient of [`geglu`]'s input.
pub(crate) fn geglu_backward(isa: Isa, d: usize, x: &[f32], dy: &[f32]) -> Vec<f32> {
    struct Rows<'a>(usize, &'a [f32], &'a [f32], &'a mut [f32]);
    impl Job for Rows<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let d = self.0;
            let rows = self.1.chunks_exact(2 * d).zip(self.2.chunks_exact(d));
            for ((x, dy), dx) in rows.zip(self.3.chunks_exact_mut(2 * d)) {
                let (h, gate) = x.split_at(d);
                let (dh, dgate) = dx.split_at_mut(d);
                // dgate holds dy f'(gate) until it is multiplied by h.
                zip!(s, dy, gate, dh, |dy, gate| s
                    .mul(dy, Function::Gelu.value(s, gate)));
                zip!(s, dy, gate, dgate, |dy, gate| s
                    .mul(dy, Function::Gelu.slope(s, gate)));
                super::loops::update!(s, h, dgate, |h, dgate| s.mul(h, dgate));
            }
        }
    }
    assert!(x.len().is_multiple_of(2 * d) && 2 * dy.len() == x.len());
    // SAFETY: the rows' results cover it.
    let mut dx = unsafe { unwritten(x.len()) };
    let rows = (CHUNK / d).max(1);
    let chunks = dx
        .par_chunks_mut(2 * rows * d)
        .zip(x.par_chunks(2 * rows * d))
        .zip(dy.par_chunks(rows * d));
    chunks.for_each(|((dx, x), dy)| dispatch(isa, Rows(d, x, dy, dx)));
    dx
}
