//! The machine's peak: independent multiply-adds in registers.

use super::{
    isa::Isa,
    simd::{Job, Simd, dispatch},
};

struct Loop(usize);

impl Job for Loop {
    type Out = (f32, usize);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        let mut sums = [s.splat(0.0); 10];
        let (a, b) = (
            s.splat(std::hint::black_box(0.5)),
            s.splat(std::hint::black_box(1.0)),
        );
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        let total = sums
            .into_iter()
            .fold(s.splat(0.0), |total, sum| s.add(total, sum));
        (s.sum(total), 20 * S::LANES * self.0)
    }
}

/// Runs `n` rounds; the result only keeps them from being dropped.
pub fn fma_loop(n: usize) -> f32 {
    dispatch(Isa::current(), Loop(n)).0
}

/// Floating-point operations of `n` rounds.
pub fn fma_loop_flops(n: usize) -> f64 {
    dispatch(Isa::current(), Loop(1)).1 as f64 * n as f64
}
