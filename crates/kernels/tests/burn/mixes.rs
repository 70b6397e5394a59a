//! Operations beside burn's own, for every mix of plain, constant and tracked operands.

use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::{
    LowRank, Mask, add_gated, attention, attention_biased, cat, geglu, gelu, gelu_tanh, layer_norm,
    layer_norm_adaptive, linear, linear_low_rank, quick_gelu, rms_norm, silu,
};

use super::{assert_close, in_heads, joined, random, tokens, values};

/// Runs `f` on tracked copies of `inputs` (those in `frozen` untracked): its output and the gradients of
/// the sum of its cubes.
fn trace(
    inputs: &[Tensor<4>],
    kinds: &[Kind],
    f: &dyn Fn(&[Tensor<4>]) -> Tensor<4>,
) -> (Tensor<4>, Vec<Option<Tensor<4>>>) {
    let lifted: Vec<_> = inputs
        .iter()
        .zip(kinds)
        .map(|(x, kind)| match kind {
            Kind::Plain => x.clone(),
            Kind::Constant => x.clone().autodiff(),
            Kind::Tracked => x.clone().autodiff().require_grad(),
        })
        .collect();
    let y = f(&lifted);
    if kinds.iter().all(|kind| *kind == Kind::Plain) {
        return (y, vec![None; inputs.len()]);
    }
    let plain = y.clone().without_autodiff();
    if !kinds.contains(&Kind::Tracked) {
        return (plain, vec![None; inputs.len()]);
    }
    let grads = y.powi_scalar(3).sum().backward();
    let grads = lifted
        .iter()
        .zip(kinds)
        .map(|(x, kind)| match kind {
            Kind::Plain => None,
            _ => x.grad(&grads),
        })
        .collect();
    (plain, grads)
}

/// How a tensor enters an operation.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Without autodiff.
    Plain,
    /// On the autodiff device, without a gradient.
    Constant,
    /// With a gradient.
    Tracked,
}

/// `fast` and `plain` agree in output and gradients, and `fast` gives the same with every mix of kinds.
fn same_operation(
    what: &str,
    inputs: &[Tensor<4>],
    fast: &dyn Fn(&[Tensor<4>]) -> Tensor<4>,
    plain: &dyn Fn(&[Tensor<4>]) -> Tensor<4>,
) {
    let tracked = vec![Kind::Tracked; inputs.len()];
    let (got, got_grads) = trace(inputs, &tracked, fast);
    let (want, want_grads) = trace(inputs, &tracked, plain);
    assert_close(what, got.clone(), want, 2e-6);
    let pairs = got_grads.iter().zip(want_grads).enumerate();
    for (i, (got, want)) in pairs {
        let got = got.clone().expect("a gradient");
        assert_close(
            &format!("{what}, gradient {i}"),
            got,
            want.expect("a gradient"),
            1e-5,
        );
    }
    let kinds = [Kind::Plain, Kind::Constant, Kind::Tracked];
    for mix in 0..3usize.pow(inputs.len() as u32) {
        let mixed: Vec<_> = (0..inputs.len() as u32)
            .map(|i| kinds[mix / 3usize.pow(i) % 3])
            .collect();
        let (y, grads) = trace(inputs, &mixed, fast);
        assert_eq!(values(y), values(got.clone()), "{what}, mix {mix}");
        for (i, (grad, kind)) in grads.into_iter().zip(&mixed).enumerate() {
            let want = (*kind == Kind::Tracked).then(|| got_grads[i].clone().expect("a gradient"));
            assert_eq!(
                grad.map(values),
                want.map(values),
                "{what}, mix {mix}, gradient {i}"
            );
        }
    }
}

#[test]
fn linear_matches_burns_own() {
    for (n, d_in, d_out) in [(37, 48, 40), (1, 7, 5), (130, 33, 96)] {
        let inputs = [
            random([1, 1, n, d_in]),
            random([1, 1, d_out, d_in]),
            random([1, 1, 1, d_out]),
        ];
        same_operation(
            &format!("linear {n} {d_in} {d_out}"),
            &inputs,
            &|t| {
                let weight = t[1].clone().reshape([d_out, d_in]);
                linear(t[0].clone(), weight, Some(t[2].clone().reshape([d_out])))
            },
            &|t| t[0].clone().matmul(t[1].clone().swap_dims(2, 3)) + t[2].clone(),
        );
    }
}

#[test]
fn a_low_rank_update_matches_burns_own() {
    for (n, d_in, d_out, rank, scale) in [
        (37, 48, 40, 4, 1.0),
        (3, 20, 9, 2, 0.5),
        (130, 33, 96, 32, -2.0),
    ] {
        let inputs = [
            random([1, 1, n, d_in]),
            random([1, 1, d_out, d_in]),
            random([1, 1, 1, d_out]),
            random([1, 1, rank, d_in]),
            random([1, 1, d_out, rank]),
        ];
        let matrix = |t: &Tensor<4>| {
            let [.., rows, columns] = t.dims();
            t.clone().reshape([rows, columns])
        };
        same_operation(
            &format!("linear {n} {d_in} {d_out} with an update of rank {rank}"),
            &inputs,
            &|t| {
                let [weight, a, b] = [&t[1], &t[3], &t[4]].map(matrix);
                let bias = Some(t[2].clone().reshape([d_out]));
                linear_low_rank(t[0].clone(), weight, bias, LowRank { a, b, scale })
            },
            &|t| {
                let y = t[0].clone().matmul(t[1].clone().swap_dims(2, 3)) + t[2].clone();
                let low = t[0].clone().matmul(t[3].clone().swap_dims(2, 3));
                y + low.matmul(t[4].clone().swap_dims(2, 3)) * scale
            },
        );
    }
}

#[test]
fn attention_with_a_bias_matches_burns_own() {
    let (n, m, d) = (37, 70, 24);
    let inputs = [
        random([1, 2, n, 3 * d]),
        random([1, 2, m, 3 * d]),
        random([1, 2, m, 3 * d]),
    ];
    let values = (0..3 * n * m)
        .map(|i| (i * 37 % 101) as f32 / 40.0 - 1.0)
        .collect();
    let bias = Tensor::<4>::from_data(
        TensorData::new::<f32, _>(values, [1, 3, n, m]),
        &Device::flex(),
    );
    same_operation(
        "attention with a bias",
        &inputs,
        &|t| {
            let [q, k, v] = [&t[0], &t[1], &t[2]].map(tokens);
            attention_biased(q, k, v, 0.7, bias.clone()).unsqueeze()
        },
        &|t| {
            let [q, k, v] = [&t[0], &t[1], &t[2]].map(|x| in_heads(x, 3));
            let logits = (q * 0.7).matmul(k.swap_dims(2, 3));
            joined(burn::tensor::activation::softmax(logits + bias.clone(), 3).matmul(v))
        },
    );
}

#[test]
fn attention_matches_burns_own() {
    for (heads, n, m, d, mask) in [
        (3, 70, 70, 16, Mask::None),
        (3, 5, 90, 40, Mask::None),
        (1, 40, 50, 48, Mask::None),
        (3, 77, 77, 8, Mask::Causal),
    ] {
        let inputs = [
            random([1, 2, n, heads * d]),
            random([1, 2, m, heads * d]),
            random([1, 2, m, heads * d]),
        ];
        same_operation(
            &format!("attention {heads} {n} {m} {d}"),
            &inputs,
            &|t| {
                let [q, k, v] = [&t[0], &t[1], &t[2]].map(tokens);
                attention(q, k, v, heads, 0.7, mask, DType::F32).unsqueeze()
            },
            &|t| {
                let [q, k, v] = [&t[0], &t[1], &t[2]].map(|x| in_heads(x, heads));
                let mut logits = (q * 0.7).matmul(k.swap_dims(2, 3));
                if mask == Mask::Causal {
                    let hide = |at: usize| if at % m > at / m { -1e9 } else { 0.0 };
                    let bias: Vec<f32> = (0..n * m).map(hide).collect();
                    let bias = TensorData::new(bias, [1, 1, n, m]);
                    logits = logits + Tensor::from_data(bias, &Device::flex());
                }
                joined(burn::tensor::activation::softmax(logits, 3).matmul(v))
            },
        );
    }
}

#[test]
fn gated_sums_match_burns_own() {
    // Rows longer and shorter than a task's values.
    for (b, n, d) in [(2, 21, 37), (3, 700, 48), (1, 2, 20_000)] {
        let inputs = [
            random([1, b, n, d]),
            random([1, 1, b, d]),
            random([1, b, n, d]),
        ];
        same_operation(
            &format!("gated sum {b} {n} {d}"),
            &inputs,
            &|t| {
                let gate = t[1].clone().reshape([b, d]);
                add_gated(tokens(&t[0]), gate, tokens(&t[2])).unsqueeze()
            },
            &|t| t[0].clone() + t[1].clone().reshape([1, b, 1, d]) * t[2].clone(),
        );
    }
}

#[test]
fn one_after_another_matches_burns_own() {
    for (b, c, e, plane) in [(1, 3, 5, [7, 2]), (3, 40, 9, [30, 20])] {
        let inputs = [
            random([b, c, plane[0], plane[1]]),
            random([b, e, plane[0], plane[1]]),
        ];
        same_operation(
            &format!("cat {b} {c} {e}"),
            &inputs,
            &|t| cat(t[0].clone(), t[1].clone()),
            &|t| Tensor::cat(vec![t[0].clone(), t[1].clone()], 1),
        );
    }
}

/// Rows of the last axis, centred or not, over their root mean square.
fn normal_rows(x: Tensor<4>, centre: bool) -> Tensor<4> {
    let x = if centre { x.clone() - x.mean_dim(3) } else { x };
    x.clone() / (x.square().mean_dim(3) + 1e-5).sqrt()
}

#[test]
fn row_norms_match_burns_own() {
    let (b, n, d) = (3, 5, 37);
    let last = |x: &Tensor<4>| x.clone().reshape([d]);
    let inputs = [
        random([1, b, n, d]),
        random([1, 1, 1, d]),
        random([1, 1, 1, d]),
    ];
    same_operation(
        "layer norm",
        &inputs,
        &|t| layer_norm(t[0].clone(), Some(last(&t[1])), Some(last(&t[2])), 1e-5),
        &|t| normal_rows(t[0].clone(), true) * t[1].clone() + t[2].clone(),
    );
    same_operation(
        "layer norm without weights",
        &inputs[..1],
        &|t| layer_norm(t[0].clone(), None, None, 1e-5),
        &|t| normal_rows(t[0].clone(), true),
    );
    same_operation(
        "rms norm",
        &inputs[..2],
        &|t| rms_norm(t[0].clone(), Some(last(&t[1])), 1e-5),
        &|t| normal_rows(t[0].clone(), false) * t[1].clone(),
    );
    let inputs = [
        random([1, b, n, d]),
        random([1, b, 1, d]),
        random([1, b, 1, d]),
    ];
    let each = |x: &Tensor<4>| x.clone().reshape([b, d]);
    same_operation(
        "adaptive layer norm",
        &inputs,
        &|t| {
            let x = t[0].clone().reshape([b, n, d]);
            layer_norm_adaptive(x, each(&t[1]), each(&t[2]), 1e-5).reshape([1, b, n, d])
        },
        &|t| normal_rows(t[0].clone(), true) * (t[1].clone() + 1.0) + t[2].clone(),
    );
}

#[test]
fn activations_match_burns_own() {
    use burn::tensor::activation;
    let inputs = [random([2, 3, 5, 26]) * 3.0];
    same_operation("silu", &inputs, &|t| silu(t[0].clone()), &|t| {
        t[0].clone() * activation::sigmoid(t[0].clone())
    });
    same_operation("gelu", &inputs, &|t| gelu(t[0].clone()), &|t| {
        t[0].clone() * ((t[0].clone() * 0.5f64.sqrt()).erf() + 1.0) * 0.5
    });
    same_operation("gelu_tanh", &inputs, &|t| gelu_tanh(t[0].clone()), &|t| {
        let x = t[0].clone();
        let cubic = x.clone() + x.clone() * x.clone() * x.clone() * 0.044_715;
        x * ((cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0) * 0.5
    });
    same_operation("quick_gelu", &inputs, &|t| quick_gelu(t[0].clone()), &|t| {
        t[0].clone() * activation::sigmoid(t[0].clone() * 1.702)
    });
    same_operation("geglu", &inputs, &|t| geglu(t[0].clone()), &|t| {
        let (h, gate) = (
            t[0].clone().narrow(3, 0, 13),
            t[0].clone().narrow(3, 13, 13),
        );
        h * gate.clone() * ((gate * 0.5f64.sqrt()).erf() + 1.0) * 0.5
    });
}
