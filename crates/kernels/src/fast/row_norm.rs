//! Normalization of rows: LayerNorm and RMSNorm, with a weight and a shift that may differ between groups of rows.
//!
//! ```text
//! LayerNorm  xhat = (x - mean) rstd       RMSNorm  xhat = x rstd, rstd of the mean square
//! y = xhat w + b
//! dx = rstd (w dy - xhat mean(w dy xhat) - mean(w dy))      the last term in LayerNorm only
//! ```
//!
//! Groups serve the adaptive norms of transformers, whose weight and shift belong to a sample.

#![expect(unsafe_code, reason = "vector loads and stores inside checked rows")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    loops::{map, sum, update, zip},
    norm::Moments,
    shared::unwritten,
    simd::{Job, Simd, dispatch},
};

/// Rows of one task; the sums over rows of the weight's gradient are made in this order.
const ROWS: usize = 64;

/// What is taken off before the division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Centre {
    /// The mean (LayerNorm).
    Mean,
    /// Nothing (RMSNorm).
    None,
}

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowShape {
    /// Rows with one weight and shift.
    pub(crate) group: usize,
    /// Values of a row.
    pub(crate) d: usize,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// What is taken off.
    pub(crate) centre: Centre,
}

/// `y` and each row's mean and reciprocal deviation, for `x` `[groups, group, d]`, `weight` and `bias` `[groups, d]`.
pub(crate) fn forward(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
) -> (Vec<f32>, Vec<Moments>) {
    let d = shape.d;
    assert!(x.len().is_multiple_of(d));
    // SAFETY: the rows' results cover it.
    let mut y = unsafe { unwritten(x.len()) };
    let mut moments = vec![[0.0; 2]; x.len() / d];
    y.par_chunks_mut(ROWS * d)
        .zip(x.par_chunks(ROWS * d))
        .zip(moments.par_chunks_mut(ROWS))
        .enumerate()
        .for_each(|(i, ((y, x), moments))| {
            let first = i * ROWS;
            let job = Forward {
                shape,
                first,
                x,
                weight,
                bias,
                y,
                moments,
            };
            dispatch(isa, job);
        });
    (y, moments)
}

struct Forward<'a> {
    shape: &'a RowShape,
    first: usize,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
    moments: &'a mut [Moments],
}

impl Job for Forward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RowShape {
            group,
            d,
            eps,
            centre,
        } = *self.shape;
        let rows = self.x.chunks_exact(d).zip(self.y.chunks_exact_mut(d));
        for (i, ((x, y), moments)) in rows.zip(self.moments).enumerate() {
            let at = (self.first + i) / group * d;
            let n = d as f64;
            let mean = match centre {
                Centre::Mean => (sum!(s, x, 0.0, |x| x) / n) as f32,
                Centre::None => 0.0,
            };
            let middle = s.splat(mean);
            let squares = sum!(s, x, mean, |x| {
                let x = s.sub(x, middle);
                s.mul(x, x)
            });
            let rstd = (1.0 / (squares / n + eps).sqrt()) as f32;
            *moments = [mean, rstd];
            let scale = s.splat(rstd);
            map!(s, x, y, |x| s.mul(s.sub(x, middle), scale));
            update!(s, &self.weight[at..at + d], y, |w, y| s.mul(w, y));
            update!(s, &self.bias[at..at + d], y, |b, y| s.add(b, y));
        }
    }
}

/// The gradients of `x`, of the weight and of the bias.
pub(crate) fn backward(
    isa: Isa,
    shape: &RowShape,
    x: &[f32],
    weight: &[f32],
    moments: &[Moments],
    dy: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let RowShape { group, d, .. } = *shape;
    assert_eq!(x.len(), dy.len());
    assert!(x.len().is_multiple_of(group * d));
    // SAFETY: the rows' results cover it.
    let mut dx = unsafe { unwritten(x.len()) };
    let groups = weight.len() / d;
    // Tasks never cross groups; each has its share of the weight's and the bias's gradient.
    let per_group = group.div_ceil(ROWS);
    let mut shares = vec![0.0f32; groups * per_group * 2 * d];
    let mut tasks = Vec::with_capacity(groups * per_group);
    let mut rest = &mut dx[..];
    for (task, share) in shares.chunks_exact_mut(2 * d).enumerate() {
        let first = task / per_group * group + task % per_group * ROWS;
        let rows = ROWS.min(group - task % per_group * ROWS);
        let (part, tail) = rest.split_at_mut(rows * d);
        tasks.push((first, part, share));
        rest = tail;
    }
    tasks.into_par_iter().for_each(|(first, dx, share)| {
        let values = first * d..first * d + dx.len();
        let at = first / group * d;
        let job = Backward {
            shape,
            x: &x[values.clone()],
            weight: &weight[at..at + d],
            moments: &moments[first..],
            dy: &dy[values],
            dx,
            share,
        };
        dispatch(isa, job);
    });
    let total = |which: usize| -> Vec<f32> {
        (0..groups * d)
            .map(|i| {
                let (g, c) = (i / d, i % d);
                (0..per_group)
                    .map(|t| f64::from(shares[((g * per_group + t) * 2 + which) * d + c]))
                    .sum::<f64>() as f32
            })
            .collect()
    };
    let (dw, db) = (total(0), total(1));
    (dx, dw, db)
}

struct Backward<'a> {
    shape: &'a RowShape,
    x: &'a [f32],
    weight: &'a [f32],
    moments: &'a [Moments],
    dy: &'a [f32],
    dx: &'a mut [f32],
    share: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.shape.d;
        let (dw, db) = self.share.split_at_mut(d);
        let rows = self.x.chunks_exact(d).zip(self.dy.chunks_exact(d));
        let rows = rows.zip(self.dx.chunks_exact_mut(d)).zip(self.moments);
        for (((x, dy), dx), &[mean, rstd]) in rows {
            let (middle, scale) = (s.splat(mean), s.splat(rstd));
            // dx first holds xhat dy, whose product with the weight is summed.
            zip!(s, x, dy, dx, |x, dy| s
                .mul(s.mul(s.sub(x, middle), scale), dy));
            update!(s, dx, dw, |g, sum| s.add(sum, g));
            update!(s, dy, db, |g, sum| s.add(sum, g));
            let (mut along, mut level) = (s.splat(0.0), s.splat(0.0));
            update!(s, self.weight, dx, |w, g| {
                along = s.fma(w, g, along);
                g
            });
            zip!(s, self.weight, dy, dx, |w, dy| {
                let g = s.mul(w, dy);
                level = s.add(level, g);
                g
            });
            let n = d as f32;
            let along = s.splat(-s.sum(along) / n * rstd);
            let level = match self.shape.centre {
                Centre::Mean => s.splat(-s.sum(level) / n),
                Centre::None => s.splat(0.0),
            };
            update!(s, x, dx, |x, g| {
                let g = s.add(g, s.fma(s.sub(x, middle), along, level));
                s.mul(g, scale)
            });
        }
    }
}
