//! Vectors in plain Rust.

use burn::tensor::{bf16, f16};

use super::Simd;

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
