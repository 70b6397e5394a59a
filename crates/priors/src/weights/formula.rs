//! Weights from an integer formula of tensor name and index, the same in `tests/golden/formula.py`.
//!
//! They let a golden hold inputs and outputs only. Not random enough to train from.

use burn::tensor::TensorData;

/// The tensor `name` of `shape` in f32.
pub(super) fn data(name: &str, shape: &[usize]) -> TensorData {
    let n = shape.iter().product::<usize>();
    let hash = name.bytes().fold(0x811c_9dc5_u32, |h, byte| {
        (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let fan_in = shape[1..].iter().product::<usize>() as f64;
    let value = |i: usize| {
        let s = 2.0 * unit(hash, i as u32) - 1.0;
        if shape.len() < 2 {
            return if name.ends_with("weight") {
                1.0 + 0.1 * s
            } else {
                0.1 * s
            };
        }
        if name.contains("embedding.weight") {
            0.5 * s
        } else {
            s * (3.0 / fan_in).sqrt()
        }
    };
    TensorData::new(
        (0..n).map(|i| value(i) as f32).collect::<Vec<_>>(),
        shape.to_vec(),
    )
}

fn unit(hash: u32, i: u32) -> f64 {
    let mut x = hash.wrapping_add(i.wrapping_mul(2_654_435_761));
    x ^= x >> 15;
    x = x.wrapping_mul(2_246_822_519);
    x ^= x >> 13;
    x = x.wrapping_mul(3_266_489_917);
    x ^= x >> 16;
    f64::from(x) / 4_294_967_296.0
}
