//! Every fast path against f64 references, on every instruction set this machine has.

mod attention;
mod convolutions;
#[cfg(target_os = "linux")]
mod guard;
mod matrices;
mod norms;
mod updates;
mod winograd;

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
pub(super) fn noise(n: usize, seed: u64) -> Vec<f32> {
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

fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("a pool").install(f)
}

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = error(got, want);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e} > {tolerance:e}"
    );
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
            let mut in_place = x.clone();
            elementwise::apply_to(isa, function, &mut in_place);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&in_place), bits(&got), "{function:?} on {isa:?}");
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
                on_threads(threads, || {
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
