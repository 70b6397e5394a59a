//! What we rely on in burn, and our operations through its tensors and its autodiff.

use burn::tensor::{
    Bytes, DType, Device, Distribution, FloatDType, Tensor, TensorData, module, ops::ConvOptions,
};
use kernels::{
    Activation, Mask, Padding, Products, add, attention, conv2d, geglu, gelu, gelu_tanh,
    group_norm, layer_norm, layer_norm_adaptive, linear, map_file, quick_gelu, rms_norm,
    shift_channels, silu, upsample_nearest, upsample_nearest2x, with_products,
};

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32 values")
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn assert_close<const D: usize>(what: &str, got: Tensor<D>, want: Tensor<D>, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let norm = want.iter().map(|w| w * w).sum::<f32>().sqrt();
    let off = got
        .iter()
        .zip(&want)
        .map(|(g, w)| (g - w).powi(2))
        .sum::<f32>()
        .sqrt();
    assert!(
        off <= tolerance * norm,
        "{what}: {off} > {tolerance} * {norm}"
    );
}

fn plain_conv(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>, stride: usize) -> Tensor<4> {
    module::conv2d(
        x,
        w,
        Some(b),
        ConvOptions::new([stride; 2], [1; 2], [1; 2], 1),
    )
}

#[test]
fn enlargement_repeats_and_its_gradient_sums() {
    let x = random([2, 3, 5, 7]);
    for [fy, fx] in [[2, 2], [1, 1], [3, 4], [1, 2]] {
        let own = x.clone().autodiff().require_grad();
        let burns = x.clone().autodiff().require_grad();
        let y1 = upsample_nearest(own.clone(), [fy, fx]);
        let y2 = (burns.clone().reshape([6, 5, 1, 7, 1]))
            .expand([6, 5, fy, 7, fx])
            .reshape([2, 3, 5 * fy, 7 * fx]);
        let plain = |y: &Tensor<4>| y.clone().without_autodiff();
        assert_eq!(values(plain(&y1)), values(plain(&y2)));
        let dy = random(y1.dims());
        let (g1, g2) = (
            (y1 * dy.clone()).sum().backward(),
            (y2 * dy).sum().backward(),
        );
        let grad = |t: &Tensor<4>, g| t.grad(g).expect("a gradient");
        assert_close("dx", grad(&own, &g1), grad(&burns, &g2), 1e-6);
    }
    let twice = upsample_nearest2x(x.clone());
    assert_eq!(values(twice), values(upsample_nearest(x, [2, 2])));
}

#[test]
fn sums_and_their_gradients_match_burns_own() {
    let (x, y, e) = (random([2, 5, 7, 9]), random([2, 5, 7, 9]), random([2, 5]));
    let leaves = || {
        let leaf = |t: &Tensor<4>| t.clone().autodiff().require_grad();
        (leaf(&x), leaf(&y), e.clone().autodiff().require_grad())
    };
    let (x1, y1, e1) = leaves();
    let (x2, y2, e2) = leaves();
    let own = shift_channels(add(x1.clone(), y1.clone()), e1.clone());
    let burns = x2.clone() + y2.clone() + e2.clone().unsqueeze_dims::<4>(&[2, 3]);
    let plain = |t: &Tensor<4>| t.clone().without_autodiff();
    assert_eq!(values(plain(&own)), values(plain(&burns)));
    // Used twice, so that gradients add up.
    let dy = random(own.dims());
    let g1 = (add(own.clone(), x1.clone()) * own * dy.clone())
        .sum()
        .backward();
    let g2 = ((burns.clone() + x2.clone()) * burns * dy).sum().backward();
    let grad = |t: &Tensor<4>, g| t.grad(g).expect("a gradient");
    assert_close("dx", grad(&x1, &g1), grad(&x2, &g2), 1e-6);
    assert_close("dy", grad(&y1, &g1), grad(&y2, &g2), 1e-6);
    let (e1, e2) = (
        e1.grad(&g1).expect("a gradient"),
        e2.grad(&g2).expect("a gradient"),
    );
    assert_close("de", e1, e2, 1e-6);
    // A constant operand, on either side.
    let leaf = x.clone().autodiff().require_grad();
    let g = add(y.clone(), leaf.clone()).sum().backward();
    assert_eq!(values(grad(&leaf, &g)), vec![1.0; 630]);
    let g = shift_channels(leaf.clone(), e.clone()).sum().backward();
    assert_eq!(values(grad(&leaf, &g)), vec![1.0; 630]);
}

/// The choice holds for the forward called inside and for its gradient, wherever that is made; not for what comes after.
#[test]
fn products_are_chosen_for_a_stretch_of_code() {
    let (x, w) = (random([2, 20, 9, 9]), random([30, 20, 3, 3]));
    let run = |products| {
        let leaf = x.clone().autodiff().require_grad();
        let y = with_products(products, || {
            conv2d(
                leaf.clone(),
                w.clone().autodiff(),
                None,
                1,
                Padding::same(1),
            )
        });
        let grads = y.clone().powi_scalar(2).sum().backward();
        (y.without_autodiff(), leaf.grad(&grads).expect("a gradient"))
    };
    let (y, dx) = run(Products::F32);
    let (rough, rough_dx) = run(Products::Bf16);
    assert_close("y", rough.clone(), y.clone(), 5e-3);
    assert_close("dx", rough_dx.clone(), dx.clone(), 1e-2);
    assert_ne!(values(rough), values(y.clone()));
    assert_ne!(values(rough_dx), values(dx));
    assert_eq!(
        values(conv2d(x.clone(), w.clone(), None, 1, Padding::same(1))),
        values(y)
    );
}

#[test]
fn conv2d_and_its_gradients_match_burns_own() {
    for (stride, size) in [(1, 16), (2, 16), (1, 9)] {
        let (x, w, b) = (
            random([2, 20, size, size]),
            random([30, 20, 3, 3]),
            random([30]),
        );
        let leaf = |x: &Tensor<4>| x.clone().autodiff().require_grad();
        let (x1, w1, b1) = (leaf(&x), leaf(&w), b.clone().autodiff().require_grad());
        let (x2, w2, b2) = (leaf(&x), leaf(&w), b.clone().autodiff().require_grad());
        let y1 = conv2d(
            x1.clone(),
            w1.clone(),
            Some(b1.clone()),
            stride,
            Padding::same(1),
        );
        let y2 = plain_conv(x2.clone(), w2.clone(), b2.clone(), stride);
        assert_close(
            "y",
            y1.clone().without_autodiff(),
            y2.clone().without_autodiff(),
            2e-6,
        );
        let dy = random(y1.dims());
        let g1 = (y1 * dy.clone()).sum().backward();
        let g2 = (y2 * dy).sum().backward();
        let grad = |t: &Tensor<4>, g| t.grad(g).expect("a gradient");
        assert_close("dx", grad(&x1, &g1), grad(&x2, &g2), 2e-6);
        assert_close("dw", grad(&w1, &g1), grad(&w2, &g2), 2e-6);
        let (b1, b2) = (
            b1.grad(&g1).expect("a gradient"),
            b2.grad(&g2).expect("a gradient"),
        );
        assert_close("db", b1, b2, 2e-6);
    }
}

#[test]
fn every_mix_of_constants_and_tracked_tensors_works() {
    let (x, w, b) = (random([1, 3, 8, 8]), random([4, 3, 3, 3]), random([4]));
    let want = conv2d(x.clone(), w.clone(), Some(b.clone()), 1, Padding::same(1));
    for mask in 0..27 {
        // Each tensor: without autodiff, a constant on the autodiff device, or tracked.
        let [kx, kw, kb] = [mask % 3, mask / 3 % 3, mask / 9];
        let lift = |t: &Tensor<4>, kind| match kind {
            0 => t.clone(),
            1 => t.clone().autodiff(),
            _ => t.clone().autodiff().require_grad(),
        };
        let (x, w) = (lift(&x, kx), lift(&w, kw));
        let b = match kb {
            0 => b.clone(),
            1 => b.clone().autodiff(),
            _ => b.clone().autodiff().require_grad(),
        };
        let y = conv2d(x.clone(), w.clone(), Some(b.clone()), 1, Padding::same(1));
        let got = if mask == 0 {
            y.clone()
        } else {
            y.clone().without_autodiff()
        };
        assert_eq!(values(got), values(want.clone()), "mask {mask}");
        if [kx, kw, kb].contains(&2) {
            let grads = y.sum().backward();
            assert_eq!(
                kx == 2,
                kx > 0 && x.grad(&grads).is_some(),
                "x, mask {mask}"
            );
            assert_eq!(
                kw == 2,
                kw > 0 && w.grad(&grads).is_some(),
                "w, mask {mask}"
            );
            assert_eq!(
                kb == 2,
                kb > 0 && b.grad(&grads).is_some(),
                "b, mask {mask}"
            );
        }
    }
}

#[test]
fn a_frozen_bf16_weight_serves_a_tracked_input() {
    let (x, w) = (random([2, 8, 8, 8]), random([12, 8, 3, 3]));
    let narrow = w.cast(FloatDType::BF16);
    let wide = narrow.clone().cast(FloatDType::F32);
    let run = |w: Tensor<4>| {
        let x = x.clone().autodiff().require_grad();
        let y = conv2d(x.clone(), w, None, 1, Padding::same(1));
        assert_eq!(y.dtype(), DType::F32);
        let grads = y.clone().square().sum().backward();
        (
            values(y.without_autodiff()),
            values(x.grad(&grads).expect("a gradient")),
        )
    };
    assert_eq!(
        with_products(Products::F32, || run(narrow.clone())),
        run(wide.clone())
    );
    // By itself such a weight may be multiplied as it is stored.
    let (got, want) = (run(narrow), run(wide));
    close("result", &got.0, &want.0, 1e-2);
    close("gradient", &got.1, &want.1, 1e-2);
}

/// Asserts that the difference is at most `tolerance` of the norm.
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
    let all = norm(&mut want.iter().copied());
    assert!(off <= tolerance * all, "{what}: {off} of {all}");
}

#[test]
fn a_tracked_bf16_weight_gets_a_bf16_gradient() {
    let x = random([1, 4, 8, 8]);
    let w = random([4, 4, 3, 3])
        .cast(FloatDType::BF16)
        .autodiff()
        .require_grad();
    let grads = conv2d(x, w.clone(), None, 1, Padding::same(1))
        .sum()
        .backward();
    assert_eq!(w.grad(&grads).expect("a gradient").dtype(), DType::BF16);
}

#[test]
fn views_are_read_in_their_own_order() {
    let x = random([1, 6, 8, 8]);
    let w = random([5, 6, 3, 3]);
    let view = x.clone().swap_dims(2, 3).slice([0..1, 1..4, 0..8, 2..7]);
    let part = w.clone().slice([0..5, 2..5, 0..3, 0..3]);
    let b = Tensor::zeros([5], &Device::flex());
    let got = conv2d(view.clone(), part.clone(), None, 1, Padding::same(1));
    assert_close("view", got, plain_conv(view, part, b, 1), 2e-6);
}

#[test]
fn group_norm_and_silu_match_burns_own_gradients() {
    let (x, w, b) = (random([2, 12, 5, 7]), random([12]), random([12]));
    let run = |fast: bool| {
        let x = x.clone().autodiff().require_grad();
        let w = w.clone().autodiff().require_grad();
        let b = b.clone().autodiff().require_grad();
        let y = if fast {
            group_norm(
                silu(x.clone()),
                3,
                w.clone(),
                b.clone(),
                1e-5,
                Activation::Silu,
            )
        } else {
            let rows = burn::tensor::activation::silu(x.clone()).reshape([6, 140]);
            let centred = rows.clone() - rows.mean_dim(1);
            let variance = centred.clone().square().mean_dim(1);
            let normal = (centred / (variance + 1e-5).sqrt()).reshape([2, 12, 5, 7]);
            let y = normal * w.clone().reshape([1, 12, 1, 1]) + b.clone().reshape([1, 12, 1, 1]);
            burn::tensor::activation::silu(y)
        };
        let grads = y.clone().powi_scalar(3).sum().backward();
        let grad = "a gradient";
        (
            y.without_autodiff(),
            x.grad(&grads).expect(grad),
            w.grad(&grads).expect(grad),
            b.grad(&grads).expect(grad),
        )
    };
    let (got, want) = (run(true), run(false));
    assert_close("y", got.0, want.0, 2e-6);
    assert_close("dx", got.1, want.1, 1e-5);
    assert_close("dw", got.2, want.2, 1e-5);
    assert_close("db", got.3, want.3, 1e-5);
}

#[test]
fn a_mapped_tensor_is_not_copied() {
    let path = std::env::temp_dir().join(format!("reclair-mapped-{}.bin", std::process::id()));
    let halves: Vec<u8> = (0..4096u16)
        .flat_map(|i| (0x3f80 + i % 64).to_le_bytes())
        .collect();
    std::fs::write(&path, &halves).expect("a temporary file");
    let map = map_file(&path).expect("a mapping");
    let range = map.as_ptr_range();
    let bytes = Bytes::from_shared(
        map.slice(64..64 + 2 * 1024),
        burn::tensor::AllocationProperty::File,
    );
    let data = TensorData::from_bytes(bytes, [4, 256], DType::BF16);
    let tensor = Tensor::<2>::from_data(data, (&Device::flex(), DType::BF16));
    let held = tensor.clone().into_data();
    drop(held);
    let bytes = tensor.into_data().into_parts().0;
    assert!(
        range.contains(&bytes.as_ptr()),
        "burn copied the mapped bytes"
    );
    assert_eq!(&bytes[..], &halves[64..64 + 2048]);
    std::fs::remove_file(path).expect("our own file");
}

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
fn attention_matches_burns_own() {
    for (n, m, d, mask) in [
        (70, 70, 16, Mask::None),
        (5, 90, 40, Mask::None),
        (77, 77, 8, Mask::Causal),
    ] {
        let inputs = [
            random([2, 3, n, d]),
            random([2, 3, m, d]),
            random([2, 3, m, d]),
        ];
        same_operation(
            &format!("attention {n} {m} {d}"),
            &inputs,
            &|t| attention(t[0].clone(), t[1].clone(), t[2].clone(), 0.7, mask),
            &|t| {
                let mut logits = (t[0].clone() * 0.7).matmul(t[1].clone().swap_dims(2, 3));
                if mask == Mask::Causal {
                    let hide = |at: usize| if at % m > at / m { -1e9 } else { 0.0 };
                    let bias: Vec<f32> = (0..n * m).map(hide).collect();
                    let bias = TensorData::new(bias, [1, 1, n, m]);
                    logits = logits + Tensor::from_data(bias, &Device::flex());
                }
                burn::tensor::activation::softmax(logits, 3).matmul(t[2].clone())
            },
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

#[test]
fn a_half_precision_weight_of_a_linear_map_is_used_as_stored() {
    let (x, w) = (random([9, 24]), random([11, 24]));
    for dtype in [FloatDType::BF16, FloatDType::F16] {
        let narrow = w.clone().cast(dtype);
        let wide = narrow.clone().cast(FloatDType::F32);
        let run = |w: Tensor<2>| {
            let x = x.clone().autodiff().require_grad();
            let y = linear(x.clone(), w, None);
            assert_eq!(y.dtype(), DType::F32);
            let grads = y.clone().square().sum().backward();
            (
                values(y.without_autodiff()),
                values(x.grad(&grads).expect("a gradient")),
            )
        };
        assert_eq!(
            with_products(Products::F32, || run(narrow.clone())),
            run(wide.clone())
        );
        let (got, want) = (run(narrow), run(wide));
        close("result", &got.0, &want.0, 1e-2);
        close("gradient", &got.1, &want.1, 1e-2);
    }
}
