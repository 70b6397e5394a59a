//! Vectors of AVX-512.

use std::arch::x86_64::*;

use super::{super::Simd, Avx512};

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
    unsafe fn deal<const T: usize>(self, from: *const u16, to: *mut f32, to_stride: usize) {
        // SAFETY: the token proves the instructions, the caller the pointers.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); T];
            for (t, row) in rows.iter_mut().enumerate() {
                let places = _mm512_loadu_si512(Dealt::<T>::PLACES[t].as_ptr().cast());
                for (r, &mask) in Dealt::<T>::MASKS[t].iter().enumerate() {
                    let values = _mm512_loadu_si512(from.add(32 * r).cast());
                    *row = _mm512_mask_permutexvar_epi16(*row, mask, places, values);
                }
            }
            for (t, row) in rows.iter().enumerate() {
                _mm512_storeu_si512(to.add(t * to_stride).cast(), *row);
            }
        }
    }
    #[inline(always)]
    fn deinterleave(self, rows: [__m512; 4]) -> [__m512; 4] {
        let [a, b, c, d] = rows;
        pure!({
            // Columns 0 and 1, and 2 and 3, of the first eight rows of four and of the last.
            let first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
            let last = _mm512_add_epi32(first, _mm512_set1_epi32(2));
            let low = [
                _mm512_permutex2var_ps(a, first, b),
                _mm512_permutex2var_ps(c, first, d),
            ];
            let high = [
                _mm512_permutex2var_ps(a, last, b),
                _mm512_permutex2var_ps(c, last, d),
            ];
            [
                _mm512_shuffle_f32x4::<0x44>(low[0], low[1]),
                _mm512_shuffle_f32x4::<0xee>(low[0], low[1]),
                _mm512_shuffle_f32x4::<0x44>(high[0], high[1]),
                _mm512_shuffle_f32x4::<0xee>(high[0], high[1]),
            ]
        })
    }
    #[inline(always)]
    fn interleave(self, columns: [__m512; 4]) -> [__m512; 4] {
        let [a, b, c, d] = columns;
        pure!({
            let first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
            let last = _mm512_add_epi32(first, _mm512_set1_epi32(4));
            let low = [
                _mm512_shuffle_f32x4::<0x44>(a, b),
                _mm512_shuffle_f32x4::<0x44>(c, d),
            ];
            let high = [
                _mm512_shuffle_f32x4::<0xee>(a, b),
                _mm512_shuffle_f32x4::<0xee>(c, d),
            ];
            [
                _mm512_permutex2var_ps(low[0], first, low[1]),
                _mm512_permutex2var_ps(low[0], last, low[1]),
                _mm512_permutex2var_ps(high[0], first, high[1]),
                _mm512_permutex2var_ps(high[0], last, high[1]),
            ]
        })
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
        if BF16 {
            // SAFETY: the token proves the instructions; the types differ in name only.
            return unsafe {
                // No closure: it would not be compiled for the set.
                let a = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(a));
                let b = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(b));
                let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(b));
                _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(a), high))
            };
        }
        pure!({
            let high = _mm512_slli_epi32::<16>(rounded(self, b));
            _mm512_castsi512_ps(_mm512_or_si512(rounded(self, a), high))
        })
    }
    #[inline(always)]
    fn pairs_within(self, a: __m512, b: __m512) -> __m512 {
        if BF16 {
            // SAFETY: the token proves the instruction; the types differ in name only.
            return unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(b, a)) };
        }
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
    fn at_least(self, v: __m512, low: f32) -> __m512 {
        // The second operand is the result where either is NaN.
        pure!(_mm512_max_ps(_mm512_set1_ps(low), v))
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
    fn times_exp2(self, v: __m512, n: __m512) -> __m512 {
        pure!(_mm512_scalef_ps(v, n))
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

/// Where the values of [`Simd::deal`] come from.
struct Dealt<const T: usize>;

impl<const T: usize> Dealt<T> {
    /// For each row, the place of each of its values in a vector.
    const PLACES: [[u16; 32]; T] = {
        let mut places = [[0; 32]; T];
        let mut at = 0;
        while at < 32 * T {
            places[at % T][at / T] = (at % 32) as u16;
            at += 1;
        }
        places
    };
    /// For each row and vector, which of the row's values are in it.
    const MASKS: [[u32; T]; T] = {
        let mut masks = [[0; T]; T];
        let mut at = 0;
        while at < 32 * T {
            masks[at % T][at / 32] |= 1 << (at / T);
            at += 1;
        }
        masks
    };
}

/// The bits of each lane rounded to bfloat16, as [`round`](crate::fast::pairs::round) does.
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
