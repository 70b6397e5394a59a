//! Values as they are stored: single precision or one of the 16-bit formats, widened where they are used.

#![expect(unsafe_code, reason = "vector loads inside checked slices")]

use burn::tensor::{bf16, f16};

use super::simd::Simd;

/// A slice of values in their stored type.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Half precision.
    F16(&'a [f16]),
}

impl<'a> Stored<'a> {
    /// Number of values.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
        }
    }

    /// Where it begins.
    #[inline(always)]
    pub(super) fn start(self) -> *const f32 {
        match self {
            Self::F32(values) => values.as_ptr(),
            Self::Bf16(values) => values.as_ptr().cast(),
            Self::F16(values) => values.as_ptr().cast(),
        }
    }

    /// Bytes of a value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::Bf16(_) | Self::F16(_) => 2,
        }
    }

    /// `count` values from `start`.
    pub(super) fn part(self, start: usize, count: usize) -> Self {
        match self {
            Self::F32(v) => Self::F32(&v[start..start + count]),
            Self::Bf16(v) => Self::Bf16(&v[start..start + count]),
            Self::F16(v) => Self::F16(&v[start..start + count]),
        }
    }

    /// Writes the values, widened, to `to` of the same length.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(self, s: S, to: &mut [f32]) {
        assert_eq!(self.len(), to.len());
        macro_rules! widen {
            ($from:expr, $load:ident) => {{
                let from = $from;
                let whole = from.len() / S::LANES * S::LANES;
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: i..i + LANES lies in both slices; the 16-bit types are their bits.
                    unsafe {
                        s.store(to.as_mut_ptr().add(i), s.$load(from.as_ptr().add(i).cast()))
                    };
                }
                for (to, from) in to[whole..].iter_mut().zip(&from[whole..]) {
                    *to = from.to_f32();
                }
            }};
        }
        match self {
            Self::F32(from) => to.copy_from_slice(from),
            Self::Bf16(from) => widen!(from, load_bf16),
            Self::F16(from) => widen!(from, load_f16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fast::{
        isa::Isa,
        simd::{Job, dispatch},
    };

    struct Widen<'a>(Stored<'a>, &'a mut [f32]);

    impl Job for Widen<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            self.0.widen(s, self.1);
        }
    }

    #[test]
    fn every_16_bit_value_widens_exactly() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let bf: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
        let half: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
        for isa in Isa::available() {
            for (stored, want) in [
                (
                    Stored::Bf16(&bf),
                    bf.iter().map(|v| v.to_f32()).collect::<Vec<_>>(),
                ),
                (
                    Stored::F16(&half),
                    half.iter().map(|v| v.to_f32()).collect(),
                ),
            ] {
                // A part that does not begin or end with a vector.
                let mut got = vec![0.0; bits.len() - 8];
                dispatch(isa, Widen(stored.part(3, got.len()), &mut got));
                for (got, want) in got.iter().zip(&want[3..]) {
                    let same = got.to_bits() == want.to_bits();
                    assert!(
                        same || got.is_nan() && want.is_nan(),
                        "{isa:?}: {got} for {want}"
                    );
                }
            }
        }
    }
}
