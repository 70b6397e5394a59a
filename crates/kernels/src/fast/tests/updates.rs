//! Products with a low-rank update against f64 and against the two products they are made of.

use burn::tensor::bf16;

use super::{assert_close, matrices::reference, noise, on_threads};
use crate::fast::{
    isa::Isa,
    linear::{self, Factors, LinearShape},
    pairs::Products,
    stored::Stored,
};

/// Values that bfloat16 holds.
fn rounded(n: usize, seed: u64) -> Vec<bf16> {
    noise(n, seed).into_iter().map(bf16::from_f32).collect()
}

/// Rows, inputs, outputs, rank.
const SHAPES: [[usize; 4]; 7] = [
    [1, 7, 5, 2],
    [17, 1, 1, 1],
    [33, 31, 70, 5],
    [64, 320, 96, 32],
    [70, 1536, 40, 32],
    [40, 2050, 33, 80],
    // More rows than are packed at once.
    [8300, 1500, 3, 4],
];

#[test]
fn an_updated_map_matches_f64_and_threads_change_nothing() {
    for [n, d_in, d_out, rank] in SHAPES {
        let x = noise(n * d_in, 1);
        let weight = rounded(d_out * d_in, 2);
        let (a, b) = (rounded(rank * d_in, 3), rounded(d_out * rank, 4));
        let bias = noise(d_out, 5);
        let scale = 0.75;
        let mut want_low = reference(&x, &a, [n, rank, d_in]);
        want_low.iter_mut().for_each(|v| *v *= f64::from(scale));
        let term = reference(&want_low, &b, [n, d_out, rank]);
        let want: Vec<f64> = (reference(&x, &weight, [n, d_out, d_in]).iter())
            .zip(term)
            .enumerate()
            .map(|(at, (y, term))| y + term + f64::from(bias[at % d_out]))
            .collect();
        for isa in Isa::available() {
            for products in [Products::F32, Products::Bf16] {
                let shape = LinearShape {
                    n,
                    d_in,
                    d_out,
                    products,
                };
                let factors = Factors {
                    a: Stored::Bf16(&a),
                    b: Stored::Bf16(&b),
                    rank,
                    scale,
                };
                let run = |threads: usize| {
                    on_threads(threads, || {
                        let weight = Stored::Bf16(&weight);
                        linear::forward_low_rank(isa, &shape, &x, weight, Some(&bias), &factors)
                    })
                };
                let (y, low) = run(1);
                let what = format!("{isa:?} {products:?} {n}x{d_in}x{d_out}, rank {rank}");
                let tolerance = if products == Products::F32 {
                    3e-6
                } else {
                    8e-3
                };
                assert_close(&format!("{what}: low"), &low, &want_low, tolerance);
                assert_close(&what, &y, &want, tolerance);
                assert!(run(3) == (y, low), "{what}: three threads");
            }
        }
    }
}
