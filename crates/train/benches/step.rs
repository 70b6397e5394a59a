//! Time of a training step of mini's prior: `cargo bench --workspace --profile release --bench step`.
//!
//! Forward, squared error, backward on one tape and AdamW, for the U-Net of `recipes/mini/model`, 12 latents of 32x32.
//! `benches/peers/training_step.py` sets PyTorch beside it. `RECLAIR_KERNELS=off` gives burn's own operations.

#![expect(clippy::print_stdout, reason = "the table is the result")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use burn::tensor::{Device, Distribution, Tensor};
use kernels::{Products, with_products};
use priors::{
    any::AnyPrior,
    flow::Conditioning,
    unet::Unet,
    weights::{Values, Weights},
};
use train::{
    config::{Gradient, Optimise},
    optimise::{AdamW, Named},
    walk::{Inputs, Networks, Text, gradients},
};

const BATCH: usize = 12;
const SIDE: usize = 32;
const TOKENS: usize = 32;

fn networks(unet: &serde_json::Value, w: &Weights) -> Networks {
    let unet = Unet::from_json(unet, Path::new("mini"), w).expect("the recipe's configuration");
    Networks {
        prior: AnyPrior::Unet(Box::new(unet)),
        text_encoder: None,
        adapter: None,
        lora: None,
    }
}

fn main() {
    let device = Device::flex();
    device.seed(0);
    let config = include_str!("../../../recipes/mini/model/unet/config.json");
    let config: serde_json::Value = serde_json::from_str(config).expect("JSON");
    let w = Weights::seeded(0, &device);
    networks(&config, &w);
    let made = w.made();
    let random = |dims: [usize; 4]| Tensor::<4>::random(dims, Distribution::Default, &device);
    let latent = [BATCH, 16, SIDE, SIDE];
    let text = Tensor::random([BATCH, TOKENS, 128], Distribution::Default, &device);
    let inputs = Inputs {
        x: random(latent),
        t: Tensor::full([BATCH], 500.0, &device),
        text: Text::Encoded(Conditioning::of_text(text)),
        c_lq: random(latent),
        scale: restore::adapter::Scale::All(1.0),
    };
    let target = random(latent);
    let optimise: Optimise =
        toml::from_str("steps = 1\nbatch = 12\nlr = 1e-4\n").expect("an optimiser");
    println!(
        "{} parameters, {} threads",
        w.count(),
        rayon::current_num_threads()
    );
    for (name, products) in [("f32", Products::F32), ("bf16", Products::Bf16)] {
        let mut values: Named = made
            .iter()
            .map(|(name, data)| (name.clone(), data.try_to_vec::<f32>().expect("f32")))
            .collect();
        let mut optimiser = AdamW::default();
        let (mut best, mut losses) = (Duration::MAX, Vec::new());
        for _ in 0..8 {
            let start = Instant::now();
            let now: Values = made
                .iter()
                .map(|(name, data)| {
                    let shape = data.shape().clone();
                    let data = burn::tensor::TensorData::new(values[name].clone(), shape);
                    (name.clone(), data)
                })
                .collect();
            let w = Weights::tracked(now, &device);
            let taped = networks(&config, &w);
            let (loss, grads) = kernels::in_pool(|| {
                with_products(products, || {
                    gradients(&taped, &taped, &inputs, &w, Gradient::Whole, |y| {
                        (y - target.clone()).square().mean()
                    })
                })
            });
            optimiser.step(&mut values, &grads, 1e-4, &optimise);
            best = best.min(start.elapsed());
            losses.push(loss);
        }
        println!(
            "training step {name:5} {:.4} s, loss {:.6} to {:.6}",
            best.as_secs_f64(),
            losses[0],
            losses[losses.len() - 1]
        );
    }
}
