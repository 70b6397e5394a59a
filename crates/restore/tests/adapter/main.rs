//! The adapters' laws: what they leave alone, what they count, how they are stored; and both against PyTorch.

#[path = "../../../priors/tests/golden/mod.rs"]
mod golden;

mod controlnet;
mod dit;
mod stored;
mod unet;

use burn::tensor::{DType, Device, Tensor, TensorData};

fn field<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<D> {
    let n: usize = shape.iter().product();
    let value = |i: usize| {
        let x = (i as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(seed.wrapping_mul(97_531));
        f64::from(x ^ (x >> 15)) / 2_147_483_648.0 - 1.0
    };
    let values: Vec<f32> = (0..n).map(|i| value(i) as f32).collect();
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Device::flex(), DType::F32),
    )
}

fn bits(x: Tensor<4>) -> Vec<u32> {
    x.into_data()
        .try_into_vec::<f32>()
        .expect("f32")
        .into_iter()
        .map(f32::to_bits)
        .collect()
}
