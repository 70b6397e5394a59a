//! Every fast path against f64 references, on every instruction set this machine has.

use super::{
    conv::{self, ConvShape, Weight},
    elementwise,
    isa::Isa,
    norm::{self, NormShape},
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

/// `[b, c_in, h, w], c_out, [kh, kw], stride, [top, left, bottom, right]`.
type Case = ([usize; 4], usize, [usize; 2], usize, [usize; 4]);

const CASES: &[Case] = &[
    // mini's.
    ([2, 64, 32, 32], 64, [3, 3], 1, [1; 4]),
    ([2, 128, 16, 16], 128, [3, 3], 1, [1; 4]),
    ([3, 192, 8, 8], 192, [3, 3], 1, [1; 4]),
    ([1, 384, 8, 8], 192, [3, 3], 1, [1; 4]),
    ([1, 320, 16, 16], 64, [3, 3], 1, [1; 4]),
    ([2, 16, 32, 32], 64, [3, 3], 1, [1; 4]),
    ([2, 64, 32, 32], 16, [3, 3], 1, [1; 4]),
    ([1, 3, 128, 128], 32, [3, 3], 1, [1; 4]),
    ([1, 32, 128, 128], 3, [3, 3], 1, [1; 4]),
    ([2, 64, 32, 32], 64, [3, 3], 2, [1; 4]),
    ([1, 32, 64, 64], 32, [3, 3], 2, [0, 0, 1, 1]),
    ([2, 128, 32, 32], 64, [1, 1], 1, [0; 4]),
    ([2, 200, 8, 8], 70, [1, 1], 1, [0; 4]),
    // Awkward ones.
    ([1, 1, 1, 1], 1, [1, 1], 1, [0; 4]),
    ([2, 5, 1, 1], 7, [3, 3], 1, [1; 4]),
    ([1, 2, 3, 5], 3, [3, 3], 1, [1; 4]),
    ([2, 7, 13, 17], 19, [3, 3], 1, [1; 4]),
    ([1, 17, 9, 24], 33, [3, 3], 1, [1; 4]),
    ([1, 4, 11, 50], 5, [3, 3], 2, [0, 0, 1, 1]),
    ([1, 4, 10, 7], 5, [3, 3], 2, [1; 4]),
    ([1, 4, 10, 7], 5, [1, 1], 2, [0; 4]),
    ([1, 3, 8, 16], 14, [1, 1], 1, [1; 4]),
    ([2, 3, 12, 9], 6, [5, 3], 1, [2, 1, 0, 3]),
    ([1, 3, 17, 16], 6, [4, 4], 4, [0; 4]),
    ([1, 3, 9, 16], 6, [2, 2], 3, [0, 1, 2, 0]),
    ([1, 3, 9, 16], 6, [7, 7], 1, [3; 4]),
    ([1, 3, 5, 16], 2, [3, 3], 1, [4, 0, 3, 5]),
    ([1, 130, 6, 32], 15, [3, 3], 1, [1; 4]),
];

fn shape(&([b, c, h, w], c_out, [kh, kw], stride, [top, left, bottom, right]): &Case) -> ConvShape {
    ConvShape {
        batch: b,
        input: [c, h, w],
        output: [
            c_out,
            (h + top + bottom - kh) / stride + 1,
            (w + left + right - kw) / stride + 1,
        ],
        kernel: [kh, kw],
        stride,
        before: [top as isize, left as isize],
    }
}

/// Calls `f(y, x, w)` with the flat indices of each product of the convolution.
fn products(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let ([c_in, h, w], [c_out, oh, ow], [kh, kw]) = (shape.input, shape.output, shape.kernel);
    for b in 0..shape.batch {
        for co in 0..c_out {
            for ci in 0..c_in {
                for ky in 0..kh {
                    for kx in 0..kw {
                        for oy in 0..oh {
                            let iy = (oy * shape.stride + ky) as isize - shape.before[0];
                            if iy < 0 || iy >= h as isize {
                                continue;
                            }
                            for ox in 0..ow {
                                let ix = (ox * shape.stride + kx) as isize - shape.before[1];
                                if ix < 0 || ix >= w as isize {
                                    continue;
                                }
                                f(
                                    ((b * c_out + co) * oh + oy) * ow + ox,
                                    ((b * c_in + ci) * h + iy as usize) * w + ix as usize,
                                    ((co * c_in + ci) * kh + ky) * kw + kx,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn convolutions_and_their_gradients_match_f64() {
    for case in CASES {
        let shape = shape(case);
        let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
        let x = noise(shape.batch * c_in * h * w, 1);
        let weight = noise(c_out * c_in * shape.kernel[0] * shape.kernel[1], 2);
        let bias = noise(c_out, 3);
        let dy = noise(shape.batch * c_out * oh * ow, 4);
        let mut y: Vec<f64> = (0..dy.len())
            .map(|i| f64::from(bias[i / (oh * ow) % c_out]))
            .collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        products(&shape, |yi, xi, wi| {
            y[yi] += f64::from(x[xi]) * f64::from(weight[wi]);
            dx[xi] += f64::from(dy[yi]) * f64::from(weight[wi]);
            dw[wi] += f64::from(dy[yi]) * f64::from(x[xi]);
        });
        let mut db = vec![0.0; c_out];
        for (i, dy) in dy.iter().enumerate() {
            db[i / (oh * ow) % c_out] += f64::from(*dy);
        }
        for isa in Isa::available() {
            let what = |which: &str| format!("{which} of {case:?} on {isa:?}");
            let weight = Weight::F32(&weight);
            let got = conv::forward(isa, &shape, &x, weight, Some(&bias));
            assert_close(&what("output"), &got, &y, 2e-6);
            let got = conv::input_grad(isa, &shape, &dy, weight);
            assert_close(&what("input gradient"), &got, &dx, 2e-6);
            let got = conv::weight_grad(isa, &shape, &x, &dy);
            assert_close(&what("weight gradient"), &got, &dw, 2e-6);
            let got = conv::bias_grad(isa, &shape, &dy);
            assert_close(&what("bias gradient"), &got, &db, 2e-6);
        }
    }
}

#[test]
fn half_precision_weights_equal_their_widened_values() {
    use burn::tensor::{bf16, f16};
    let shape = shape(&([1, 20, 9, 16], 30, [3, 3], 1, [1; 4]));
    let (x, dy) = (noise(20 * 144, 1), noise(30 * 144, 2));
    let weight = noise(30 * 20 * 9, 3);
    let bf: Vec<bf16> = weight.iter().map(|&w| bf16::from_f32(w)).collect();
    let half: Vec<f16> = weight.iter().map(|&w| f16::from_f32(w)).collect();
    let wide_bf: Vec<f32> = bf.iter().map(|w| w.to_f32()).collect();
    let wide_half: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
    for isa in Isa::available() {
        for (narrow, wide) in [
            (Weight::Bf16(&bf), Weight::F32(&wide_bf)),
            (Weight::F16(&half), Weight::F32(&wide_half)),
        ] {
            let y = |weight| conv::forward(isa, &shape, &x, weight, None);
            assert_eq!(y(narrow), y(wide));
            let dx = |weight| conv::input_grad(isa, &shape, &dy, weight);
            assert_eq!(dx(narrow), dx(wide));
        }
    }
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
        for (i, (&y, &x)) in elementwise::silu(isa, &x).iter().zip(&x).enumerate() {
            let want = f64::from(x) * sigmoid(f64::from(x));
            // Below -87 the exponential is held: 1.4e-36 instead of less.
            let tolerance = 4e-7 * want.abs() + 2e-36;
            assert!(
                (f64::from(y) - want).abs() <= tolerance,
                "{isa:?} {i}: silu({x}) = {y}, not {want}"
            );
        }
        for ((&g, &x), &dy) in elementwise::silu_backward(isa, &x, &dy)
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
                    let w = Weight::F32(&weight);
                    let (y, moments) = norm::forward(isa, &groups, &x, &gain, &bias[..c_in]);
                    let (dx, dw, db) =
                        norm::backward(isa, &groups, &x, &gain, &bias[..c_in], &moments, &y);
                    [
                        conv::forward(isa, &shape, &x, w, Some(&bias[..c_out])),
                        conv::input_grad(isa, &shape, &dy, w),
                        conv::weight_grad(isa, &shape, &x, &dy),
                        conv::bias_grad(isa, &shape, &dy),
                        elementwise::silu(isa, &x),
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
fn nan_reaches_every_output_it_touches() {
    let shape = shape(&([1, 3, 7, 18], 5, [3, 3], 1, [1; 4]));
    let mut x = noise(3 * 7 * 18, 1);
    x[18 * 3 + 9] = f32::NAN;
    let weight = noise(5 * 3 * 9, 2);
    for isa in Isa::available() {
        let y = conv::forward(isa, &shape, &x, Weight::F32(&weight), None);
        for (i, y) in y.iter().enumerate() {
            let (row, col) = (i / 18 % 7, i % 18);
            let near = row.abs_diff(3) <= 1 && col.abs_diff(9) <= 1;
            assert_eq!(y.is_nan(), near, "{isa:?} at {row}, {col}");
        }
        assert!(conv::weight_grad(isa, &shape, &x, &noise(5 * 7 * 18, 3))[4].is_nan());
        let silu = elementwise::silu(isa, &x);
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
