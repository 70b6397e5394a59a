//! Every fast path against f64 references, on every instruction set this machine has.

mod convolutions;
mod matrices;

use self::convolutions::{CASES, shape};
use super::{
    conv::{self, ConvShape},
    elementwise,
    isa::Isa,
    norm::{self, NormShape},
    pairs::Products,
    stored::Stored,
};
use crate::Activation;

/// Values in -1..1, the same for the same seed.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `|got - want| / |want|` over all values, in the Euclidean norm.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    let off = got
        .iter()
        .zip(want)
        .map(|(&g, w)| (f64::from(g) - w).powi(2))
        .sum::<f64>()
        .sqrt();
    if norm == 0.0 { off } else { off / norm }
}

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = error(got, want);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e} > {tolerance:e}"
    );
}

#[test]
fn linear_maps_and_their_gradients_match_f64() {
    use super::linear::{self, LinearShape};
    let shapes = [
        (1, 1, 1),
        (1, 320, 1280),
        (2, 5, 7),
        (77, 128, 96),
        (64, 160, 320),
        (50, 1030, 49),
        (131, 2050, 33),
        (1024, 64, 256),
        (3, 17, 1),
    ];
    for (n, d_in, d_out) in shapes {
        let shape = LinearShape {
            n,
            d_in,
            d_out,
            products: Products::F32,
        };
        let (x, weight) = (noise(n * d_in, 1), noise(d_out * d_in, 2));
        let (bias, dy) = (noise(d_out, 3), noise(n * d_out, 4));
        let mut y = vec![0.0; n * d_out];
        let (mut dx, mut dw) = (vec![0.0; n * d_in], vec![0.0; d_out * d_in]);
        let mut db = vec![0.0; d_out];
        for i in 0..n {
            for o in 0..d_out {
                let g = f64::from(dy[i * d_out + o]);
                y[i * d_out + o] = f64::from(bias[o]);
                db[o] += g;
                for k in 0..d_in {
                    let (xv, wv) = (f64::from(x[i * d_in + k]), f64::from(weight[o * d_in + k]));
                    y[i * d_out + o] += xv * wv;
                    dx[i * d_in + k] += g * wv;
                    dw[o * d_in + k] += g * xv;
                }
            }
        }
        for isa in Isa::available() {
            let what = |which: &str| format!("{which} of {shape:?} on {isa:?}");
            let stored = Stored::F32(&weight);
            let got = linear::forward(isa, &shape, &x, stored, Some(&bias));
            assert_close(&what("output"), &got, &y, 2e-6);
            let got = linear::input_grad(isa, &shape, &dy, stored);
            assert_close(&what("input gradient"), &got, &dx, 2e-6);
            let got = linear::weight_grad(isa, &shape, &x, &dy);
            assert_close(&what("weight gradient"), &got, &dw, 2e-6);
            let got = linear::bias_grad(&shape, &dy);
            assert_close(&what("bias gradient"), &got, &db, 2e-6);
            // 16-bit weights are exactly their widened values.
            let half: Vec<_> = weight
                .iter()
                .map(|&w| burn::tensor::bf16::from_f32(w))
                .collect();
            let wide: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            assert_eq!(
                linear::forward(isa, &shape, &x, Stored::Bf16(&half), None),
                linear::forward(isa, &shape, &x, Stored::F32(&wide), None)
            );
            assert_eq!(
                linear::input_grad(isa, &shape, &dy, Stored::Bf16(&half)),
                linear::input_grad(isa, &shape, &dy, Stored::F32(&wide))
            );
        }
    }
}

#[test]
fn attention_and_its_gradients_match_f64() {
    use super::attention::{self, AttentionShape, Saved};
    let shapes = [
        (2, 64, 64, 32, false),
        (3, 130, 77, 40, false),
        (1, 300, 300, 64, false),
        (2, 77, 77, 64, true),
        (1, 49, 65, 80, false),
        (1, 60, 64, 512, false),
        (1, 1, 1, 1, false),
        (2, 5, 9, 3, false),
        (1, 150, 150, 32, true),
    ];
    for (heads, n, m, d, causal) in shapes {
        let scale = 1.7 / (d as f32).sqrt();
        let shape = AttentionShape {
            heads,
            n,
            m,
            d,
            scale,
            causal,
        };
        // Logits of a few units, so that the softmax is neither flat nor a single key.
        let loud = |seed| {
            noise(heads * n.max(m) * d, seed)
                .into_iter()
                .map(|x| 3.0 * x)
        };
        let q: Vec<f32> = loud(1).take(heads * n * d).collect();
        let k: Vec<f32> = loud(2).take(heads * m * d).collect();
        let (v, dy) = (noise(heads * m * d, 3), noise(heads * n * d, 4));
        let mut o = vec![0.0f64; q.len()];
        let mut wanted = [
            vec![0.0f64; q.len()],
            vec![0.0; k.len()],
            vec![0.0; v.len()],
        ];
        for h in 0..heads {
            for i in 0..n {
                let at = |x: &[f32], row: usize, c: usize, rows: usize| {
                    f64::from(x[(h * rows + row) * d + c])
                };
                let seen = if causal { m.min(i + 1) } else { m };
                let logits: Vec<f64> = (0..seen)
                    .map(|j| {
                        (0..d)
                            .map(|c| at(&q, i, c, n) * at(&k, j, c, m))
                            .sum::<f64>()
                            * f64::from(scale)
                    })
                    .collect();
                let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
                let p: Vec<f64> = logits.iter().map(|l| (l - most).exp() / sum).collect();
                let dp: Vec<f64> = (0..seen)
                    .map(|j| (0..d).map(|c| at(&dy, i, c, n) * at(&v, j, c, m)).sum())
                    .collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for j in 0..seen {
                    let ds = p[j] * (dp[j] - delta) * f64::from(scale);
                    for c in 0..d {
                        o[(h * n + i) * d + c] += p[j] * at(&v, j, c, m);
                        wanted[0][(h * n + i) * d + c] += ds * at(&k, j, c, m);
                        wanted[1][(h * m + j) * d + c] += ds * at(&q, i, c, n);
                        wanted[2][(h * m + j) * d + c] += p[j] * at(&dy, i, c, n);
                    }
                }
            }
        }
        for isa in Isa::available() {
            let what = |which: &str| format!("{which} of {shape:?} on {isa:?}");
            let (got, lse) = attention::forward(isa, &shape, &q, &k, &v);
            assert_close(&what("output"), &got, &o, 2e-6);
            let saved = Saved {
                q: &q,
                k: &k,
                v: &v,
                o: &got,
                lse: &lse,
            };
            let got = attention::backward(isa, &shape, &saved, &dy);
            for (which, (got, wanted)) in ["q", "k", "v"].iter().zip(got.iter().zip(&wanted)) {
                assert_close(&what(&format!("gradient of {which}")), got, wanted, 4e-6);
            }
        }
    }
}

#[test]
fn row_norms_and_their_gradients_match_f64() {
    use super::row_norm::{self, Centre, RowShape};
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
                    assert_close(&what("input gradient"), &gx, &dx, 4e-6);
                }
                assert_close(&what("weight gradient"), &gw, &dw, 2e-6);
                assert_close(&what("bias gradient"), &gb, &db, 2e-6);
            }
        }
    }
}

#[test]
fn activations_and_their_slopes_match_f64() {
    use super::elementwise::Function;
    let x: Vec<f32> = (-4000..=4000)
        .map(|i| i as f32 * 0.003)
        .chain([f32::NAN])
        .collect();
    let ones = vec![1.0; x.len()];
    let phi = |x: f64| 0.5 * (1.0 + erf(x / 2f64.sqrt()));
    let tanh =
        |x: f64| x * sigmoid((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)));
    type F<'a> = dyn Fn(f64) -> f64 + 'a;
    let functions: [(Function, &F<'_>); 4] = [
        (Function::Silu, &|x| x * sigmoid(x)),
        (Function::Gelu, &|x| x * phi(x)),
        (Function::GeluTanh, &tanh),
        (Function::QuickGelu, &|x| x * sigmoid(1.702 * x)),
    ];
    for (function, f) in functions {
        for isa in Isa::available() {
            let got = elementwise::apply(isa, function, &x);
            let slope = elementwise::backward(isa, function, &x, &ones);
            for (i, &x) in x.iter().enumerate() {
                if x.is_nan() {
                    assert!(got[i].is_nan() && slope[i].is_nan());
                    continue;
                }
                let (x, h) = (f64::from(x), 1e-4);
                let off = (f64::from(got[i]) - f(x)).abs();
                assert!(
                    off < 1e-6 * (1.0 + x.abs()),
                    "{function:?}({x}) on {isa:?}: {}",
                    got[i]
                );
                let wanted = (f(x + h) - f(x - h)) / (2.0 * h);
                let off = (f64::from(slope[i]) - wanted).abs();
                assert!(
                    off < 2e-6,
                    "{function:?}'({x}) on {isa:?}: {} for {wanted}",
                    slope[i]
                );
            }
            let rows = &x[..8000];
            let y = elementwise::geglu(isa, 40, rows);
            let dx = elementwise::geglu_backward(isa, 40, rows, &ones[..4000]);
            for (i, y) in y.iter().enumerate() {
                let at = i / 40 * 80 + i % 40;
                let (h, gate) = (f64::from(rows[at]), f64::from(rows[at + 40]));
                let gelu = |x: f64| x * phi(x);
                assert!((f64::from(*y) - h * gelu(gate)).abs() < 2e-5);
                assert!((f64::from(dx[at]) - gelu(gate)).abs() < 2e-5);
                let slope = (gelu(gate + 1e-4) - gelu(gate - 1e-4)) / 2e-4;
                assert!((f64::from(dx[at + 40]) - h * slope).abs() < 2e-5);
            }
        }
    }
}

/// The error function by its series and continued fraction.
fn erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 3.0 {
        let (mut term, mut sum) = (t, t);
        for n in 1..100 {
            term *= -t * t / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(t, |f, n| t + f64::from(n) / 2.0 / f);
        1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()
    };
    value.copysign(x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
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

#[test]
fn silu_matches_f64_over_its_whole_range() {
    let mut x: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.0503).collect();
    x.extend([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38]);
    let dy = noise(x.len(), 1);
    for isa in Isa::available() {
        for (i, (&y, &x)) in elementwise::apply(isa, elementwise::Function::Silu, &x)
            .iter()
            .zip(&x)
            .enumerate()
        {
            let want = f64::from(x) * sigmoid(f64::from(x));
            // Below -87 the exponential is held: 1.4e-36 instead of less.
            let tolerance = 4e-7 * want.abs() + 2e-36;
            assert!(
                (f64::from(y) - want).abs() <= tolerance,
                "{isa:?} {i}: silu({x}) = {y}, not {want}"
            );
        }
        for ((&g, &x), &dy) in elementwise::backward(isa, elementwise::Function::Silu, &x, &dy)
            .iter()
            .zip(&x)
            .zip(&dy)
        {
            let s = sigmoid(f64::from(x));
            let want = f64::from(dy) * s * (1.0 + f64::from(x) * (1.0 - s));
            assert!(
                (f64::from(g) - want).abs() <= 6e-7,
                "{isa:?}: silu'({x}) * {dy} = {g}, not {want}"
            );
        }
    }
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let cases = [
        CASES[0], CASES[2], CASES[5], CASES[9], CASES[11], CASES[16], CASES[18], CASES[27],
    ];
    for case in &cases {
        let shape = shape(case);
        let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
        let x = noise(shape.batch * c_in * h * w, 1);
        let weight = noise(c_out * c_in * shape.kernel[0] * shape.kernel[1], 2);
        let dy = noise(shape.batch * c_out * oh * ow, 4);
        let groups = NormShape {
            batch: shape.batch,
            channels: c_in,
            groups: 1,
            plane: h * w,
            eps: 1e-6,
            activation: Activation::Silu,
        };
        let (gain, bias) = (noise(c_in, 5), noise(c_out.max(c_in), 6));
        for isa in Isa::available() {
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("a pool");
                pool.install(|| {
                    let w = Stored::F32(&weight);
                    let rough = ConvShape {
                        products: Products::Bf16,
                        ..shape
                    };
                    let (y, moments) = norm::forward(isa, &groups, &x, &gain, &bias[..c_in]);
                    let (dx, dw, db) =
                        norm::backward(isa, &groups, &x, &gain, &bias[..c_in], &moments, &y);
                    [
                        conv::forward(isa, &shape, &x, w, Some(&bias[..c_out])),
                        conv::input_grad(isa, &shape, &dy, w),
                        conv::weight_grad(isa, &shape, &x, &dy),
                        conv::bias_grad(isa, &shape, &dy),
                        conv::forward(isa, &rough, &x, w, Some(&bias[..c_out])),
                        conv::input_grad(isa, &rough, &dy, w),
                        conv::weight_grad(isa, &rough, &x, &dy),
                        elementwise::apply(isa, elementwise::Function::Silu, &x),
                        y,
                        dx,
                        dw,
                        db,
                    ]
                    .map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                })
            };
            let one = run(1);
            for threads in [2, 5] {
                assert_eq!(
                    one,
                    run(threads),
                    "{case:?} on {isa:?} with {threads} threads"
                );
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_every_output_it_touches_and_no_other() {
    let weight = noise(5 * 3 * 9, 2);
    for (products, bad) in [
        (Products::F32, f32::NAN),
        (Products::F32, f32::INFINITY),
        (Products::Bf16, f32::NAN),
        (Products::Bf16, f32::INFINITY),
    ] {
        let shape = ConvShape {
            products,
            ..shape(&([2, 3, 7, 18], 5, [3, 3], 1, [1; 4]))
        };
        let mut x = noise(2 * 3 * 7 * 18, 1);
        x[3 * 7 * 18 + 18 * 3 + 9] = bad;
        for isa in Isa::available() {
            let y = conv::forward(isa, &shape, &x, Stored::F32(&weight), None);
            for (i, y) in y.iter().enumerate() {
                let (image, row, col) = (i / (5 * 126), i / 18 % 7, i % 18);
                let near = image == 1 && row.abs_diff(3) <= 1 && col.abs_diff(9) <= 1;
                assert_eq!(!y.is_finite(), near, "{isa:?} at {image}, {row}, {col}");
                assert!(!near || bad.is_infinite() || y.is_nan());
            }
            let dw = conv::weight_grad(isa, &shape, &x, &noise(2 * 5 * 7 * 18, 3));
            assert!(!dw[4].is_finite() && (bad.is_infinite() || dw[4].is_nan()));
        }
    }
    let mut x = noise(3 * 7 * 18, 1);
    x[18 * 3 + 9] = f32::NAN;
    for isa in Isa::available() {
        let silu = elementwise::apply(isa, elementwise::Function::Silu, &x);
        assert!(
            silu.iter().zip(&x).all(|(y, x)| y.is_nan() == x.is_nan()),
            "{isa:?}"
        );
        let norm = NormShape {
            batch: 1,
            channels: 3,
            groups: 3,
            plane: 126,
            eps: 1e-6,
            activation: Activation::Silu,
        };
        let (y, _) = norm::forward(isa, &norm, &x, &[1.0; 3], &[0.0; 3]);
        assert!(y[..126].iter().all(|y| y.is_nan()) && y[126..].iter().all(|y| y.is_finite()));
    }
}
