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

/// Attention of `q` `[b, k, n, d]` over `key` and `value` `[b, k, m, d]`, giving `[b, k, n, d]`.
///
/// `scale` multiplies the logits, usually `d^-1/2`. `weights` is the type of the weights that made the operands: it decides
/// how products are made, as in [`linear`](crate::linear()) ([`Products`](crate::Products)), on machines with matrix tiles and without a
/// mask; elsewhere they are of f32 values. The softmax always is in f32.
pub fn attention(
    q: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f64,
    mask: Mask,
    weights: DType,
) -> Tensor<4> {
    let [b, heads, n, d] = q.dims();
    let m = key.dims()[2];
    crate::refuse_empty("attention", &[b, heads, n, d, m]);
    if extension::is_fast(&q) {
        let shape = AttentionShape {
            heads: b * heads,
            n,
            m,
            d,
            scale: scale as f32,
            causal: mask == Mask::Causal,
            products: products::of(weights),
        };
        return extension::attention(q, key, value, shape);
    }
    attention_plain(q, key, value, scale, mask)
}

/// [`attention`] with `bias` `[1, k, n, m]` added to the scaled logits, the same for the whole batch, as T5's relative
/// positions are. The bias is a constant: it gets no gradient.
pub fn attention_biased(
    q: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f64,
    bias: Tensor<4>,
) -> Tensor<4> {
    let [b, heads, n, d] = q.dims();
    let m = key.dims()[2];
    crate::refuse_empty("attention", &[b, heads, n, d, m]);
    assert_eq!(bias.dims(), [1, heads, n, m], "the bias of attention");
    if extension::is_fast(&q) && bias.dtype() == DType::F32 {
        let shape = AttentionShape {
            heads: b * heads,
            n,
            m,
            d,
            scale: scale as f32,
            causal: false,
            products: Products::F32,
        };
        return extension::attention_biased(q, key, value, bias, shape);
    }
    let logits = (q * scale).matmul(key.swap_dims(2, 3)) + bias.detach();
    softmax(logits, 3).matmul(value)
}

/// [`attention`] by burn's own operations.
fn attention_plain(
    q: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f64,
    mask: Mask,
) -> Tensor<4> {
    let [_, _, n, _] = q.dims();
    let m = key.dims()[2];
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
    softmax(logits, 3).matmul(value)
}
