//! Matrix products against f64, on every instruction set, for operands of every order and type.

use burn::tensor::{bf16, f16};

use super::{assert_close, noise};
use crate::fast::{
    gemm::{self, Bias, Gemm, More, Operand},
    isa::Isa,
    linear::{self, LinearShape},
    pairs::Products,
    stored::Stored,
};

/// `values` `[rows, k]`, as it is or across.
fn ordered(values: &[f32], rows: usize, k: usize, by_rows: bool) -> (Vec<f32>, [usize; 2]) {
    if by_rows {
        return (values.to_vec(), [k, 1]);
    }
    let across = (0..rows * k)
        .map(|i| values[i % rows * k + i / rows])
        .collect();
    (across, [1, rows])
}

fn operand(values: Stored<'_>, [row_stride, k_stride]: [usize; 2]) -> Operand<'_> {
    Operand {
        values,
        row_stride,
        k_stride,
    }
}

/// `[m, n]`: the sums in f64.
pub(super) fn reference<A, B>(a: &[A], b: &[B], [m, n, k]: [usize; 3]) -> Vec<f64>
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let rows = a[i * k..(i + 1) * k].iter().zip(&b[j * k..(j + 1) * k]);
            c[i * n + j] = rows.map(|(a, b)| (*a).into() * (*b).into()).sum();
        }
    }
    c
}

/// What is added: nothing, a value a row, a value a column.
fn biases<'a>(rows: &'a [f32], columns: &'a [f32]) -> [Bias<'a>; 3] {
    [Bias::None, Bias::Rows(rows), Bias::Columns(columns)]
}

#[test]
fn products_of_matrices_match_f64() {
    // One has several tasks along its rows; the last is packed in parts.
    let shapes = [
        [1, 1, 1],
        [2, 5, 7],
        [13, 33, 257],
        [31, 16, 64],
        [221, 70, 530],
        [17, 600, 31],
        [1100, 40, 50],
        [70, 35, 190_000],
    ];
    for [m, n, k] in shapes {
        let (a, b) = (noise(m * k, 1), noise(n * k, 2));
        let (rows, columns) = (noise(m, 3), noise(n, 4));
        let sums = reference(&a, &b, [m, n, k]);
        for isa in Isa::available() {
            for (order, products) in (0..4).flat_map(|i| [(i, Products::F32), (i, Products::Bf16)])
            {
                if k > 100_000 && (isa == Isa::Portable || order > 0) {
                    continue;
                }
                let (a, a_strides) = ordered(&a, m, k, order & 1 == 0);
                let (b, b_strides) = ordered(&b, n, k, order & 2 == 0);
                for (which, bias) in biases(&rows, &columns).into_iter().enumerate() {
                    let mut got = vec![f32::NAN; m * n];
                    let product = Gemm {
                        m,
                        n,
                        k,
                        a: operand(Stored::F32(&a), a_strides),
                        b: operand(Stored::F32(&b), b_strides),
                        batch: 1,
                        more: None,
                        bias,
                        products,
                    };
                    gemm::run(isa, &product, &mut got);
                    let want: Vec<f64> = (sums.iter().enumerate())
                        .map(|(i, sum)| match which {
                            0 => *sum,
                            1 => sum + f64::from(rows[i / n]),
                            _ => sum + f64::from(columns[i % n]),
                        })
                        .collect();
                    let tolerance = if products == Products::F32 {
                        2e-6
                    } else {
                        5e-3
                    };
                    let what =
                        format!("{isa:?} {products:?} {m}x{n}x{k} order {order} bias {which}");
                    assert_close(&what, &got, &want, tolerance);
                }
            }
        }
    }
}

#[test]
fn products_of_a_batch_share_the_first_operand() {
    let [batch, m, n, k] = [3, 30, 45, 20];
    let (a, b) = (noise(m * k, 1), noise(batch * n * k, 2));
    let bias = noise(m, 3);
    let mut want = Vec::new();
    for b in b.chunks_exact(n * k) {
        // `b` lies across: [k, n].
        let rows: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
        let sums = reference(&a, &rows, [m, n, k]);
        want.extend((sums.iter().enumerate()).map(|(i, sum)| sum + f64::from(bias[i / n])));
    }
    for isa in Isa::available() {
        let mut got = vec![f32::NAN; batch * m * n];
        let product = Gemm {
            m,
            n,
            k,
            a: operand(Stored::F32(&a), [k, 1]),
            b: operand(Stored::F32(&b), [1, n]),
            batch,
            more: None,
            bias: Bias::Rows(&bias),
            products: Products::F32,
        };
        gemm::run(isa, &product, &mut got);
        assert_close(&format!("{isa:?}"), &got, &want, 2e-6);
    }
}

#[test]
fn stored_16_bit_operands_give_what_their_widened_values_give() {
    // An odd distance between rows, an even one, and sums of several chunks.
    for k in [99, 100, 1600] {
        let [m, n] = [37, 70];
        let a = noise(m * k, 1);
        let half: Vec<f16> = noise(n * k, 2).into_iter().map(f16::from_f32).collect();
        let brain: Vec<bf16> = noise(n * k, 3).into_iter().map(bf16::from_f32).collect();
        let wide_half: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
        let wide_brain: Vec<f32> = brain.iter().map(|v| v.to_f32()).collect();
        for isa in Isa::available() {
            for products in [Products::F32, Products::Bf16] {
                for strides in [[k, 1], [1, n]] {
                    let run = |b: Stored<'_>| {
                        let mut c = vec![f32::NAN; m * n];
                        let product = Gemm {
                            m,
                            n,
                            k,
                            a: operand(Stored::F32(&a), [k, 1]),
                            b: operand(b, strides),
                            batch: 1,
                            more: None,
                            bias: Bias::None,
                            products,
                        };
                        gemm::run(isa, &product, &mut c);
                        c
                    };
                    assert_eq!(
                        run(Stored::F16(&half)),
                        run(Stored::F32(&wide_half)),
                        "{isa:?}"
                    );
                    assert_eq!(
                        run(Stored::Bf16(&brain)),
                        run(Stored::F32(&wide_brain)),
                        "{isa:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_sum_of_nothing_is_the_bias() {
    let mut c = vec![f32::NAN; 6];
    let product = Gemm {
        m: 2,
        n: 3,
        k: 0,
        a: operand(Stored::F32(&[]), [0, 1]),
        b: operand(Stored::F32(&[]), [0, 1]),
        batch: 1,
        more: None,
        bias: Bias::Columns(&[1.0, 2.0, 3.0]),
        products: Products::F32,
    };
    gemm::run(Isa::Portable, &product, &mut c);
    assert_eq!(c, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
}

#[test]
fn what_is_not_a_number_stays_so_in_its_row_and_column() {
    let [m, n, k] = [5, 6, 40];
    for isa in Isa::available() {
        for products in [Products::F32, Products::Bf16] {
            let (mut a, b) = (noise(m * k, 1), noise(n * k, 2));
            a[2 * k + 7] = f32::NAN;
            a[3 * k] = f32::INFINITY;
            let mut c = vec![0.0; m * n];
            let product = Gemm {
                m,
                n,
                k,
                a: operand(Stored::F32(&a), [k, 1]),
                b: operand(Stored::F32(&b), [k, 1]),
                batch: 1,
                more: None,
                bias: Bias::None,
                products,
            };
            gemm::run(isa, &product, &mut c);
            for (i, row) in c.chunks_exact(n).enumerate() {
                match i {
                    2 => assert!(row.iter().all(|v| v.is_nan()), "{isa:?} {products:?}"),
                    3 => assert!(row.iter().all(|v| v.is_infinite()), "{isa:?} {products:?}"),
                    _ => assert!(row.iter().all(|v| v.is_finite()), "{isa:?} {products:?}"),
                }
            }
        }
    }
}

#[test]
fn sums_that_go_on_over_other_operands_match_f64() {
    for [m, n, k, rank] in [
        [1, 1, 1, 1],
        [40, 70, 33, 5],
        [221, 130, 530, 32],
        [17, 600, 31, 900],
    ] {
        let (a, b) = (noise(m * k, 1), noise(n * k, 2));
        let (low, factor, columns) = (noise(m * rank, 3), noise(n * rank, 4), noise(n, 5));
        let more = reference(&low, &factor, [m, n, rank]);
        let want: Vec<f64> = (reference(&a, &b, [m, n, k]).iter().zip(more).enumerate())
            .map(|(i, (first, second))| first + second + f64::from(columns[i % n]))
            .collect();
        for isa in Isa::available() {
            for (by_rows, products) in [
                (true, Products::F32),
                (false, Products::F32),
                (true, Products::Bf16),
                (false, Products::Bf16),
            ] {
                let (b, b_strides) = ordered(&b, n, k, by_rows);
                let (factor, factor_strides) = ordered(&factor, n, rank, by_rows);
                let product = Gemm {
                    m,
                    n,
                    k,
                    a: operand(Stored::F32(&a), [k, 1]),
                    b: operand(Stored::F32(&b), b_strides),
                    batch: 1,
                    more: Some(More {
                        k: rank,
                        a: operand(Stored::F32(&low), [rank, 1]),
                        b: operand(Stored::F32(&factor), factor_strides),
                    }),
                    bias: Bias::Columns(&columns),
                    products,
                };
                let mut got = vec![f32::NAN; m * n];
                gemm::run(isa, &product, &mut got);
                let tolerance = if products == Products::F32 {
                    2e-6
                } else {
                    5e-3
                };
                let what =
                    format!("{isa:?} {products:?} {m}x{n}x{k} and {rank}, by rows {by_rows}");
                assert_close(&what, &got, &want, tolerance);
            }
        }
    }
}

#[test]
fn linear_maps_and_their_gradients_match_f64() {
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
