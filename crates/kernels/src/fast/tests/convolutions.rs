//! Convolutions.

use super::{assert_close, noise};
use crate::fast::{
    conv::{self, ConvShape},
    isa::Isa,
    pairs::{self, Products},
    stored::Stored,
};

/// `[b, c_in, h, w], c_out, [kh, kw], stride, [top, left, bottom, right]`.
pub(super) type Case = ([usize; 4], usize, [usize; 2], usize, [usize; 4]);

pub(super) const CASES: &[Case] = &[
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
    // Few pixels and many channels, as at the bottom of SDXL.
    ([1, 320, 8, 8], 160, [3, 3], 1, [1; 4]),
    ([2, 70, 5, 7], 66, [3, 3], 2, [1; 4]),
    ([1, 130, 4, 4], 33, [3, 3], 1, [0, 0, 1, 1]),
    ([1, 120, 2, 1], 20, [4, 5], 1, [3, 4, 3, 2]),
    ([1, 128, 4, 16], 128, [3, 3], 1, [1; 4]),
    ([2, 66, 6, 5], 400, [3, 3], 1, [1; 4]),
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

pub(super) fn shape(
    &([b, c, h, w], c_out, [kh, kw], stride, [top, left, bottom, right]): &Case,
) -> ConvShape {
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
        products: Products::F32,
    }
}

/// Calls `f(y, x, w)` with the flat indices of each product of the convolution.
pub(super) fn products(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
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
            let weight = Stored::F32(&weight);
            let got = conv::forward(isa, &shape, &x, weight, Some(&bias));
            assert_close(&what("output"), &got, &y, 2e-6);
            let got = conv::input_grad(isa, &shape, &dy, weight);
            assert_close(&what("input gradient"), &got, &dx, 2e-6);
            let got = conv::weight_grad(isa, &shape, &x, &dy);
            assert_close(&what("weight gradient"), &got, &dw, 2e-6);
            let got = conv::bias_grad(isa, &shape, &dy);
            assert_close(&what("bias gradient"), &got, &db, 2e-6);

            let shape = ConvShape {
                products: Products::Bf16,
                ..shape
            };
            let got = conv::forward(isa, &shape, &x, weight, Some(&bias));
            assert_close(&what("bf16 output"), &got, &y, 5e-3);
            let got = conv::input_grad(isa, &shape, &dy, weight);
            assert_close(&what("bf16 input gradient"), &got, &dx, 5e-3);
            let got = conv::weight_grad(isa, &shape, &x, &dy);
            assert_close(&what("bf16 weight gradient"), &got, &dw, 5e-3);
        }
    }
}

/// Values that bfloat16 holds: then nothing but the order of the sums differs from f32.
#[test]
fn bf16_products_of_bf16_values_match_f64() {
    for case in CASES {
        let shape = ConvShape {
            products: Products::Bf16,
            ..shape(case)
        };
        let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
        let rounded = |n, seed| -> Vec<f32> {
            let round = |x: f32| burn::tensor::bf16::from_f32(x).to_f32();
            noise(n, seed).into_iter().map(round).collect()
        };
        let x = rounded(shape.batch * c_in * h * w, 1);
        let weight = rounded(c_out * c_in * shape.kernel[0] * shape.kernel[1], 2);
        let dy = rounded(shape.batch * c_out * oh * ow, 4);
        let mut y = vec![0.0; dy.len()];
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        products(&shape, |yi, xi, wi| {
            y[yi] += f64::from(x[xi]) * f64::from(weight[wi]);
            dx[xi] += f64::from(dy[yi]) * f64::from(weight[wi]);
            dw[wi] += f64::from(dy[yi]) * f64::from(x[xi]);
        });
        for isa in Isa::available() {
            let what = |which: &str| format!("{which} of {case:?} on {isa:?}");
            let weight = Stored::F32(&weight);
            let got = conv::forward(isa, &shape, &x, weight, None);
            assert_close(&what("output"), &got, &y, 2e-6);
            let got = conv::input_grad(isa, &shape, &dy, weight);
            assert_close(&what("input gradient"), &got, &dx, 2e-6);
            let got = conv::weight_grad(isa, &shape, &x, &dy);
            assert_close(&what("weight gradient"), &got, &dw, 2e-6);
        }
    }
}

#[test]
fn values_round_to_bf16_as_everywhere() {
    let awkward = [
        0.0,
        -0.0,
        1.0,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    let halfway = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff].map(f32::from_bits);
    for x in awkward.into_iter().chain(halfway).chain(noise(2000, 5)) {
        let want = burn::tensor::bf16::from_f32(x).to_bits();
        assert_eq!(pairs::round(x), want, "{x}");
        let both = pairs::pair(x, 2.0).to_bits();
        assert_eq!(both, u32::from(want) | 0x4000_0000);
    }
    assert!(burn::tensor::bf16::from_bits(pairs::round(f32::NAN)).is_nan());
}

#[test]
fn half_precision_weights_equal_their_widened_values() {
    use burn::tensor::{bf16, f16};
    // Whole tiles of pairs of channels, a part of one, an odd number of channels.
    let cases = [(20, 1), (64, 1), (75, 2)];
    let cases =
        (cases.into_iter()).flat_map(|case| [(case, Products::F32), (case, Products::Bf16)]);
    for ((c_in, stride), products) in cases {
        let shape = ConvShape {
            products,
            ..shape(&([1, c_in, 9, 16], 30, [3, 3], stride, [1; 4]))
        };
        let [c_out, oh, ow] = shape.output;
        let (x, dy) = (noise(c_in * 144, 1), noise(c_out * oh * ow, 2));
        let weight = noise(c_out * c_in * 9, 3);
        let bf: Vec<bf16> = weight.iter().map(|&w| bf16::from_f32(w)).collect();
        let half: Vec<f16> = weight.iter().map(|&w| f16::from_f32(w)).collect();
        let wide_bf: Vec<f32> = bf.iter().map(|w| w.to_f32()).collect();
        let wide_half: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
        for isa in Isa::available() {
            for (narrow, wide) in [
                (Stored::Bf16(&bf), Stored::F32(&wide_bf)),
                (Stored::F16(&half), Stored::F32(&wide_half)),
            ] {
                let y = |weight| conv::forward(isa, &shape, &x, weight, None);
                assert_eq!(y(narrow), y(wide), "{shape:?} on {isa:?}");
                let dx = |weight| conv::input_grad(isa, &shape, &dy, weight);
                assert_eq!(dx(narrow), dx(wide), "{shape:?} on {isa:?}");
            }
        }
    }
}

/// SDXL's widest convolutions: some outputs against f64, and both gradients by what they are defined by, that
/// `<dy, conv(x)>`, `<dx, x>` and `<dw, w>` are one number.
#[test]
fn the_widest_convolutions_match_f64_where_sampled() {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        (a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b))).sum()
    };
    for case in [
        ([1, 1280, 8, 8], 1280, [3, 3], 1, [1; 4]),
        ([1, 2560, 8, 8], 1280, [3, 3], 1, [1; 4]),
        ([1, 1280, 9, 8], 1280, [3, 3], 2, [1; 4]),
        ([1, 2560, 8, 8], 1280, [1, 1], 1, [0; 4]),
    ] {
        let shape = shape(&case);
        let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
        let (kernel, taps) = (shape.kernel, shape.taps());
        let x = noise(c_in * h * w, 1);
        let weight = noise(c_out * c_in * taps, 2);
        let dy = noise(c_out * oh * ow, 3);
        let sampled: Vec<usize> = (0..dy.len()).step_by(397).collect();
        let want: Vec<f64> = (sampled.iter())
            .map(|at| {
                let (co, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
                let mut sum = 0.0;
                for (k, value) in weight[co * c_in * taps..][..c_in * taps].iter().enumerate() {
                    let (ci, ky, kx) = (k / taps, k / kernel[1] % kernel[0], k % kernel[1]);
                    let iy = (oy * shape.stride + ky).wrapping_add_signed(-shape.before[0]);
                    let ix = (ox * shape.stride + kx).wrapping_add_signed(-shape.before[1]);
                    if iy < h && ix < w {
                        sum += f64::from(*value) * f64::from(x[(ci * h + iy) * w + ix]);
                    }
                }
                sum
            })
            .collect();
        for isa in Isa::available() {
            for (products, tolerance) in [(Products::F32, 2e-6), (Products::Bf16, 5e-3)] {
                let shape = ConvShape { products, ..shape };
                let y = conv::forward(isa, &shape, &x, Stored::F32(&weight), None);
                let got: Vec<f32> = sampled.iter().map(|&at| y[at]).collect();
                let what = format!("{case:?} with {products:?} on {isa:?}");
                assert_close(&what, &got, &want, tolerance);
                if isa != Isa::current() {
                    continue;
                }
                let dx = conv::input_grad(isa, &shape, &dy, Stored::F32(&weight));
                let dw = conv::weight_grad(isa, &shape, &x, &dy);
                let number = dot(&dy, &y);
                let size = (dot(&dy, &dy) * dot(&y, &y)).sqrt();
                for (which, other) in [("input", dot(&dx, &x)), ("weight", dot(&dw, &weight))] {
                    let off = (number - other).abs() / size;
                    assert!(off <= tolerance, "{which} gradient of {what}: {off:e}");
                }
            }
        }
    }
}
