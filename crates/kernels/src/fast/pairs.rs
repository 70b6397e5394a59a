//! Products of values rounded to bfloat16, two by two, summed in f32.
//!
//! Where the machine has instructions for them (AVX512-BF16, AMX) convolutions become faster (docs/benchmarks.md);
//! elsewhere the same products are made from their halves. Two values become one 32-bit element: the kernels move such
//! elements as they move f32 and only multiply them differently ([`Product`]).

use super::{amx::DEPTH, isa::Isa, simd::Simd};

/// How the products of a convolution, a linear map or attention are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Of f32 values.
    #[default]
    F32,
    /// Of values rounded to bfloat16 (8 significant bits); sums stay f32.
    Bf16,
    /// Of values rounded to half precision (11 significant bits, up to 65504); sums stay f32. No faster here than f32: for
    /// trying what GPUs do.
    F16,
}

/// The kernel that makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Vectors of f32.
    Single,
    /// Vectors of bfloat16 pairs.
    Pair,
    /// Matrix tiles of bfloat16 pairs.
    Tiles,
}

impl Products {
    /// How products of operands that are rounded already are made.
    pub(crate) fn of_rounded(self) -> Self {
        if self == Self::F16 { Self::F32 } else { self }
    }

    /// The kernel for a set.
    pub(super) fn kernel(self, isa: Isa) -> Kernel {
        match self {
            Self::F32 | Self::F16 => Kernel::Single,
            Self::Bf16 if isa == Isa::Amx => Kernel::Tiles,
            Self::Bf16 => Kernel::Pair,
        }
    }
}

impl Kernel {
    /// What the number of elements of a sum is a multiple of.
    pub(super) fn depth(self) -> usize {
        if self == Self::Tiles { DEPTH } else { 1 }
    }

    /// Values in an element.
    pub(super) fn values(self) -> usize {
        if self == Self::Single { 1 } else { 2 }
    }
}

/// What the elements of two operands multiply to.
pub(super) trait Product: Copy + Send + Sync {
    /// `a b + c`.
    fn accumulate<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

/// One f32 an element.
#[derive(Clone, Copy)]
pub(super) struct Single;

impl Product for Single {
    #[inline(always)]
    fn accumulate<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.fma(a, b, c)
    }
}

/// Two bfloat16 an element.
#[derive(Clone, Copy)]
pub(super) struct Pair;

impl Product for Pair {
    #[inline(always)]
    fn accumulate<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
        s.dot2(a, b, c)
    }
}

/// The bits of `x` rounded to bfloat16, to nearest, ties to even.
#[inline(always)]
pub(super) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// The element of two values.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(u32::from(round(first)) | u32::from(round(second)) << 16)
}
