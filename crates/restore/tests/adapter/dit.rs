//! The transformer's adapter and LoRA.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, Device, Tensor};
use priors::{
    any::{AnyFlow, AnyPrior},
    flow::{Conditioning, Prior},
    mmdit::MmDit,
    nn::{Bare, Tap},
    weights::{Values, Weights},
};
use restore::{
    adapter::{
        AdapterConfig, BlockKind, DitAdapterConfig, LqFeatures, RestorationAdapter, Scale,
        UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, self_attention_targets, target_modules},
};
use serde_json::Value;

use crate::{
    bits,
    golden::{BLOCK, Golden, MODEL, formula_values},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden(name: &str) -> Golden {
    Golden::open(FOLDER, name)
}

fn prior(golden: &Golden, w: &Weights) -> AnyPrior {
    let mmdit = MmDit::from_json(&golden.config(), golden.path(), w).expect("supported");
    AnyPrior::MmDit(Box::new(mmdit))
}

fn config(after: &[usize]) -> AdapterConfig {
    AdapterConfig::Dit(DitAdapterConfig {
        after: after.to_vec(),
        width: 32,
    })
}

fn enter(prior: &AnyPrior, golden: &Golden, device: &Device) -> AnyFlow {
    let conditioning = Conditioning {
        text: golden.tensor("input.text", device),
        pooled: Some(golden.tensor("input.pooled", device)),
        time_ids: None,
    };
    prior.enter(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning,
    )
}

fn walk(prior: &AnyPrior, golden: &Golden, tap: &dyn Tap) -> Tensor<4> {
    let flow = enter(prior, golden, &Device::flex());
    let flow = (0..prior.segments()).fold(flow, |flow, i| prior.segment(i, flow, tap));
    prior.leave(flow)
}

fn with(
    prior: &AnyPrior,
    golden: &Golden,
    adapter: &RestorationAdapter,
    scale: &Scale,
) -> Tensor<4> {
    let device = Device::flex();
    let lq = adapter.lq_features(prior, &golden.tensor("input.lq", &device));
    adapter.forward(prior, enter(prior, golden, &device), &lq, scale, &Bare)
}

#[test]
fn every_adapter_is_that_of_torch() {
    let golden = golden("dit_adapter_tiny");
    let device = Device::flex();
    let w = Weights::formula(&device);
    let prior = prior(&golden, &w);
    let adapter = RestorationAdapter::new(config(&[0, 2]), &prior, &w).expect("fits");
    let lq = adapter.lq_features(&prior, &golden.tensor("input.lq", &device));
    let mut comparison = golden.compare();
    let LqFeatures::Tokens(tokens) = &lq else {
        panic!("a transformer's features are tokens");
    };
    for (i, tokens) in tokens.iter().enumerate() {
        comparison.see(&format!("lq.{i}"), tokens, BLOCK);
    }
    let mut flow = enter(&prior, &golden, &device);
    for i in 0..prior.segments() {
        // What enters an adapter or a block is the golden's, so that errors do not add up.
        let mut check = |flow: &mut AnyFlow, which: &str| {
            let AnyFlow::MmDit(at) = flow else {
                panic!("a transformer's flow");
            };
            let name = format!("transformer_blocks.{i}.{which}");
            comparison.see(&name, &at.image, BLOCK);
            at.image = golden.tensor(&name, &device);
        };
        flow = prior.segment(i, flow, &Bare);
        check(&mut flow, "bare");
        flow = adapter.after(i, flow, &lq, &Scale::All(1.0));
        check(&mut flow, "image");
    }
    comparison.finish(|name| name.starts_with("output"));
    let mut comparison = golden.compare();
    let whole = with(&prior, &golden, &adapter, &Scale::All(1.0));
    let half = with(&prior, &golden, &adapter, &Scale::All(0.5));
    comparison.see("output.sample", &whole, MODEL);
    comparison.see("output.scale_0.5", &half, MODEL);
    comparison.see("output.bare", &walk(&prior, &golden, &Bare), MODEL);
    comparison.finish(|name| !name.starts_with("output"));
}

#[test]
fn a_fresh_adapter_and_scale_zero_are_the_bare_prior_bit_for_bit() {
    let golden = golden("dit_adapter_tiny");
    let device = Device::flex();
    let prior = prior(&golden, &Weights::formula(&device));
    let plain = bits(walk(&prior, &golden, &Bare));
    let build = |w: &Weights| RestorationAdapter::new(config(&[0, 1, 2]), &prior, w).expect("fits");
    let fresh = build(&Weights::seeded(0, &device));
    assert!(bits(with(&prior, &golden, &fresh, &Scale::All(1.0))) == plain);
    let trained = build(&Weights::formula(&device));
    assert!(bits(with(&prior, &golden, &trained, &Scale::All(0.0))) == plain);
    assert!(bits(with(&prior, &golden, &trained, &Scale::All(1.0))) != plain);
    // A sample scaled to zero is the bare prior and its neighbour is not.
    let scale = Tensor::<4>::from_data([[[[0.0_f32]]], [[[1.0]]]], (&device, DType::F32));
    let mixed = with(&prior, &golden, &trained, &Scale::Each(scale));
    let bare = walk(&prior, &golden, &Bare);
    let sample = |x: &Tensor<4>, i| bits(x.clone().narrow(0, i, 1));
    assert!(sample(&mixed, 0) == sample(&bare, 0));
    assert!(sample(&mixed, 1) != sample(&bare, 1));
}

#[test]
fn an_adapter_of_another_prior_is_refused() {
    let golden = golden("dit_adapter_tiny");
    let device = Device::flex();
    let w = Weights::formula(&device);
    let prior = prior(&golden, &w);
    let wider = AdapterConfig::Dit(DitAdapterConfig {
        after: vec![0],
        width: 48,
    });
    let other = AdapterConfig::Unet(UnetAdapterConfig {
        block: BlockKind::D3,
        after: vec![0],
        lq_channels: 4,
        d_emb: 32,
        groups: 4,
    });
    for wrong in [config(&[3]), config(&[1, 0]), wider, other] {
        let refused = RestorationAdapter::new(wrong, &prior, &w);
        let why = refused.expect_err("does not fit").to_string();
        assert!(why.contains("use the adapter's own prior"), "{why}");
    }
}

#[test]
fn the_configuration_says_its_kind() {
    let text = r#"{"_class_name": "DitRestorationAdapter", "after": [0, 2], "width": 32}"#;
    let read: AdapterConfig = serde_json::from_str(text).expect("a transformer's");
    assert_eq!(read, config(&[0, 2]));
    let written: Value = serde_json::to_value(&read).expect("plain");
    assert_eq!(written["_class_name"], "DitRestorationAdapter");
    let stray = text.replace("width", "wide");
    assert!(serde_json::from_str::<AdapterConfig>(&stray).is_err());
}

#[test]
fn parameter_counts_at_the_size_of_sd3_are_those_of_the_paper() {
    let sd3 = include_str!("../../../priors/tests/configs/sd3_medium_transformer.json");
    let sd3 = serde_json::from_str(sd3).expect("JSON");
    let device = Device::flex();
    let w = Weights::blank(&device);
    let mmdit = MmDit::from_json(&sd3, Path::new("sd3"), &w).expect("supported");
    let prior = AnyPrior::MmDit(Box::new(mmdit));
    let lora_w = Weights::blank(&device);
    let lora = LoraConfig {
        rank: 32,
        alpha: 32.0,
    };
    Lora::new(&lora, &self_attention_targets(&w.shapes()), &lora_w).expect("fits");
    assert_eq!(lora_w.count(), 9_437_184);
    let config = AdapterConfig::Dit(DitAdapterConfig {
        after: vec![3, 7, 11, 15, 19, 23],
        width: 1536,
    });
    let w = Weights::blank(&device);
    RestorationAdapter::new(config, &prior, &w).expect("fits");
    assert_eq!(w.count() + lora_w.count(), 80_262_144);
}

/// LoRA's matrices by the formula under the names of the file, which begin with `transformer`.
fn lora(values: &Values, device: &Device) -> Lora {
    let shapes: BTreeMap<String, Vec<usize>> = values
        .iter()
        .map(|(name, v)| (name.clone(), v.shape().to_vec()))
        .collect();
    let w = Weights::formula(device).at("transformer");
    let config = LoraConfig {
        rank: 4,
        alpha: 4.0,
    };
    Lora::new(&config, &self_attention_targets(&shapes), &w).expect("formula")
}

#[test]
fn a_lora_through_the_tap_and_in_the_weights_is_that_of_peft() {
    let golden = golden("lora_mmdit_tiny");
    let device = Device::flex();
    let mut values = formula_values(&device, |w| drop(prior(&golden, w)));
    let lora = lora(&values, &device);
    let bare = prior(&golden, &Weights::from_values(values.clone(), &device));
    let mut comparison = golden.compare();
    comparison.see("output.bare", &walk(&bare, &golden, &Bare), MODEL);
    comparison.see("output.adapted", &walk(&bare, &golden, &lora), MODEL);
    for (name, delta) in lora.deltas() {
        let weight = values
            .get_mut(&format!("{name}.weight"))
            .expect("a target's weight");
        *weight = (Tensor::<2>::from_data(weight.clone(), &device) + delta).into_data();
    }
    let fused = prior(&golden, &Weights::from_values(values, &device));
    comparison.finish(|_| false);
    let mut comparison = golden.compare();
    comparison.see("output.adapted", &walk(&fused, &golden, &Bare), MODEL);
    comparison.finish(|name| name != "output.adapted");
}

#[test]
fn names_of_the_lora_file_that_diffusers_writes() {
    let golden = golden("lora_mmdit_tiny");
    let device = Device::flex();
    let blank = Weights::blank(&device);
    let prior = prior(&golden, &blank);
    let w = Weights::blank(&device);
    let config = LoraConfig {
        rank: 4,
        alpha: 4.0,
    };
    let prefix = prior.kind().folder();
    Lora::new(
        &config,
        &self_attention_targets(&blank.shapes()),
        &w.at(prefix),
    )
    .expect("blank");
    let text = std::fs::read(format!("{FOLDER}/lora_mmdit_tiny.json")).expect("the list of keys");
    let listed: Value = serde_json::from_slice(&text).expect("JSON");
    let keys: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(listed["keys"].clone()).expect("keys and shapes");
    assert_eq!(w.shapes(), keys);
    assert_eq!(target_modules(prior.kind())[3], "attn.to_out.0");
}
