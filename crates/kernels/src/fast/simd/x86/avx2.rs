//! Vectors of AVX2.

use std::arch::x86_64::*;

use super::{
    super::{Portable, Simd},
    Avx2,
};

/// A mask of the first `n` of eight lanes.
#[inline(always)]
fn first(_: Avx2, n: usize) -> __m256i {
    pure!(_mm256_cmpgt_epi32(
        _mm256_set1_epi32(n as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
    ))
}

/// A transpose of four by four in each half.
#[inline(always)]
fn across(_: Avx2, rows: [__m256; 4]) -> [__m256; 4] {
    let [a, b, c, d] = rows;
    pure!({
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
            _mm256_shuffle_ps::<0xee>(ab_low, cd_low),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
        ]
    })
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
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm256_loadu_ps(from.add(i * from_stride));
            }
            // Columns j and 4 + j of rows 0..4 and of rows 4..8.
            let low = across(self, [r[0], r[1], r[2], r[3]]);
            let high = across(self, [r[4], r[5], r[6], r[7]]);
            for j in 0..4 {
                let (a, b) = (low[j], high[j]);
                _mm256_storeu_ps(to.add(j * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                let last = _mm256_permute2f128_ps::<0x31>(a, b);
                _mm256_storeu_ps(to.add((4 + j) * to_stride), last);
            }
        }
    }
    #[inline(always)]
    fn deinterleave(self, rows: [__m256; 4]) -> [__m256; 4] {
        let [a, b, c, d] = rows;
        pure!({
            // Rows of four i and i + 4 in the halves of a vector, then a transpose of four by four in each half.
            across(
                self,
                [
                    _mm256_permute2f128_ps::<0x20>(a, c),
                    _mm256_permute2f128_ps::<0x31>(a, c),
                    _mm256_permute2f128_ps::<0x20>(b, d),
                    _mm256_permute2f128_ps::<0x31>(b, d),
                ],
            )
        })
    }
    #[inline(always)]
    fn interleave(self, columns: [__m256; 4]) -> [__m256; 4] {
        let [a, b, c, d] = across(self, columns);
        pure!({
            [
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(a, b),
                _mm256_permute2f128_ps::<0x31>(c, d),
            ]
        })
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
        Portable.sum(lanes)
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
