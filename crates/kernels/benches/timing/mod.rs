//! Times of closures and the machine's peak, for the benchmarks of this folder.

use std::time::{Duration, Instant};

/// The shortest of several runs.
pub(crate) fn best(mut f: impl FnMut()) -> Duration {
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || (begin.elapsed() < Duration::from_millis(300) && runs < 200) {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed());
        runs += 1;
    }
    best
}

/// What one thread reaches on independent multiply-adds in registers, GFLOP/s.
pub(crate) fn peak() -> f64 {
    const N: usize = 2_000_000;
    let time = best(|| {
        std::hint::black_box(kernels::fma_loop(std::hint::black_box(N)));
    });
    kernels::fma_loop_flops(N) / time.as_secs_f64() / 1e9
}
