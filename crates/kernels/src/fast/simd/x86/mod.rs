//! Vectors of AVX2 and AVX-512.

/// An intrinsic without memory operands.
macro_rules! pure {
    ($call:expr) => {
        // SAFETY: the token proves that the machine has the instruction.
        unsafe { $call }
    };
}

mod avx2;
mod avx512;

use super::Job;

/// The token of AVX2 with FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// The token of AVX-512 F, BW, DQ and VL, and of its bfloat16 products if `BF16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

/// Runs `job` compiled for AVX2 (every such processor converts half precision too).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_avx2<J: Job>(job: J) -> J::Out {
    job.run(Avx2(()))
}

/// Runs `job` compiled for AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run_avx512<J: Job>(job: J) -> J::Out {
    job.run(Avx512::<false>(()))
}

/// Runs `job` compiled for AVX-512 with bfloat16 products.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run_avx512_bf16<J: Job>(job: J) -> J::Out {
    job.run(Avx512::<true>(()))
}
