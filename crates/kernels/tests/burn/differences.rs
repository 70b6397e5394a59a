//! Gradients against finite differences: how a loss changes when an operand is moved a little along some direction.

use burn::tensor::{DType, Tensor};
use kernels::{
    Activation, Mask, Padding, add_gated, attention, attention_biased, conv2d, geglu, gelu,
    group_norm, layer_norm, linear, rms_norm, silu,
};

use super::{gradient, random, tokens, values};

/// How far an operand moves; operands are in -1..1.
const STEP: f64 = 1e-2;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    a.iter().zip(b).map(product).sum()
}

/// The loss is the sum of the result times some fixed weights.
fn check(name: &str, inputs: &[Tensor<4>], f: &dyn Fn(&[Tensor<4>]) -> Tensor<4>) {
    let dy = random(f(inputs).dims());
    let loss = |inputs: &[Tensor<4>]| dot(&values(f(inputs)), &values(dy.clone()));
    let lifted: Vec<_> = (inputs.iter())
        .map(|x| x.clone().autodiff().require_grad())
        .collect();
    let grads = (f(&lifted) * dy.clone()).sum().backward();
    for (i, (x, leaf)) in inputs.iter().zip(&lifted).enumerate() {
        let along = random(x.dims());
        let moved = |by: f64| {
            let mut inputs = inputs.to_vec();
            inputs[i] = x.clone() + along.clone() * by;
            loss(&inputs)
        };
        let measured = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let (got, along) = (values(gradient(leaf, &grads)), values(along));
        let size = (dot(&got, &got) * dot(&along, &along)).sqrt();
        let off = (dot(&got, &along) - measured).abs() / size;
        assert!(size > 0.0 && off < 1e-3, "operand {i} of {name}: {off}");
    }
}

#[test]
fn gradients_are_what_finite_differences_measure() {
    for (c_in, c_out, side, kernel, stride) in [
        (3, 5, 9, 3, 1),
        (40, 36, 20, 3, 1),
        (6, 4, 8, 3, 2),
        (5, 7, 6, 1, 1),
    ] {
        let inputs = [
            random([2, c_in, side, side]),
            random([c_out, c_in, kernel, kernel]),
            random([1, 1, 1, c_out]),
        ];
        check(&format!("convolution {c_in} to {c_out}"), &inputs, &|t| {
            let bias = t[2].clone().reshape([c_out]);
            conv2d(
                t[0].clone(),
                t[1].clone(),
                Some(bias),
                stride,
                Padding::same(kernel / 2),
            )
        });
    }
    let inputs = [
        random([1, 2, 9, 20]),
        random([1, 1, 30, 20]),
        random([1, 1, 1, 30]),
    ];
    check("linear map", &inputs, &|t| {
        let weight = t[1].clone().reshape([30, 20]);
        linear(t[0].clone(), weight, Some(t[2].clone().reshape([30])))
    });
    let inputs = [
        random([1, 2, 21, 72]),
        random([1, 2, 70, 72]),
        random([1, 2, 70, 72]),
    ];
    let bias = random([1, 3, 21, 70]);
    check("attention", &inputs, &|t| {
        let [q, k, v] = [&t[0], &t[1], &t[2]].map(tokens);
        attention(q, k, v, 3, 0.7, Mask::None, DType::F32).unsqueeze()
    });
    check("attention with a bias", &inputs, &|t| {
        let [q, k, v] = [&t[0], &t[1], &t[2]].map(tokens);
        attention_biased(q, k, v, 0.7, bias.clone()).unsqueeze()
    });
    let inputs = [
        random([1, 2, 21, 24]),
        random([1, 1, 2, 24]),
        random([1, 2, 21, 24]),
    ];
    check("gated sum", &inputs, &|t| {
        let gate = t[1].clone().reshape([2, 24]);
        add_gated(tokens(&t[0]), gate, tokens(&t[2])).unsqueeze()
    });
    let inputs = [
        random([2, 12, 7, 6]),
        random([1, 1, 1, 12]),
        random([1, 1, 1, 12]),
    ];
    check("group norm and SiLU", &inputs, &|t| {
        let [w, b] = [&t[1], &t[2]].map(|t| t.clone().reshape([12]));
        group_norm(t[0].clone(), 4, w, b, 1e-5, Activation::Silu)
    });
    let inputs = [
        random([2, 3, 5, 18]),
        random([1, 1, 1, 18]),
        random([1, 1, 1, 18]),
    ];
    check("layer norm", &inputs, &|t| {
        let [w, b] = [&t[1], &t[2]].map(|t| t.clone().reshape([18]));
        layer_norm(t[0].clone(), Some(w), Some(b), 1e-5)
    });
    check("RMS norm", &inputs[..2], &|t| {
        rms_norm(t[0].clone(), Some(t[1].clone().reshape([18])), 1e-5)
    });
    let x = [random([2, 3, 5, 18])];
    check("SiLU", &x, &|t| silu(t[0].clone()));
    check("GELU", &x, &|t| gelu(t[0].clone()));
    check("GEGLU", &x, &|t| geglu(t[0].clone()));
}
