//! Attention and its gradients against f64, on every instruction set.

use burn::tensor::bf16;

use super::{assert_close, noise};
use crate::fast::{
    attention::{self, AttentionShape, Bias, Saved},
    isa::Isa,
    pairs::Products,
};

#[test]
fn attention_and_its_gradients_match_f64() {
    let shapes = [
        ([1, 2], 64, 64, 32, false),
        ([3, 1], 130, 77, 40, false),
        ([1, 1], 300, 300, 64, false),
        ([2, 3], 100, 130, 64, false),
        ([2, 2], 77, 77, 64, true),
        ([1, 1], 49, 65, 80, false),
        ([1, 1], 60, 64, 512, false),
        ([1, 1], 1, 1, 1, false),
        ([1, 2], 5, 9, 3, false),
        ([1, 1], 150, 150, 32, true),
    ];
    let cases = shapes
        .iter()
        .flat_map(|shape| [(*shape, false), (*shape, true)]);
    for (([images, per_image], n, m, d, causal), biased) in cases {
        let heads = images * per_image;
        let scale = 1.7 / (d as f32).sqrt();
        let shape = AttentionShape {
            images,
            heads: per_image,
            n,
            m,
            d,
            scale,
            causal,
            products: Products::F32,
        };
        // Of bfloat16 values, so that matrix tiles round the probabilities only.
        let noise = |n: usize, seed: u64| -> Vec<f32> {
            let values = noise(n, seed).into_iter();
            values.map(|x| bf16::from_f32(x).to_f32()).collect()
        };
        // Logits of a few units, so that the softmax is neither flat nor a single key.
        let loud = |seed| {
            noise(heads * n.max(m) * d, seed)
                .into_iter()
                .map(|x| 4.0 * x)
        };
        let q: Vec<f32> = loud(1).take(heads * n * d).collect();
        let k: Vec<f32> = loud(2).take(heads * m * d).collect();
        let (v, dy) = (noise(heads * m * d, 3), noise(heads * n * d, 4));
        // A matrix for each head, or one for all of them.
        let matrices = if heads % 2 == 0 { heads } else { 1 };
        let values = noise(matrices * n * m, 5);
        let bias = biased.then_some(Bias(&values));
        let added = |h: usize, i: usize, j: usize| {
            let value = values[(h % matrices * n + i) * m + j];
            if biased { f64::from(value) } else { 0.0 }
        };
        let (mut o, mut sums) = (vec![0.0f64; q.len()], Vec::new());
        let mut wanted = [
            vec![0.0f64; q.len()],
            vec![0.0; k.len()],
            vec![0.0; v.len()],
        ];
        for h in 0..heads {
            for i in 0..n {
                let place = |row: usize, c: usize, rows: usize| {
                    let token = h / per_image * rows + row;
                    (token * per_image + h % per_image) * d + c
                };
                let at = |x: &[f32], row: usize, c: usize, rows: usize| {
                    f64::from(x[place(row, c, rows)])
                };
                let seen = if causal { m.min(i + 1) } else { m };
                let logits: Vec<f64> = (0..seen)
                    .map(|j| {
                        (0..d)
                            .map(|c| at(&q, i, c, n) * at(&k, j, c, m))
                            .sum::<f64>()
                            * f64::from(scale)
                            + added(h, i, j)
                    })
                    .collect();
                let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
                sums.push(most + sum.ln());
                let p: Vec<f64> = logits.iter().map(|l| (l - most).exp() / sum).collect();
                let dp: Vec<f64> = (0..seen)
                    .map(|j| (0..d).map(|c| at(&dy, i, c, n) * at(&v, j, c, m)).sum())
                    .collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for j in 0..seen {
                    let ds = p[j] * (dp[j] - delta) * f64::from(scale);
                    for c in 0..d {
                        o[place(i, c, n)] += p[j] * at(&v, j, c, m);
                        wanted[0][place(i, c, n)] += ds * at(&k, j, c, m);
                        wanted[1][place(j, c, m)] += ds * at(&q, i, c, n);
                        wanted[2][place(j, c, m)] += p[j] * at(&dy, i, c, n);
                    }
                }
            }
        }
        let runs = Isa::available()
            .into_iter()
            .flat_map(|isa| [(isa, Products::F32), (isa, Products::Bf16)]);
        for (isa, products) in runs {
            let shape = AttentionShape { products, ..shape };
            let (tolerance, of_gradients) = if shape.by_tiles(isa, bias) {
                (4e-3, 1e-2)
            } else {
                (2e-6, 2e-6)
            };
            let what = |which: &str| format!("{which} of {shape:?}, bias {biased}, on {isa:?}");
            let (got, lse) = attention::forward(isa, &shape, &q, &k, &v, bias);
            assert_close(&what("output"), &got, &o, tolerance);
            assert_close(&what("logarithms of the sums"), &lse, &sums, 2e-6);
            let saved = Saved {
                q: &q,
                k: &k,
                v: &v,
                o: &got,
                lse: &lse,
                bias,
            };
            let got = attention::backward(isa, &shape, &saved, &dy);
            for (which, (got, wanted)) in ["q", "k", "v"].iter().zip(got.iter().zip(&wanted)) {
                assert_close(
                    &what(&format!("gradient of {which}")),
                    got,
                    wanted,
                    of_gradients,
                );
            }
        }
    }
}
