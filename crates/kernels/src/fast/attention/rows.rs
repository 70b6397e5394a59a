//! Rows of logits and of probabilities.

use std::f32::consts::LOG2_E;

use super::super::simd::Simd;

/// A query's softmax over the blocks of keys so far.
#[derive(Clone, Copy)]
pub(super) struct Softmax<V> {
    /// The largest logit.
    most: f32,
    /// Lanes of the sum of exponentials.
    total: V,
}

impl<V: Copy> Softmax<V> {
    /// Of no keys.
    #[inline(always)]
    pub(super) fn new<S: Simd<V = V>>(s: S) -> Self {
        Self {
            most: f32::NEG_INFINITY,
            total: s.splat(0.0),
        }
    }

    /// Turns a block's logits, of which at least one is visible, into exponentials that count beside those before: `sums`, the
    /// query's, shrink where a larger logit came.
    #[inline(always)]
    pub(super) fn take<S: Simd<V = V>>(
        &mut self,
        s: S,
        row: &mut [f32],
        visible: usize,
        scale: f32,
        sums: &mut [f32],
    ) {
        let shrink = self.rise(s, row, visible, scale, sums);
        let sum = exponentials(s, row, scale, self.most);
        self.total = s.fma(self.total, s.splat(shrink), sum);
        row[visible..].fill(0.0);
    }

    /// As [`Self::take`], the exponentials rounded to bfloat16 as pairs of neighbours: the first of every `stride` of `to` hold those
    /// of two vectors.
    #[inline(always)]
    pub(super) fn take_pairs<S: Simd<V = V>>(
        &mut self,
        s: S,
        row: &mut [f32],
        visible: usize,
        scale: f32,
        sums: &mut [f32],
        (to, stride): (&mut [f32], usize),
    ) {
        let shrink = self.rise(s, row, visible, scale, sums);
        let exponent = Exponent::new(s, scale, self.most);
        let mut total = [s.splat(0.0); 2];
        for (row, to) in row.chunks_exact(2 * S::LANES).zip(to.chunks_mut(stride)) {
            // SAFETY: two whole vectors, and room for one.
            unsafe {
                let a = exponent.of(s, s.load(row.as_ptr()));
                let b = exponent.of(s, s.load(row[S::LANES..].as_ptr()));
                total = [s.add(total[0], a), s.add(total[1], b)];
                s.store(to[..S::LANES].as_mut_ptr(), s.pairs_within(a, b));
            }
        }
        let sum = s.add(total[0], total[1]);
        self.total = s.fma(self.total, s.splat(shrink), sum);
    }

    /// Takes in the largest of a block's logits, those that are not visible being none; gives back what the sums so far shrink
    /// by.
    #[inline(always)]
    fn rise<S: Simd<V = V>>(
        &mut self,
        s: S,
        row: &mut [f32],
        visible: usize,
        scale: f32,
        sums: &mut [f32],
    ) -> f32 {
        row[visible..].fill(f32::NEG_INFINITY);
        let highest = self.most.max(maximum(s, row) * scale);
        if self.most == highest {
            return 1.0;
        }
        let shrink = (self.most - highest).exp();
        self.most = highest;
        scale_row(s, sums, shrink);
        shrink
    }

    /// Divides the query's sums by that of its exponentials, whose logarithm it gives back.
    #[inline(always)]
    pub(super) fn finish<S: Simd<V = V>>(self, s: S, sums: &mut [f32]) -> f32 {
        let total = s.sum(self.total);
        scale_row(s, sums, 1.0 / total);
        self.most + total.ln()
    }
}

/// The largest of whole vectors; a NaN among them shows in the exponentials.
#[inline(always)]
fn maximum<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut most = s.splat(f32::NEG_INFINITY);
    for v in row.chunks_exact(S::LANES) {
        // SAFETY: a whole vector.
        most = s.max(most, unsafe { s.load(v.as_ptr()) });
    }
    s.maximum(most)
}

/// `e^(scale x - shift)`, at least 2^-126.
#[derive(Clone, Copy)]
struct Exponent<V> {
    scale: V,
    shift: V,
}

impl<V: Copy> Exponent<V> {
    #[inline(always)]
    fn new<S: Simd<V = V>>(s: S, scale: f32, shift: f32) -> Self {
        Self {
            scale: s.splat(scale * LOG2_E),
            shift: s.splat(-shift * LOG2_E),
        }
    }

    #[inline(always)]
    fn of<S: Simd<V = V>>(self, s: S, x: V) -> V {
        s.exp2(s.fma(x, self.scale, self.shift))
    }
}

/// Turns a row of whole vectors into `e^(scale x - shift)` and gives back the sum of its vectors.
#[inline(always)]
pub(super) fn exponentials<S: Simd>(s: S, row: &mut [f32], scale: f32, shift: f32) -> S::V {
    let exponent = Exponent::new(s, scale, shift);
    let mut total = s.splat(0.0);
    for v in row.chunks_exact_mut(S::LANES) {
        // SAFETY: a whole vector.
        unsafe {
            let e = exponent.of(s, s.load(v.as_ptr()));
            total = s.add(total, e);
            s.store(v.as_mut_ptr(), e);
        }
    }
    total
}

/// `scale x + bias` for the values of a row that have a bias; the row has whole vectors.
#[inline(always)]
pub(super) fn add_bias<S: Simd>(s: S, row: &mut [f32], scale: f32, bias: &[f32]) {
    let scale = s.splat(scale);
    for (v, bias) in row.chunks_exact_mut(S::LANES).zip(bias.chunks(S::LANES)) {
        // SAFETY: a whole vector, and as many values as the bias has.
        unsafe {
            let bias = s.load_part(bias.as_ptr(), bias.len());
            s.store(v.as_mut_ptr(), s.fma(s.load(v.as_ptr()), scale, bias));
        }
    }
}

/// `ds = p (ds - delta) scale` over whole vectors.
#[inline(always)]
pub(super) fn scores<S: Simd>(s: S, p: &[f32], ds: &mut [f32], delta: f32, scale: f32) {
    let (delta, scale) = (s.splat(delta), s.splat(scale));
    for (p, ds) in p.chunks_exact(S::LANES).zip(ds.chunks_exact_mut(S::LANES)) {
        // SAFETY: whole vectors.
        unsafe {
            let x = s.sub(s.load(ds.as_ptr()), delta);
            let x = s.mul(s.mul(s.load(p.as_ptr()), scale), x);
            s.store(ds.as_mut_ptr(), x);
        }
    }
}

/// Multiplies a row of whole vectors.
#[inline(always)]
fn scale_row<S: Simd>(s: S, row: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for v in row.chunks_exact_mut(S::LANES) {
        // SAFETY: a whole vector.
        unsafe { s.store(v.as_mut_ptr(), s.mul(s.load(v.as_ptr()), factor)) };
    }
}

/// The product of two rows of any length.
#[inline(always)]
pub(super) fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        // SAFETY: both have that many values.
        let (a, b) = unsafe {
            (
                s.load_part(a.as_ptr(), a.len()),
                s.load_part(b.as_ptr(), b.len()),
            )
        };
        sum = s.fma(a, b, sum);
    }
    s.sum(sum)
}
