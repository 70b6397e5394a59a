//! Parity with PEFT's LoRA inside diffusers' U-Net. The goldens were computed in f64 (`golden/lora.py`).

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use golden::{Golden, MODEL, formula_values};
use priors::{
    flow::{Conditioning, Prior},
    nn::{Bare, Tap},
    unet::Unet,
    weights::{Values, Weights},
};
use restore::lora::{Lora, LoraConfig, Target, self_attention_targets};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden() -> Golden {
    Golden::open(FOLDER, "lora_unet_tiny")
}

fn unet(golden: &Golden, weights: &Weights) -> Unet {
    Unet::from_json(&golden.config(), golden.path(), weights)
        .expect("the golden's config is supported")
}

fn targets(values: &Values) -> Vec<Target> {
    let shapes: BTreeMap<String, Vec<usize>> = values
        .iter()
        .map(|(name, v)| (name.clone(), v.shape().to_vec()))
        .collect();
    self_attention_targets(&shapes)
}

/// LoRA's matrices by the formula under the names of the file, which begin with `unet`.
fn lora(alpha: f64, targets: &[Target], device: &Device) -> Lora {
    Lora::new(
        &LoraConfig { rank: 4, alpha },
        targets,
        &Weights::formula(device).at("unet"),
    )
    .expect("formula")
}

fn run(golden: &Golden, unet: &Unet, tap: &dyn Tap, device: &Device) -> Tensor<4> {
    let conditioning = Conditioning {
        text: golden.tensor("input.text", device),
        pooled: Some(golden.tensor("input.pooled", device)),
        time_ids: Some(golden.tensor("input.time_ids", device)),
    };
    unet.forward(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning,
        tap,
    )
}

#[test]
fn a_lora_through_the_tap_and_in_the_weights() {
    let golden = golden();
    let device = Device::flex();
    let mut values = formula_values(&device, |w| drop(unet(&golden, w)));
    let targets = targets(&values);
    let bare = unet(&golden, &Weights::from_values(values.clone(), &device));
    let full = lora(4.0, &targets, &device);
    let half = full.clone().with_strength(0.5);
    let mut comparison = golden.compare();
    comparison.see("output.bare", &run(&golden, &bare, &Bare, &device), MODEL);
    comparison.see(
        "output.adapted",
        &run(&golden, &bare, &full, &device),
        MODEL,
    );
    comparison.see(
        "output.scale_0.5",
        &run(&golden, &bare, &half, &device),
        MODEL,
    );
    comparison.see(
        "output.alpha_2",
        &run(&golden, &bare, &lora(2.0, &targets, &device), &device),
        MODEL,
    );
    for (name, delta) in full.deltas() {
        let weight = values
            .get_mut(&format!("{name}.weight"))
            .expect("a target's weight");
        let sum = Tensor::<2>::from_data(weight.clone(), &device) + delta;
        *weight = sum.into_data();
    }
    let fused = unet(&golden, &Weights::from_values(values, &device));
    comparison.see("output.fused", &run(&golden, &fused, &Bare, &device), MODEL);
    comparison.finish(|_| false);
}

#[test]
fn names_and_shapes_of_the_file_that_diffusers_writes() {
    let golden = golden();
    let device = Device::flex();
    let targets = targets(&formula_values(&device, |w| drop(unet(&golden, w))));
    let weights = Weights::blank(&device);
    Lora::new(
        &LoraConfig {
            rank: 4,
            alpha: 4.0,
        },
        &targets,
        &weights.at("unet"),
    )
    .expect("blank");
    let text = std::fs::read(format!("{FOLDER}/lora_unet_tiny.json")).expect("the list of keys");
    let listed: Value = serde_json::from_slice(&text).expect("JSON");
    let peft: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(listed["peft"].clone()).expect("keys and shapes");
    assert_eq!(weights.shapes(), peft);
}
