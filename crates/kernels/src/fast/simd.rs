//! A small vector vocabulary, so that one kernel serves every instruction set.
//!
//! A value of [`Portable`], `Avx2` or `Avx512` is a token: it exists only where the machine has that
//! set, which is why its arithmetic is safe. A kernel is a [`Job`]; [`dispatch`] runs it inside a
//! function compiled for the set.

#![expect(
    unsafe_code,
    reason = "vector intrinsics; every block states why it is sound"
)]

use burn::tensor::{bf16, f16};

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

    /// Asks for the cache line at `p`, which need not be valid.
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
    /// The nearest whole number, ties to even; `|v| < 2^22`.
    fn round(self, v: Self::V) -> Self::V;
    /// `2^n` for whole `n` in `-126..=127`; any value for NaN.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// The lanes' sum, in a fixed order.
    fn sum(self, v: Self::V) -> f32;

    /// The bfloat16 pairs of each lane of `a` and of `b`.
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
        self.mul(p, self.exp2_whole(n))
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

/// Plain Rust, eight lanes, which compilers turn into whatever the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Eight values.
type Eight = [f32; 8];

#[inline(always)]
fn zip(a: Eight, b: Eight, f: impl Fn(f32, f32) -> f32) -> Eight {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = Eight;
    const LANES: usize = 8;
    const ROWS: usize = 3;
    const GRAD_VECTORS: usize = 1;
    const GRAD_SUMS: usize = 4;
    const DOT_COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Eight {
        // SAFETY: by the caller's promise; `p` may point to pairs of 16-bit values.
        unsafe { p.cast::<Eight>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Eight) {
        // SAFETY: as in `load`.
        unsafe { *p.cast::<Eight>() = v };
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Eight {
        // SAFETY: by the caller's promise.
        std::array::from_fn(|i| bf16::from_bits(unsafe { *p.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Eight {
        // SAFETY: by the caller's promise.
        std::array::from_fn(|i| f16::from_bits(unsafe { *p.add(i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Eight {
        // SAFETY: by the caller's promise only the first n are read.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: Eight, n: usize) {
        for (i, value) in v.into_iter().enumerate().take(n) {
            // SAFETY: by the caller's promise the first n may be written.
            unsafe { *p.add(i) = value };
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Eight {
        [x; 8]
    }
    #[inline(always)]
    fn add(self, a: Eight, b: Eight) -> Eight {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Eight, b: Eight) -> Eight {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Eight, b: Eight) -> Eight {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Eight, b: Eight) -> Eight {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Eight, b: Eight, c: Eight) -> Eight {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn dot2(self, a: Eight, b: Eight, c: Eight) -> Eight {
        let halves = |x: f32| {
            let bits = x.to_bits();
            (
                f32::from_bits(bits << 16),
                f32::from_bits(bits & 0xffff_0000),
            )
        };
        std::array::from_fn(|i| {
            let ((a0, a1), (b0, b1)) = (halves(a[i]), halves(b[i]));
            a0 * b0 + c[i] + a1 * b1
        })
    }
    #[inline(always)]
    fn max(self, a: Eight, b: Eight) -> Eight {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn clamp(self, v: Eight, low: f32, high: f32) -> Eight {
        v.map(|x| {
            if x < low {
                low
            } else if x > high {
                high
            } else {
                x
            }
        })
    }
    #[inline(always)]
    fn round(self, v: Eight) -> Eight {
        // Adding 1.5 * 2^23 leaves no fraction bits.
        v.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn exp2_whole(self, n: Eight) -> Eight {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn sum(self, v: Eight) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Job, Simd};

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

    /// An intrinsic without memory operands.
    macro_rules! pure {
        ($call:expr) => {
            // SAFETY: the token proves that the machine has the instruction.
            unsafe { $call }
        };
    }

    impl<const BF16: bool> Simd for Avx512<BF16> {
        type V = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 13;
        const GRAD_VECTORS: usize = 2;
        const GRAD_SUMS: usize = 24;
        const DOT_COLUMNS: usize = 6;

        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m512 {
            // SAFETY: the token proves the instruction, the caller the pointer.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m512) {
            // SAFETY: the token proves the instruction, the caller the pointer.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(self, p: *const u16) -> __m512 {
            // SAFETY: the token proves the instructions, the caller the pointer.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(self, p: *const u16) -> __m512 {
            // SAFETY: the token proves the instructions, the caller the pointer.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
            // SAFETY: masked lanes are not read; the rest is the caller's promise.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, v: __m512, n: usize) {
            // SAFETY: masked lanes are not written; the rest is the caller's promise.
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, v) }
        }
        #[inline(always)]
        unsafe fn transpose(
            self,
            from: *const f32,
            from_stride: usize,
            to: *mut f32,
            to_stride: usize,
        ) {
            // SAFETY: the token proves the instructions, the caller the pointers.
            unsafe {
                // No closures: they would not be compiled for the set.
                let mut r = [_mm512_setzero_ps(); 16];
                for (i, r) in r.iter_mut().enumerate() {
                    *r = _mm512_loadu_ps(from.add(i * from_stride));
                }
                // 2x2 blocks, then 4x4, within the 128-bit quarters.
                for i in (0..16).step_by(2) {
                    let (a, b) = (r[i], r[i + 1]);
                    r[i] = _mm512_unpacklo_ps(a, b);
                    r[i + 1] = _mm512_unpackhi_ps(a, b);
                }
                for i in (0..16).step_by(4) {
                    let (a, b) = (_mm512_castps_pd(r[i]), _mm512_castps_pd(r[i + 1]));
                    let (c, d) = (_mm512_castps_pd(r[i + 2]), _mm512_castps_pd(r[i + 3]));
                    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
                }
                // Quarters: r[4g + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4g..4g + 4.
                for j in 0..4 {
                    let (a, b, c, d) = (r[j], r[4 + j], r[8 + j], r[12 + j]);
                    let ab_low = _mm512_shuffle_f32x4::<0x88>(a, b);
                    let ab_high = _mm512_shuffle_f32x4::<0xdd>(a, b);
                    let cd_low = _mm512_shuffle_f32x4::<0x88>(c, d);
                    let cd_high = _mm512_shuffle_f32x4::<0xdd>(c, d);
                    let out = [
                        _mm512_shuffle_f32x4::<0x88>(ab_low, cd_low),
                        _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
                        _mm512_shuffle_f32x4::<0xdd>(ab_low, cd_low),
                        _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
                    ];
                    for (q, &row) in out.iter().enumerate() {
                        _mm512_storeu_ps(to.add((4 * q + j) * to_stride), row);
                    }
                }
            }
        }
        #[inline(always)]
        fn prefetch(self, p: *const f32) {
            pure!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
        }
        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            pure!(_mm512_set1_ps(x))
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            pure!(_mm512_add_ps(a, b))
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            pure!(_mm512_sub_ps(a, b))
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            pure!(_mm512_mul_ps(a, b))
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            pure!(_mm512_div_ps(a, b))
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            pure!(_mm512_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn dot2(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            if BF16 {
                // SAFETY: the token proves the instruction; the types differ in name only.
                return unsafe {
                    _mm512_dpbf16_ps(
                        c,
                        std::mem::transmute::<__m512, __m512bh>(a),
                        std::mem::transmute::<__m512, __m512bh>(b),
                    )
                };
            }
            pure!({
                let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
                let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let low_a = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a));
                let low_b = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b));
                let high_a = _mm512_castsi512_ps(_mm512_and_si512(a, mask));
                let high_b = _mm512_castsi512_ps(_mm512_and_si512(b, mask));
                _mm512_fmadd_ps(high_a, high_b, _mm512_fmadd_ps(low_a, low_b, c))
            })
        }
        #[inline(always)]
        fn pairs_across(self, a: __m512, b: __m512) -> __m512 {
            pure!({
                let high = _mm512_slli_epi32::<16>(rounded(self, b));
                _mm512_castsi512_ps(_mm512_or_si512(rounded(self, a), high))
            })
        }
        #[inline(always)]
        fn pairs_within(self, a: __m512, b: __m512) -> __m512 {
            pure!({
                let a = _mm512_cvtepi32_epi16(rounded(self, a));
                let b = _mm512_cvtepi32_epi16(rounded(self, b));
                _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b))
            })
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            pure!(_mm512_max_ps(a, b))
        }
        #[inline(always)]
        fn clamp(self, v: __m512, low: f32, high: f32) -> __m512 {
            // The second operand is the result where either is NaN.
            pure!(_mm512_min_ps(
                _mm512_set1_ps(high),
                _mm512_max_ps(_mm512_set1_ps(low), v)
            ))
        }
        #[inline(always)]
        fn round(self, v: __m512) -> __m512 {
            pure!(_mm512_roundscale_ps::<
                { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
            >(v))
        }
        #[inline(always)]
        fn exp2_whole(self, n: __m512) -> __m512 {
            pure!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(
                _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127))
            )))
        }
        #[inline(always)]
        fn sum(self, v: __m512) -> f32 {
            pure!(_mm512_reduce_add_ps(v))
        }
        #[inline(always)]
        fn maximum(self, v: __m512) -> f32 {
            pure!(_mm512_reduce_max_ps(v))
        }
    }

    /// The bits of each lane rounded to bfloat16, as [`round`](super::super::pairs::round) does.
    #[inline(always)]
    fn rounded<const BF16: bool>(_: Avx512<BF16>, v: __m512) -> __m512i {
        pure!({
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let to = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_mov_epi32(to, nan, _mm512_set1_epi32(0x7fc0))
        })
    }

    /// A mask of the first `n` of eight lanes.
    #[inline(always)]
    fn first(_: Avx2, n: usize) -> __m256i {
        pure!(_mm256_cmpgt_epi32(
            _mm256_set1_epi32(n as i32),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
        ))
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 6;
        const GRAD_VECTORS: usize = 2;
        const GRAD_SUMS: usize = 12;
        const DOT_COLUMNS: usize = 3;

        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m256 {
            // SAFETY: the token proves the instruction, the caller the pointer.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m256) {
            // SAFETY: the token proves the instruction, the caller the pointer.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(self, p: *const u16) -> __m256 {
            // SAFETY: the token proves the instructions, the caller the pointer.
            unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(self, p: *const u16) -> __m256 {
            // SAFETY: the token proves the instructions, the caller the pointer.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
            // SAFETY: masked lanes are not read; the rest is the caller's promise.
            unsafe { _mm256_maskload_ps(p, first(self, n)) }
        }
        #[inline(always)]
        unsafe fn store_part(self, p: *mut f32, v: __m256, n: usize) {
            // SAFETY: masked lanes are not written; the rest is the caller's promise.
            unsafe { _mm256_maskstore_ps(p, first(self, n), v) }
        }
        #[inline(always)]
        fn prefetch(self, p: *const f32) {
            pure!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
        }
        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            pure!(_mm256_set1_ps(x))
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            pure!(_mm256_add_ps(a, b))
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            pure!(_mm256_sub_ps(a, b))
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            pure!(_mm256_mul_ps(a, b))
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            pure!(_mm256_div_ps(a, b))
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            pure!(_mm256_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn dot2(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            pure!({
                let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
                let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let low_a = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a));
                let low_b = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b));
                let high_a = _mm256_castsi256_ps(_mm256_and_si256(a, mask));
                let high_b = _mm256_castsi256_ps(_mm256_and_si256(b, mask));
                _mm256_fmadd_ps(high_a, high_b, _mm256_fmadd_ps(low_a, low_b, c))
            })
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            pure!(_mm256_max_ps(a, b))
        }
        #[inline(always)]
        fn clamp(self, v: __m256, low: f32, high: f32) -> __m256 {
            // The second operand is the result where either is NaN.
            pure!(_mm256_min_ps(
                _mm256_set1_ps(high),
                _mm256_max_ps(_mm256_set1_ps(low), v)
            ))
        }
        #[inline(always)]
        fn round(self, v: __m256) -> __m256 {
            pure!(_mm256_round_ps::<
                { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
            >(v))
        }
        #[inline(always)]
        fn exp2_whole(self, n: __m256) -> __m256 {
            pure!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(
                _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127))
            )))
        }
        #[inline(always)]
        fn sum(self, v: __m256) -> f32 {
            let mut lanes = [0.0; 8];
            // SAFETY: the array has eight lanes.
            unsafe { self.store(lanes.as_mut_ptr(), v) };
            super::Portable.sum(lanes)
        }
        #[inline(always)]
        fn maximum(self, v: __m256) -> f32 {
            pure!({
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
            })
        }
    }
}
