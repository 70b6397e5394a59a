//! Group normalization with its activation, forward and backward, one task for each image and group.
//!
//! With `z = w * (x - mean) * rstd + b` and `dz` the gradient of `z` (after the activation's derivative),
//! `dx = rstd * (w dz - mean(w dz) - xhat * mean(w dz xhat))`. Sums are f32 within 1024 values and f64 across.

#![expect(unsafe_code, reason = "vector loads and stores inside checked chunks")]

use rayon::prelude::*;

use super::{
    isa::Isa,
    loops::{map, sum, update, zip},
    shared::unwritten,
    simd::{Job, Simd, dispatch},
};
use crate::Activation;

/// What a group norm is given besides `x`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormShape {
    /// Images.
    pub(crate) batch: usize,
    /// Channels.
    pub(crate) channels: usize,
    /// Groups of channels.
    pub(crate) groups: usize,
    /// Pixels of a channel.
    pub(crate) plane: usize,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// What follows.
    pub(crate) activation: Activation,
}

impl NormShape {
    fn group_len(&self) -> usize {
        self.channels / self.groups * self.plane
    }
}

/// A group's mean and the reciprocal of its standard deviation.
pub(crate) type Moments = [f32; 2];

/// The normalized, activated `x`, and the moments of each image's groups.
pub(crate) fn forward(
    isa: Isa,
    shape: &NormShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
) -> (Vec<f32>, Vec<Moments>) {
    assert_eq!(x.len(), shape.batch * shape.channels * shape.plane);
    assert_eq!((weight.len(), bias.len()), (shape.channels, shape.channels));
    // SAFETY: the groups' results cover it.
    let mut y = unsafe { unwritten(x.len()) };
    let mut moments = vec![[0.0; 2]; shape.batch * shape.groups];
    let per_group = shape.channels / shape.groups;
    (y.par_chunks_mut(shape.group_len()))
        .zip(x.par_chunks(shape.group_len()))
        .zip(&mut moments)
        .enumerate()
        .for_each(|(i, ((y, x), moments))| {
            let first = i % shape.groups * per_group;
            let weight = &weight[first..first + per_group];
            let bias = &bias[first..first + per_group];
            *moments = dispatch(
                isa,
                Forward {
                    shape,
                    x,
                    weight,
                    bias,
                    y,
                },
            );
        });
    (y, moments)
}

struct Forward<'a> {
    shape: &'a NormShape,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Out = Moments;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Moments {
        let n = self.x.len() as f64;
        let mean = (sum!(s, self.x, 0.0, |x| x) / n) as f32;
        let centre = s.splat(mean);
        let squares = sum!(s, self.x, mean, |x| {
            let d = s.sub(x, centre);
            s.mul(d, d)
        });
        let rstd = (1.0 / (squares / n + self.shape.eps).sqrt()) as f32;
        let plane = self.shape.plane;
        let channels = self
            .x
            .chunks_exact(plane)
            .zip(self.y.chunks_exact_mut(plane));
        for ((x, y), (&w, &b)) in channels.zip(self.weight.iter().zip(self.bias)) {
            let scale = s.splat(rstd * w);
            let shift = s.splat(b);
            match self.shape.activation {
                Activation::None => {
                    map!(s, x, y, |x| s.fma(s.sub(x, centre), scale, shift));
                }
                Activation::Silu => map!(s, x, y, |x| {
                    let z = s.fma(s.sub(x, centre), scale, shift);
                    silu(s, z)
                }),
            }
        }
        [mean, rstd]
    }
}

/// The gradients of `x`, the weight and the bias.
pub(crate) fn backward(
    isa: Isa,
    shape: &NormShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    moments: &[Moments],
    dy: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    assert_eq!(dy.len(), x.len());
    // SAFETY: the groups' results cover it.
    let mut dx = unsafe { unwritten(x.len()) };
    // Each image's share of the weight's and the bias's gradient.
    let mut shares = vec![[0.0f64; 2]; shape.batch * shape.channels];
    let per_group = shape.channels / shape.groups;
    (dx.par_chunks_mut(shape.group_len()))
        .zip(x.par_chunks(shape.group_len()))
        .zip(dy.par_chunks(shape.group_len()))
        .zip(shares.par_chunks_mut(per_group))
        .enumerate()
        .for_each(|(i, (((dx, x), dy), shares))| {
            let first = i % shape.groups * per_group;
            let weight = &weight[first..first + per_group];
            let bias = &bias[first..first + per_group];
            let moments = moments[i];
            dispatch(
                isa,
                Backward {
                    shape,
                    x,
                    weight,
                    bias,
                    moments,
                    dy,
                    dx,
                    shares,
                },
            );
        });
    let total = |which: usize| {
        let channel = |c: usize| {
            (0..shape.batch)
                .map(|b| shares[b * shape.channels + c][which])
                .sum::<f64>() as f32
        };
        (0..shape.channels).map(channel).collect()
    };
    let (dw, db) = (total(0), total(1));
    (dx, dw, db)
}

struct Backward<'a> {
    shape: &'a NormShape,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    moments: Moments,
    dy: &'a [f32],
    dx: &'a mut [f32],
    shares: &'a mut [[f64; 2]],
}

impl Job for Backward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [mean, rstd] = self.moments.map(|m| s.splat(m));
        let plane = self.shape.plane;
        // First dz, kept in dx, and the sums over it.
        let (mut sum_dz, mut sum_dz_xhat) = (0.0, 0.0);
        for c in 0..self.weight.len() {
            let at = c * plane..(c + 1) * plane;
            let (w, b) = (s.splat(self.weight[c]), s.splat(self.bias[c]));
            let (x, dy) = (&self.x[at.clone()], &self.dy[at.clone()]);
            let mut share = [0.0; 2];
            let blocks = x
                .chunks(1024)
                .zip(dy.chunks(1024))
                .zip(self.dx[at].chunks_mut(1024));
            for ((x, dy), dx) in blocks {
                let mut sums = [s.splat(0.0); 2];
                zip!(s, x, dy, dx, |x, dy| {
                    let xhat = s.mul(s.sub(x, mean), rstd);
                    let dz = match self.shape.activation {
                        Activation::None => dy,
                        Activation::Silu => silu_grad(s, s.fma(xhat, w, b), dy),
                    };
                    // Lanes past the end have dy = 0, hence dz = 0.
                    sums = [s.fma(dz, xhat, sums[0]), s.add(dz, sums[1])];
                    dz
                });
                share[0] += f64::from(s.sum(sums[0]));
                share[1] += f64::from(s.sum(sums[1]));
            }
            self.shares[c] = share;
            sum_dz_xhat += f64::from(self.weight[c]) * share[0];
            sum_dz += f64::from(self.weight[c]) * share[1];
        }
        let n = self.x.len() as f64;
        let rstd_one = f64::from(self.moments[1]);
        // dx = rstd w dz - (rstd^2 m2) (x - mean) - rstd m1
        let minus_slope = s.splat((-rstd_one * rstd_one * sum_dz_xhat / n) as f32);
        let minus_shift = s.splat((-rstd_one * sum_dz / n) as f32);
        for c in 0..self.weight.len() {
            let at = c * plane..(c + 1) * plane;
            let scale = s.splat(self.moments[1] * self.weight[c]);
            update!(s, &self.x[at.clone()], &mut self.dx[at], |x, dz| {
                s.fma(dz, scale, s.fma(s.sub(x, mean), minus_slope, minus_shift))
            });
        }
    }
}

/// `z * sigmoid(z)`.
#[inline(always)]
pub(super) fn silu<S: Simd>(s: S, z: S::V) -> S::V {
    // Further down sigma stays at e^-87 and the product would grow again.
    s.mul(s.clamp(z, -87.0, f32::INFINITY), s.sigmoid(z))
}

/// `dy * d silu(z) / dz`, `silu' = sigma (1 + z (1 - sigma))`; with `1 - sigma = e^-z sigma`, which does not cancel.
#[inline(always)]
pub(super) fn silu_grad<S: Simd>(s: S, z: S::V, dy: S::V) -> S::V {
    let one = s.splat(1.0);
    let e = s.exp(s.sub(s.splat(0.0), z));
    let sigma = s.div(one, s.add(one, e));
    // The exponential is held there too, so that sigma and 1 - sigma never quite vanish.
    let z = s.clamp(z, -87.0, 88.0);
    s.mul(dy, s.mul(sigma, s.fma(z, s.mul(e, sigma), one)))
}
