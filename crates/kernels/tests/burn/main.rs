//! What we rely on in burn, and our operations through its tensors and its autodiff.

mod differences;
mod laws;
mod mixes;
mod products;

use burn::tensor::{Bytes, DType, Device, Distribution, Gradients, Tensor, TensorData};
use kernels::{
    Activation, add, group_norm, map_file, shift_channels, silu, upsample_nearest,
    upsample_nearest2x,
};

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32 values")
}

/// Tokens `[1, b, n, d]` as `[b, n, d]`.
fn tokens(x: &Tensor<4>) -> Tensor<3> {
    x.clone().squeeze_dim(0)
}

/// Tokens `[1, b, n, k d]` in heads, `[b, k, n, d]`.
fn in_heads(x: &Tensor<4>, heads: usize) -> Tensor<4> {
    let [_, b, n, width] = x.dims();
    let x = x.clone().reshape([b, n, heads, width / heads]);
    x.swap_dims(1, 2)
}

/// The opposite of [`in_heads`].
fn joined(x: Tensor<4>) -> Tensor<4> {
    let [b, heads, n, d] = x.dims();
    x.swap_dims(1, 2).reshape([1, b, n, heads * d])
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

/// The gradient of a tracked tensor.
fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &Gradients) -> Tensor<D> {
    leaf.grad(grads).expect("a gradient")
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
        assert_close("dx", gradient(&own, &g1), gradient(&burns, &g2), 1e-6);
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
    assert_close("dx", gradient(&x1, &g1), gradient(&x2, &g2), 1e-6);
    assert_close("dy", gradient(&y1, &g1), gradient(&y2, &g2), 1e-6);
    assert_close("de", gradient(&e1, &g1), gradient(&e2, &g2), 1e-6);
    // A sum is written over an operand that nothing else looks at.
    let [x4, y4] = [&x, &y].map(|t| t.clone() * 1.0);
    let kept = x4.clone();
    let (sum, both) = (values(add(x4, y4.clone())), values(add(kept.clone(), y4)));
    assert_eq!((sum, values(kept)), (both, values(x.clone())));
    assert_eq!(
        values(add(y.clone() * 1.0, x.clone())),
        values(x.clone() + y.clone())
    );
    // A constant operand, on either side.
    let leaf = x.clone().autodiff().require_grad();
    let g = add(y.clone(), leaf.clone()).sum().backward();
    assert_eq!(values(gradient(&leaf, &g)), vec![1.0; 630]);
    let g = shift_channels(leaf.clone(), e.clone()).sum().backward();
    assert_eq!(values(gradient(&leaf, &g)), vec![1.0; 630]);
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
