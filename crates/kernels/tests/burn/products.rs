//! Convolutions and linear maps: how their products are made, and weights in 16 bit.

use burn::tensor::{DType, Device, FloatDType, Tensor, module, ops::ConvOptions};
use kernels::{LowRank, Padding, Products, conv2d, linear, linear_low_rank, with_products};

use super::{assert_close, gradient, random, values};

fn plain_conv(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>, stride: usize) -> Tensor<4> {
    module::conv2d(
        x,
        w,
        Some(b),
        ConvOptions::new([stride; 2], [1; 2], [1; 2], 1),
    )
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
        (y.without_autodiff(), gradient(&leaf, &grads))
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

/// `values` as half precision stores them.
fn rounded<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().cast(FloatDType::F16).cast(FloatDType::F32)
}

/// In half precision the operands of every product, the gradient's too, are rounded first and multiplied exactly then.
#[test]
fn half_precision_rounds_the_operands_and_nothing_else() {
    fn check<const X: usize, const W: usize>(
        x: Tensor<X>,
        w: Tensor<W>,
        f: impl Fn(Tensor<X>, Tensor<W>) -> Tensor<X>,
    ) {
        let run = |products, x: Tensor<X>, w: Tensor<W>, dy: Tensor<X>| {
            let (x, w) = (x.autodiff().require_grad(), w.autodiff().require_grad());
            let y = with_products(products, || f(x.clone(), w.clone()));
            let grads = (y.clone() * dy).sum().backward();
            let dw = w.grad(&grads).expect("tracked");
            (
                values(y.without_autodiff()),
                values(gradient(&x, &grads)),
                values(dw),
            )
        };
        let dy = random(f(x.clone(), w.clone()).dims());
        let half = run(Products::F16, x.clone(), w.clone(), dy.clone());
        let exact = run(Products::F32, rounded(&x), rounded(&w), rounded(&dy));
        assert_eq!(half, exact);
        assert_ne!(half, run(Products::F32, x, w, dy));
    }
    check(random([2, 20, 9, 9]), random([30, 20, 3, 3]), |x, w| {
        conv2d(x, w, None, 1, Padding::same(1))
    });
    check(random([2, 20, 9, 9]), random([30, 20, 1, 1]), |x, w| {
        conv2d(x, w, None, 1, Padding::same(0))
    });
    // Few rows, and enough of them for the weight to be packed.
    for rows in [9, 40] {
        check(random([rows, 24]), random([11, 24]), |x, w| {
            linear(x, w, None)
        });
    }
}

/// What is too large becomes infinite, and what is too small vanishes: what a loss scale is for.
#[test]
fn half_precision_has_its_range() {
    let device = Device::flex();
    let one = |v: f32| Tensor::<2>::from_floats([[v]], &device);
    let product = |a, b| with_products(Products::F16, || values(linear(one(a), one(b), None))[0]);
    assert_eq!(product(60_001.0, 2.0), 120_000.0);
    assert_eq!(product(70_000.0, 1.0), f32::INFINITY);
    assert_eq!(product(2e-8, 1.0), 0.0);
    assert!(product(1e-7, 1.0) > 0.0);
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
        assert_close("dx", gradient(&x1, &g1), gradient(&x2, &g2), 2e-6);
        assert_close("dw", gradient(&w1, &g1), gradient(&w2, &g2), 2e-6);
        assert_close("db", gradient(&b1, &g1), gradient(&b2, &g2), 2e-6);
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

/// `f` of a tracked input and a weight in 16 bit gives what it gives with the widened weight: the same bits where products
/// are of f32 values; by itself a bfloat16 weight may be multiplied as it is stored.
fn used_as_stored<const X: usize, const W: usize>(
    x: &Tensor<X>,
    narrow: Tensor<W>,
    f: impl Fn(Tensor<X>, Tensor<W>) -> Tensor<X>,
) {
    let run = |w: Tensor<W>| {
        let x = x.clone().autodiff().require_grad();
        let y = f(x.clone(), w);
        assert_eq!(y.dtype(), DType::F32);
        let grads = y.clone().square().sum().backward();
        [y.without_autodiff(), gradient(&x, &grads)]
    };
    let wide = run(narrow.clone().cast(FloatDType::F32));
    let exact = with_products(Products::F32, || run(narrow.clone()));
    assert_eq!(exact.map(values), wide.clone().map(values));
    let [[y, dx], [want_y, want_dx]] = [run(narrow), wide];
    assert_close("result", y, want_y, 1e-2);
    assert_close("gradient", dx, want_dx, 1e-2);
}

#[test]
fn a_frozen_bf16_weight_serves_a_tracked_input() {
    let w = random([12, 8, 3, 3]).cast(FloatDType::BF16);
    used_as_stored(&random([2, 8, 8, 8]), w, |x, w| {
        conv2d(x, w, None, 1, Padding::same(1))
    });
}

#[test]
fn a_low_rank_update_is_used_as_stored() {
    let ([n, d_in, d_out, rank], scale) = ([40, 70, 50, 8], 0.5);
    let (x, w, a, b) = (
        random([n, d_in]),
        random([d_out, d_in]),
        random([rank, d_in]),
        random([d_out, rank]),
    );
    for products in [Products::F32, Products::Bf16, Products::F16] {
        // Where types differ the update is a product of its own.
        for (narrow_w, narrow_b) in [(true, true), (true, false), (false, false)] {
            let stored = |t: &Tensor<2>, narrow: bool| match narrow {
                true => t.clone().cast(DType::BF16),
                false => t.clone(),
            };
            let (w, a) = (stored(&w, narrow_w), stored(&a, narrow_b));
            let b = stored(&b, narrow_b);
            let wide = |t: &Tensor<2>| t.clone().cast(DType::F32);
            let update = wide(&b).matmul(wide(&a)) * scale;
            let want = x.clone().matmul((wide(&w) + update).transpose());
            let got = with_products(products, || {
                linear_low_rank(x.clone(), w, None, LowRank { a, b, scale })
            });
            let tolerance = if products == Products::F32 {
                2e-6
            } else {
                1e-2
            };
            assert_close(
                &format!("{products:?} {narrow_w} {narrow_b}"),
                got,
                want,
                tolerance,
            );
        }
    }
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
    assert_eq!(gradient(&w, &grads).dtype(), DType::BF16);
}

#[test]
fn a_half_precision_weight_of_a_linear_map_is_used_as_stored() {
    let w = random([11, 24]);
    // Few rows, and enough of them for the weight to be packed.
    for rows in [9, 40] {
        let x = random([rows, 24]);
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            used_as_stored(&x, w.clone().cast(dtype), |x, w| linear(x, w, None));
        }
    }
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
