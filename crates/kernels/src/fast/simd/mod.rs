//! A small vector vocabulary, so that one kernel serves every instruction set.
//!
//! A value of [`Portable`], `Avx2` or `Avx512` is a token: it exists only where the machine has that
//! set, which is why its arithmetic is safe. A kernel is a [`Job`]; [`dispatch`] runs it inside a
//! function compiled for the set.

#![expect(
    unsafe_code,
    reason = "vector intrinsics; every block states why it is sound"
)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use self::portable::Portable;
use super::{isa::Isa, pairs::pair};

/// Vector arithmetic of one instruction set; lanes are f32.
pub(crate) trait Simd: Copy {
    /// A vector register.
    type V: Copy;
    /// Values in a vector.
    const LANES: usize;
    /// Rows of two-vector accumulators that fit the register file beside the operands.
    const ROWS: usize;
    /// Vectors of output channels in the weight gradient's accumulators, and all its accumulators.
    const GRAD_VECTORS: usize;
    /// See [`Self::GRAD_VECTORS`].
    const GRAD_SUMS: usize;
    /// Columns of one-vector accumulators, by four rows, that fit the register file beside the operands.
    const DOT_COLUMNS: usize;

    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Reads `LANES` bfloat16 values.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// Reads `LANES` half-precision values.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// Reads `n <= LANES` values; the other lanes are zero.
    ///
    /// # Safety
    /// `p` is valid for reading `n` values.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n <= LANES` values.
    ///
    /// # Safety
    /// `p` is valid for writing `n` values.
    unsafe fn store_part(self, p: *mut f32, v: Self::V, n: usize);
    /// Transposes a `LANES` x `LANES` block from rows `from_stride` apart to rows `to_stride` apart.
    ///
    /// # Safety
    /// All rows are valid for `LANES` values, and the blocks do not overlap.
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for row in 0..Self::LANES {
            for col in 0..Self::LANES {
                // SAFETY: by the caller's promise.
                unsafe { *to.add(col * to_stride + row) = *from.add(row * from_stride + col) };
            }
        }
    }

    /// Value `j` of each of `T` rows from groups of `T` values, of two values to a lane: `to[t][j] = from[j * T + t]`.
    ///
    /// # Safety
    /// `from` is valid for `2 * LANES * T` values, each of `T` rows `to_stride` lanes apart for a vector.
    #[inline(always)]
    unsafe fn deal<const T: usize>(self, from: *const u16, to: *mut f32, to_stride: usize) {
        for t in 0..T {
            // SAFETY: by the caller's promise.
            unsafe {
                let to = to.add(t * to_stride).cast::<u16>();
                for j in 0..2 * Self::LANES {
                    to.add(j).write_unaligned(from.add(j * T + t).read());
                }
            }
        }
    }

    /// Values in rows of four to a vector for each of the four columns.
    #[inline(always)]
    fn deinterleave(self, rows: [Self::V; 4]) -> [Self::V; 4] {
        let (mut from, mut to) = ([0.0; 64], [0.0; 64]);
        // SAFETY: there are at most 16 lanes.
        unsafe {
            for (i, v) in rows.into_iter().enumerate() {
                self.store(from.as_mut_ptr().add(i * Self::LANES), v);
            }
            for i in 0..4 * Self::LANES {
                to[i % 4 * Self::LANES + i / 4] = from[i];
            }
            std::array::from_fn(|i| self.load(to.as_ptr().add(i * Self::LANES)))
        }
    }
    /// The inverse of [`Self::deinterleave`].
    #[inline(always)]
    fn interleave(self, columns: [Self::V; 4]) -> [Self::V; 4] {
        let (mut from, mut to) = ([0.0; 64], [0.0; 64]);
        // SAFETY: there are at most 16 lanes.
        unsafe {
            for (i, v) in columns.into_iter().enumerate() {
                self.store(from.as_mut_ptr().add(i * Self::LANES), v);
            }
            for i in 0..4 * Self::LANES {
                to[i] = from[i % 4 * Self::LANES + i / 4];
            }
            std::array::from_fn(|i| self.load(to.as_ptr().add(i * Self::LANES)))
        }
    }

    /// Asks for the cache line at `p`, which need not be valid, in the second-level cache.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, in one rounding where the set has it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a0 b0 + a1 b1 + c` where each lane of `a` and `b` holds two bfloat16 values.
    fn dot2(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each lane.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` held within `low..=high`; NaN stays NaN.
    fn clamp(self, v: Self::V, low: f32, high: f32) -> Self::V;
    /// `v`, or `low` where that is larger; NaN stays NaN.
    #[inline(always)]
    fn at_least(self, v: Self::V, low: f32) -> Self::V {
        self.clamp(v, low, f32::INFINITY)
    }
    /// The nearest whole number, ties to even; `|v| < 2^22`.
    fn round(self, v: Self::V) -> Self::V;
    /// `2^n` for whole `n` in `-126..=127`; any value for NaN.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// `v 2^n` for such `n`.
    #[inline(always)]
    fn times_exp2(self, v: Self::V, n: Self::V) -> Self::V {
        self.mul(v, self.exp2_whole(n))
    }
    /// The lanes' sum, in a fixed order.
    fn sum(self, v: Self::V) -> f32;

    /// The bfloat16 pairs of each lane of `a` and of `b`; what is below 2^-126 may become zero, here and in [`Self::pairs_within`].
    #[inline(always)]
    fn pairs_across(self, a: Self::V, b: Self::V) -> Self::V {
        let mut lanes = [[0.0; 16]; 2];
        // SAFETY: there are at most 16 lanes.
        unsafe {
            self.store(lanes[0].as_mut_ptr(), a);
            self.store(lanes[1].as_mut_ptr(), b);
            let pairs: [f32; 16] = std::array::from_fn(|i| pair(lanes[0][i], lanes[1][i]));
            self.load(pairs.as_ptr())
        }
    }
    /// The bfloat16 pairs of neighbouring lanes of `a` and then of `b`.
    #[inline(always)]
    fn pairs_within(self, a: Self::V, b: Self::V) -> Self::V {
        let mut lanes = [0.0; 32];
        // SAFETY: there are at most 16 lanes.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            self.store(lanes.as_mut_ptr().add(Self::LANES), b);
            let pairs: [f32; 16] = std::array::from_fn(|i| pair(lanes[2 * i], lanes[2 * i + 1]));
            self.load(pairs.as_ptr())
        }
    }

    /// The largest lane; any value if one is not a number.
    #[inline(always)]
    fn maximum(self, v: Self::V) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        // SAFETY: there are at most 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// `e^v` to about 1 ulp, for `v` held within -87..=88; NaN stays NaN.
    #[inline(always)]
    fn exp(self, v: Self::V) -> Self::V {
        let v = self.clamp(v, -87.0, 88.0);
        let n = self.round(self.mul(v, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts (Cephes expf): n times the first is exact.
        let r = self.fma(n, self.splat(-0.693_359_4), v);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5.0e-1,
        ] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.fma(self.mul(p, r), r, self.add(r, self.splat(1.0)));
        self.times_exp2(p, n)
    }

    /// `2^v` to 3e-7, for `v` up to 127 and held above -126; NaN stays NaN.
    #[inline(always)]
    fn exp2(self, v: Self::V) -> Self::V {
        let v = self.at_least(v, -126.0);
        let n = self.round(v);
        let r = self.sub(v, n);
        // The polynomial with the least relative error on -1/2..1/2.
        let mut p = self.splat(1.327_647_1e-3);
        for c in [
            9.675_541e-3,
            5.550_713e-2,
            2.402_212e-1,
            6.931_469_4e-1,
            1.0,
        ] {
            p = self.fma(p, r, self.splat(c));
        }
        self.times_exp2(p, n)
    }

    /// `1 / (1 + e^-v)`.
    #[inline(always)]
    fn sigmoid(self, v: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.splat(0.0), v))))
    }
}

/// A kernel, written once for every instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Job {
    /// What it gives back.
    type Out;
    /// Runs with the vectors of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs `job` with `isa`, or portably where the machine lacks it.
#[inline]
pub(crate) fn dispatch<J: Job>(isa: Isa, job: J) -> J::Out {
    #[cfg(target_arch = "x86_64")]
    {
        if isa.is_avx512() && isa.is_available() {
            // SAFETY: the machine has the features.
            return unsafe { x86::run_avx512(job) };
        }
        if isa == Isa::Avx2 && isa.is_available() {
            // SAFETY: the machine has the features.
            return unsafe { x86::run_avx2(job) };
        }
    }
    let _ = isa;
    job.run(Portable)
}

/// As [`dispatch`], with the machine's own products of bfloat16 pairs where it has them.
#[inline]
pub(crate) fn dispatch_pairs<J: Job>(isa: Isa, job: J) -> J::Out {
    #[cfg(target_arch = "x86_64")]
    if isa.is_avx512() && isa.is_available() && Isa::has_bf16() {
        // SAFETY: the machine has the features.
        return unsafe { x86::run_avx512_bf16(job) };
    }
    dispatch(isa, job)
}
