//! Winograd's convolution on shapes where it pays and where it would not.

use super::{
    assert_close,
    convolutions::{CASES, products, shape},
    noise, on_threads,
};
use crate::fast::{conv::ConvShape, isa::Isa, packed::WeightOrder, stored::Stored, winograd};

/// Of the norm, as for the direct sum.
const TOLERANCE: f64 = 2e-6;

fn plain_order(c_in: usize) -> WeightOrder {
    WeightOrder {
        strides: [c_in * 9, 9],
        taps: (0..9).collect(),
    }
}

/// The shapes of the convolution tests that it can do, and one whose operands are cut into parts.
fn shapes() -> Vec<ConvShape> {
    let all = CASES.iter().map(shape);
    let mut shapes: Vec<_> = all
        .filter(|shape| shape.kernel == [3, 3] && shape.stride == 1)
        .collect();
    assert!(shapes.iter().any(winograd::pays) && !shapes.iter().all(winograd::pays));
    shapes.push(shape(&([2, 300, 9, 11], 70, [3, 3], 1, [2, 0, 1, 1])));
    shapes
}

#[test]
fn it_matches_f64() {
    for shape in shapes() {
        let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
        let x = noise(shape.batch * c_in * h * w, 1);
        let weight = noise(c_out * c_in * 9, 2);
        let bias = noise(c_out, 3);
        let start = |i: usize| f64::from(bias[i / (oh * ow) % c_out]);
        let mut y: Vec<f64> = (0..shape.batch * c_out * oh * ow).map(start).collect();
        products(&shape, |yi, xi, wi| {
            y[yi] += f64::from(x[xi]) * f64::from(weight[wi]);
        });
        for isa in Isa::available() {
            let weight = Stored::F32(&weight);
            let order = plain_order(c_in);
            for fused in [false, true] {
                if fused && c_in > winograd::CHUNK {
                    continue;
                }
                let got =
                    winograd::run_with(isa, &shape, &x, (weight, &order), Some(&bias), Some(fused));
                assert_close(&format!("{shape:?} on {isa:?}"), &got, &y, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_task_for_all_steps_gives_the_same_bits() {
    // Rows of tiles that begin and end within panels and vectors, and a last panel that is not full.
    for case in [
        ([1, 40, 70, 66], 37, [3, 3], 1, [1; 4]),
        ([3, 33, 23, 9], 64, [3, 3], 1, [1; 4]),
        ([2, 65, 5, 130], 32, [3, 3], 1, [2, 0, 1, 1]),
    ] {
        let shape = shape(&case);
        let ([c_in, h, w], c_out) = (shape.input, shape.output[0]);
        let x = noise(shape.batch * c_in * h * w, 1);
        let (weight, bias) = (noise(c_out * c_in * 9, 2), noise(c_out, 3));
        let order = plain_order(c_in);
        for isa in Isa::available() {
            let run = |fused| {
                let weight = (Stored::F32(&weight), &order);
                winograd::run_with(isa, &shape, &x, weight, Some(&bias), fused)
            };
            let (fused, staged) = (run(Some(true)), run(Some(false)));
            assert!(fused == staged, "{shape:?} on {isa:?}");
        }
    }
}

#[test]
fn large_operands_are_cut_into_parts() {
    // Kernels of two parts and tiles of two.
    let shape = shape(&([1, 448, 80, 84], 448, [3, 3], 1, [1; 4]));
    let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
    assert!(36 * c_in * c_out > winograd::PART && 36 * c_in * 20 * 21 > winograd::PART);
    let (x, weight) = (noise(c_in * h * w, 1), noise(c_out * c_in * 9, 2));
    let y = winograd::run(
        Isa::current(),
        &shape,
        &x,
        Stored::F32(&weight),
        &plain_order(c_in),
        None,
    );
    // Some of the outputs, from all parts.
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for at in (0..c_out * oh * ow).step_by(9973) {
        let (co, oy, ox) = (at / (oh * ow), at / ow % oh, at % ow);
        let mut sum = 0.0;
        for ci in 0..c_in {
            for (tap, w9) in weight[(co * c_in + ci) * 9..][..9].iter().enumerate() {
                let (iy, ix) = (oy + tap / 3, ox + tap % 3);
                if (1..=h).contains(&iy) && (1..=w).contains(&ix) {
                    sum += f64::from(x[(ci * h + iy - 1) * w + ix - 1]) * f64::from(*w9);
                }
            }
        }
        got.push(y[at]);
        want.push(sum);
    }
    assert_close("cut", &got, &want, TOLERANCE);
}

#[test]
fn sixteen_bit_kernels_equal_their_widened_values_and_threads_change_nothing() {
    use burn::tensor::{bf16, f16};
    let shape = shape(&([3, 40, 13, 18], 50, [3, 3], 1, [1; 4]));
    let x = noise(3 * 40 * 13 * 18, 1);
    let weight = noise(50 * 40 * 9, 2);
    let bf: Vec<bf16> = weight.iter().map(|&w| bf16::from_f32(w)).collect();
    let half: Vec<f16> = weight.iter().map(|&w| f16::from_f32(w)).collect();
    let wide_bf: Vec<f32> = bf.iter().map(|w| w.to_f32()).collect();
    let wide_half: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
    for isa in Isa::available() {
        let run = |threads: usize, weight| {
            on_threads(threads, || {
                winograd::run(isa, &shape, &x, weight, &plain_order(40), None)
            })
        };
        for (narrow, wide) in [
            (Stored::Bf16(&bf), Stored::F32(&wide_bf)),
            (Stored::F16(&half), Stored::F32(&wide_half)),
        ] {
            let one = run(1, narrow);
            assert_eq!(one, run(1, wide), "{isa:?}");
            assert_eq!(one, run(2, narrow), "{isa:?}");
            assert_eq!(one, run(5, narrow), "{isa:?}");
        }
    }
}

#[test]
fn what_is_not_finite_reaches_every_output_it_touches() {
    let shape = shape(&([1, 33, 20, 30], 34, [3, 3], 1, [1; 4]));
    let weight = noise(34 * 33 * 9, 2);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = noise(33 * 600, 1);
        x[5 * 600 + 7 * 30 + 11] = bad;
        for isa in Isa::available() {
            let weight = Stored::F32(&weight);
            let y = winograd::run(isa, &shape, &x, weight, &plain_order(33), None);
            for (i, y) in y.iter().enumerate() {
                let (row, col) = (i / 30 % 20, i % 30);
                if row.abs_diff(7) <= 1 && col.abs_diff(11) <= 1 {
                    assert!(!y.is_finite(), "{isa:?} at {row}, {col}");
                }
                // At most the tiles that hold it.
                if row.abs_diff(7) > 5 || col.abs_diff(11) > 5 {
                    assert!(y.is_finite(), "{isa:?} at {row}, {col}");
                }
            }
        }
    }
}
