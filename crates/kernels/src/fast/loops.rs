//! Loops over slices, vector by vector with a partial last one.
//!
//! They are macros because a closure would be compiled without the instruction set of the kernel it is in.

#![expect(unsafe_code, reason = "vector loads inside checked slices")]

use super::simd::{Job, Simd};

/// The f64 sum of `$f` over a slice, f32 within 1024 values; `$f` of `$neutral` is zero.
macro_rules! sum {
    ($s:ident, $xs:expr, $neutral:expr, |$x:ident| $f:expr) => {{
        let mut total = 0.0f64;
        for block in $xs.chunks(1024) {
            let mut sums = [$s.splat(0.0); 4];
            let lanes = S::LANES;
            let whole = block.len() / (4 * lanes) * (4 * lanes);
            for i in (0..whole).step_by(4 * lanes) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: four vectors from i lie in the block.
                    let $x = unsafe { $s.load(block.as_ptr().add(i + j * lanes)) };
                    *sum = $s.add(*sum, $f);
                }
            }
            for rest in block[whole..].chunks(lanes) {
                let mut last = [$neutral; 16];
                last[..rest.len()].copy_from_slice(rest);
                // SAFETY: there are at most 16 lanes.
                let $x = unsafe { $s.load(last.as_ptr()) };
                sums[0] = $s.add(sums[0], $f);
            }
            let sum = $s.add($s.add(sums[0], sums[1]), $s.add(sums[2], sums[3]));
            total += f64::from($s.sum(sum));
        }
        total
    }};
}
pub(super) use sum;

/// The sum of a slice.
pub(super) struct Sum<'a>(pub(super) &'a [f32]);

impl Job for Sum<'_> {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        sum!(s, self.0, 0.0, |x| x)
    }
}

/// `x = factor x`, on the caller's thread: for the narrow product of a low-rank update.
pub(crate) fn multiply(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// `y = f(x)`.
macro_rules! map {
    ($s:ident, $xs:expr, $ys:expr, |$x:ident| $f:expr) => {{
        let (xs, ys): (&[f32], &mut [f32]) = ($xs, $ys);
        assert_eq!(xs.len(), ys.len());
        let n = xs.len();
        let mut i = 0;
        while i < n {
            let left = n - i;
            // SAFETY: i..i + LANES, or the rest, lies in both slices.
            unsafe {
                let (x, y) = (xs.as_ptr().add(i), ys.as_mut_ptr().add(i));
                let whole = left >= S::LANES;
                let $x = if whole {
                    $s.load(x)
                } else {
                    $s.load_part(x, left)
                };
                let v = $f;
                if whole {
                    $s.store(y, v)
                } else {
                    $s.store_part(y, v, left)
                }
            }
            i += S::LANES;
        }
    }};
}
pub(super) use map;

/// `y = f(a, b)`; `a` and `b` are zero past the end.
macro_rules! zip {
    ($s:ident, $as:expr, $bs:expr, $ys:expr, |$a:ident, $b:ident| $f:expr) => {{
        let (a_s, b_s, ys): (&[f32], &[f32], &mut [f32]) = ($as, $bs, $ys);
        assert!(a_s.len() == ys.len() && b_s.len() == ys.len());
        let n = ys.len();
        let mut i = 0;
        while i < n {
            let left = n - i;
            // SAFETY: i..i + LANES, or the rest, lies in all three slices.
            unsafe {
                let (a, b, y) = (
                    a_s.as_ptr().add(i),
                    b_s.as_ptr().add(i),
                    ys.as_mut_ptr().add(i),
                );
                let whole = left >= S::LANES;
                let $a = if whole {
                    $s.load(a)
                } else {
                    $s.load_part(a, left)
                };
                let $b = if whole {
                    $s.load(b)
                } else {
                    $s.load_part(b, left)
                };
                let v = $f;
                if whole {
                    $s.store(y, v)
                } else {
                    $s.store_part(y, v, left)
                }
            }
            i += S::LANES;
        }
    }};
}
pub(super) use zip;

/// `y = f(x, y)`.
macro_rules! update {
    ($s:ident, $xs:expr, $ys:expr, |$x:ident, $y:ident| $f:expr) => {{
        let (xs, ys): (&[f32], &mut [f32]) = ($xs, $ys);
        assert_eq!(xs.len(), ys.len());
        let n = xs.len();
        let mut i = 0;
        while i < n {
            let left = n - i;
            // SAFETY: i..i + LANES, or the rest, lies in both slices.
            unsafe {
                let (x, y) = (xs.as_ptr().add(i), ys.as_mut_ptr().add(i));
                let whole = left >= S::LANES;
                let $x = if whole {
                    $s.load(x)
                } else {
                    $s.load_part(x, left)
                };
                let $y = if whole {
                    $s.load(y)
                } else {
                    $s.load_part(y, left)
                };
                let v = $f;
                if whole {
                    $s.store(y, v)
                } else {
                    $s.store_part(y, v, left)
                }
            }
            i += S::LANES;
        }
    }};
}
pub(super) use update;
