//! Scaled dot-product attention, `softmax(q kT * scale + mask) v`.

use burn::tensor::{DType, Tensor, TensorData, activation::softmax};

use crate::{Products, extension, fast::attention::AttentionShape, products};

/// Which keys a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Every key.
    None,
    /// Keys up to the query's own position (text encoders).
    Causal,
}

/// Attention of `q` `[b, n, k d]` over `key` and `value` `[b, m, k d]` in `heads` `k`, side by side in each token, giving
/// `[b, n, k d]`.
///
/// `scale` multiplies the logits, usually `d^-1/2`. `weights` is the type of the weights that made the operands: it decides
/// how products are made, as in [`linear`](crate::linear()) ([`Products`](crate::Products)), on machines with matrix tiles and without a
/// mask; elsewhere they are of f32 values. The softmax always is in f32.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(
    q: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
    scale: f64,
    mask: Mask,
    weights: DType,
) -> Tensor<3> {
    let shape = AttentionShape {
        causal: mask == Mask::Causal,
        products: products::of(weights),
        ..shape("attention", &q, [&key, &value], heads, scale)
    };
    if extension::is_fast(&q) {
        return extension::attention(q, key, value, shape);
    }
    attention_plain(q, key, value, heads, scale, mask)
}

/// [`attention`] with `bias` `[1, k, n, m]` added to the scaled logits, the same for the whole batch, as T5's relative
/// positions are. The bias is a constant: it gets no gradient.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention_biased(
    q: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    scale: f64,
    bias: Tensor<4>,
) -> Tensor<3> {
    let heads = bias.dims()[1];
    let shape = shape("attention_biased", &q, [&key, &value], heads, scale);
    assert_eq!(
        bias.dims(),
        [1, heads, shape.n, shape.m],
        "the bias of attention"
    );
    if extension::is_fast(&q) && bias.dtype() == DType::F32 {
        return extension::attention_biased(q, key, value, bias, shape);
    }
    let [q, key, value] = [q, key, value].map(|x| split(x, heads));
    let logits = (q * scale).matmul(key.swap_dims(2, 3)) + bias.detach();
    join(softmax(logits, 3).matmul(value))
}

/// The shape, of f32 products without a mask.
fn shape(
    what: &str,
    q: &Tensor<3>,
    [key, value]: [&Tensor<3>; 2],
    heads: usize,
    scale: f64,
) -> AttentionShape {
    let [b, n, width] = q.dims();
    let m = key.dims()[1];
    crate::refuse_empty(what, &[b, heads, n, m, width]);
    assert!(
        width.is_multiple_of(heads),
        "{what}: {heads} heads do not divide width {width}"
    );
    assert_eq!(key.dims(), [b, m, width], "{what}: the keys");
    assert_eq!(value.dims(), [b, m, width], "{what}: the values");
    AttentionShape {
        images: b,
        heads,
        n,
        m,
        d: width / heads,
        scale: scale as f32,
        causal: false,
        products: Products::F32,
    }
}

/// `[b, n, k d]` as `[b, k, n, d]`.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [b, n, width] = x.dims();
    x.reshape([b, n, heads, width / heads]).swap_dims(1, 2)
}

/// `[b, k, n, d]` as `[b, n, k d]`.
fn join(x: Tensor<4>) -> Tensor<3> {
    let [b, heads, n, d] = x.dims();
    x.swap_dims(1, 2).reshape([b, n, heads * d])
}

/// [`attention`] by burn's own operations.
fn attention_plain(
    q: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
    scale: f64,
    mask: Mask,
) -> Tensor<3> {
    let ([_, n, _], [_, m, _]) = (q.dims(), key.dims());
    let [q, key, value] = [q, key, value].map(|x| split(x, heads));
    let mut logits = (q * scale).matmul(key.swap_dims(2, 3)); // [b, k, n, m]
    if mask == Mask::Causal {
        let hidden: Vec<f32> = (0..n * m)
            .map(|at| {
                if at % m > at / m {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            })
            .collect();
        let bias = Tensor::<4>::from_data(
            TensorData::new(hidden, [1, 1, n, m]),
            (&logits.device(), DType::F32),
        );
        logits = logits + bias;
    }
    join(softmax(logits, 3).matmul(value))
}
