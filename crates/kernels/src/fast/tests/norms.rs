//! Norms and their gradients against f64, on every instruction set.

use super::{assert_close, noise, sigmoid};
use crate::{
    Activation,
    fast::{
        isa::Isa,
        norm::{self, NormShape},
        row_norm::{self, Centre, RowShape},
    },
};

#[test]
fn row_norms_and_their_gradients_match_f64() {
    for (groups, group, d) in [(1, 5, 320), (3, 70, 64), (2, 1, 7), (1, 1, 1), (2, 130, 33)] {
        for centre in [Centre::Mean, Centre::None] {
            let eps = 1e-5;
            let shape = RowShape {
                group,
                d,
                eps,
                centre,
            };
            let x: Vec<f32> = noise(groups * group * d, 1)
                .iter()
                .map(|x| 2.0 * x + 0.7)
                .collect();
            let (weight, bias) = (noise(groups * d, 2), noise(groups * d, 3));
            let dy = noise(x.len(), 4);
            let mut y = vec![0.0; x.len()];
            let mut dx = vec![0.0; x.len()];
            let (mut dw, mut db) = (vec![0.0; groups * d], vec![0.0; groups * d]);
            for row in 0..groups * group {
                let of = |v: &[f32], i: usize| f64::from(v[row * d + i]);
                let w = |v: &[f32], i: usize| f64::from(v[row / group * d + i]);
                let n = d as f64;
                let mean = match centre {
                    Centre::Mean => (0..d).map(|i| of(&x, i)).sum::<f64>() / n,
                    Centre::None => 0.0,
                };
                let variance = (0..d).map(|i| (of(&x, i) - mean).powi(2)).sum::<f64>() / n;
                let rstd = 1.0 / (variance + eps).sqrt();
                let xhat = |i: usize| (of(&x, i) - mean) * rstd;
                let along = (0..d)
                    .map(|i| w(&weight, i) * of(&dy, i) * xhat(i))
                    .sum::<f64>()
                    / n;
                let level = match centre {
                    Centre::Mean => (0..d).map(|i| w(&weight, i) * of(&dy, i)).sum::<f64>() / n,
                    Centre::None => 0.0,
                };
                for i in 0..d {
                    y[row * d + i] = xhat(i) * w(&weight, i) + w(&bias, i);
                    dx[row * d + i] = rstd * (w(&weight, i) * of(&dy, i) - xhat(i) * along - level);
                    dw[row / group * d + i] += xhat(i) * of(&dy, i);
                    db[row / group * d + i] += of(&dy, i);
                }
            }
            for isa in Isa::available() {
                let what = |which: &str| format!("{which} of {groups} {shape:?} on {isa:?}");
                let (got, moments) = row_norm::forward(isa, &shape, &x, &weight, &bias);
                assert_close(&what("output"), &got, &y, 2e-6);
                let (gx, gw, gb) = row_norm::backward(isa, &shape, &x, &weight, &moments, &dy);
                // A single value's gradient is a difference that vanishes.
                if d > 1 {
                    assert_close(&what("input gradient"), &gx, &dx, 2e-6);
                }
                assert_close(&what("weight gradient"), &gw, &dw, 2e-6);
                assert_close(&what("bias gradient"), &gb, &db, 2e-6);
            }
        }
    }
}

#[test]
fn group_norm_and_its_gradients_match_f64() {
    let shapes = [
        [2, 64, 8, 1024],
        [3, 192, 8, 64],
        [1, 32, 4, 16384],
        [2, 12, 3, 1],
        [2, 10, 5, 77],
        [1, 3, 1, 35],
    ];
    for [batch, channels, groups, plane] in shapes {
        for activation in [Activation::None, Activation::Silu] {
            let shape = NormShape {
                batch,
                channels,
                groups,
                plane,
                eps: 1e-5,
                activation,
            };
            // A mean far from zero must not cost precision.
            let x: Vec<f32> = noise(batch * channels * plane, 1)
                .iter()
                .map(|x| 2.0 * x + 3.0)
                .collect();
            let (weight, bias) = (noise(channels, 2), noise(channels, 3));
            let dy = noise(x.len(), 4);
            let len = channels / groups * plane;
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            let (mut dw, mut db) = (vec![0.0; channels], vec![0.0; channels]);
            for g in 0..batch * groups {
                let range = g * len..(g + 1) * len;
                let wide: Vec<f64> = x[range.clone()].iter().map(|&x| f64::from(x)).collect();
                let mean = wide.iter().sum::<f64>() / len as f64;
                let var = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
                let rstd = 1.0 / (var + 1e-5).sqrt();
                let (mut m1, mut m2) = (0.0, 0.0);
                let mut dz = vec![0.0; len];
                for (k, i) in range.clone().enumerate() {
                    let c = i / plane % channels;
                    let xhat = (wide[k] - mean) * rstd;
                    let z = xhat * f64::from(weight[c]) + f64::from(bias[c]);
                    let s = sigmoid(z);
                    let (value, slope) = match activation {
                        Activation::None => (z, 1.0),
                        Activation::Silu => (z * s, s * (1.0 + z * (1.0 - s))),
                    };
                    y[i] = value;
                    dz[k] = f64::from(dy[i]) * slope;
                    dw[c] += dz[k] * xhat;
                    db[c] += dz[k];
                    m1 += dz[k] * f64::from(weight[c]) / len as f64;
                    m2 += dz[k] * f64::from(weight[c]) * xhat / len as f64;
                }
                for (k, i) in range.enumerate() {
                    let c = i / plane % channels;
                    let xhat = (wide[k] - mean) * rstd;
                    dx[i] = rstd * (dz[k] * f64::from(weight[c]) - m1 - xhat * m2);
                }
            }
            for isa in Isa::available() {
                let what = |which: &str| format!("{which} of {shape:?} on {isa:?}");
                let (got, moments) = norm::forward(isa, &shape, &x, &weight, &bias);
                assert_close(&what("output"), &got, &y, 1e-6);
                let got = norm::backward(isa, &shape, &x, &weight, &bias, &moments, &dy);
                assert_close(&what("input gradient"), &got.0, &dx, 2e-6);
                assert_close(&what("weight gradient"), &got.1, &dw, 2e-6);
                assert_close(&what("bias gradient"), &got.2, &db, 2e-6);
            }
        }
    }
}
