//! The U-Net's adapter.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use priors::{
    any::{AnyFlow, AnyPrior},
    flow::{Conditioning, Prior},
    nn::Bare,
    unet::Unet,
    weights::{Precision, Weights, save_safetensors},
};
use restore::{
    adapter::{AdapterConfig, BlockKind, LqFeatures, RestorationAdapter, Scale, UnetAdapterConfig},
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde_json::{Value, json};

use crate::{
    bits, field,
    golden::{BLOCK, Comparison, Golden, MODEL},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn tiny() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": null,
        "attention_head_dim": [1, 1, 2],
        "block_out_channels": [8, 16, 24],
        "cross_attention_dim": 12,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4,
        "layers_per_block": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 4,
        "out_channels": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "use_linear_projection": true
    })
}

pub(crate) fn unet(w: &Weights) -> AnyPrior {
    any(&tiny(), w)
}

fn any(json: &Value, w: &Weights) -> AnyPrior {
    let unet = Unet::from_json(json, Path::new("unet"), w).expect("supported");
    AnyPrior::Unet(Box::new(unet))
}

pub(crate) fn config(block: BlockKind, after: Vec<usize>) -> AdapterConfig {
    AdapterConfig::Unet(UnetAdapterConfig {
        block,
        after,
        lq_channels: 4,
        d_emb: 32,
        groups: 4,
    })
}

const KINDS: [BlockKind; 4] = [BlockKind::D1, BlockKind::D2, BlockKind::D3, BlockKind::D4];

struct Inputs {
    x: Tensor<4>,
    t: Tensor<1>,
    conditioning: Conditioning,
    c_lq: Tensor<4>,
}

fn inputs() -> Inputs {
    Inputs {
        x: field([2, 4, 16, 8], 1),
        t: Tensor::from_floats([981.0, 7.0], &Device::flex()),
        conditioning: Conditioning::of_text(field([2, 5, 12], 2)),
        c_lq: field([2, 4, 16, 8], 3),
    }
}

pub(crate) fn run(unet: &AnyPrior, adapter: &RestorationAdapter, scale: &Scale) -> Tensor<4> {
    let Inputs {
        x,
        t,
        conditioning,
        c_lq,
    } = inputs();
    let flow = unet.enter(x, t, &conditioning);
    adapter.forward(unet, flow, &adapter.lq_features(unet, &c_lq), scale, &Bare)
}

fn bare(unet: &AnyPrior) -> Tensor<4> {
    let Inputs {
        x, t, conditioning, ..
    } = inputs();
    unet.forward(x, t, &conditioning, &Bare)
}

/// The golden's prior, and an adapter of this design after all blocks but the last, both by formula.
fn of_golden(golden: &Golden, block: BlockKind) -> (AnyPrior, RestorationAdapter) {
    let w = Weights::formula(&Device::flex());
    let prior = any(&golden.config(), &w);
    let config = AdapterConfig::Unet(UnetAdapterConfig {
        block,
        after: vec![0, 1, 2, 3, 4, 5],
        lq_channels: 4,
        d_emb: 64,
        groups: 8,
    });
    let adapter = RestorationAdapter::new(config, &prior, &w).expect("fits");
    (prior, adapter)
}

fn enter(prior: &AnyPrior, golden: &Golden) -> AnyFlow {
    let device = Device::flex();
    let conditioning = Conditioning {
        text: golden.tensor("input.text", &device),
        pooled: Some(golden.tensor("input.pooled", &device)),
        time_ids: Some(golden.tensor("input.time_ids", &device)),
    };
    let sample = golden.tensor("input.sample", &device);
    prior.enter(sample, golden.timesteps(&device), &conditioning)
}

fn features(prior: &AnyPrior, golden: &Golden, adapter: &RestorationAdapter) -> LqFeatures {
    adapter.lq_features(prior, &golden.tensor("input.lq", &Device::flex()))
}

/// Shows the low-quality stream and the outputs under `prefix`.
fn see_whole(
    comparison: &mut Comparison<'_>,
    prefix: &str,
    prior: &AnyPrior,
    golden: &Golden,
    adapter: &RestorationAdapter,
) {
    let lq = features(prior, golden, adapter);
    let LqFeatures::Maps(maps) = &lq else {
        panic!("a U-Net's features are maps");
    };
    for (i, map) in maps.iter().enumerate() {
        comparison.see(&format!("{prefix}lq.{i}"), map, BLOCK);
    }
    for (name, scale) in [("sample", 1.0), ("scale_0.5", 0.5)] {
        let flow = enter(prior, golden);
        let y = adapter.forward(prior, flow, &lq, &Scale::All(scale), &Bare);
        comparison.see(&format!("{prefix}output.{name}"), &y, MODEL);
    }
}

#[test]
fn every_adapter_is_that_of_torch() {
    let golden = Golden::open(FOLDER, "unet_adapter_d3_tiny");
    let device = Device::flex();
    let (prior, adapter) = of_golden(&golden, BlockKind::D3);
    let lq = features(&prior, &golden, &adapter);
    let mut comparison = golden.compare();
    see_whole(&mut comparison, "", &prior, &golden, &adapter);
    let mut flow = enter(&prior, &golden);
    for i in 0..prior.segments() {
        // What enters an adapter or a block is the golden's, so that errors do not add up.
        let mut check = |flow: &mut AnyFlow, name: &str| {
            let AnyFlow::Unet(at) = flow else {
                panic!("a U-Net's flow");
            };
            comparison.see(name, &at.sample, BLOCK);
            at.sample = golden.tensor(name, &device);
        };
        flow = prior.segment(i, flow, &Bare);
        let Some(site) = prior.sites().iter().find(|site| site.segment == i) else {
            continue;
        };
        check(&mut flow, &format!("{}.bare", site.name));
        flow = adapter.after(i, flow, &lq, &Scale::All(1.0));
        if site.block < 6 {
            check(&mut flow, &format!("{}.adapted", site.name));
        }
    }
    let y = prior.leave(enter_and_walk(&prior, &golden));
    comparison.see("output.bare", &y, MODEL);
    comparison.finish(|_| false);
}

fn enter_and_walk(prior: &AnyPrior, golden: &Golden) -> AnyFlow {
    let flow = enter(prior, golden);
    (0..prior.segments()).fold(flow, |flow, i| prior.segment(i, flow, &Bare))
}

#[test]
fn the_other_designs_are_those_of_torch() {
    let golden = Golden::open(FOLDER, "unet_adapter_designs_tiny");
    let mut comparison = golden.compare();
    for (name, block) in [
        ("D1", BlockKind::D1),
        ("D2", BlockKind::D2),
        ("D4", BlockKind::D4),
    ] {
        let (prior, adapter) = of_golden(&golden, block);
        see_whole(
            &mut comparison,
            &format!("{name}."),
            &prior,
            &golden,
            &adapter,
        );
    }
    comparison.finish(|_| false);
}

#[test]
fn a_fresh_adapter_and_scale_zero_are_the_bare_prior_bit_for_bit() {
    let device = Device::flex();
    let unet = unet(&Weights::formula(&device));
    let plain = bits(bare(&unet));
    for kind in KINDS {
        let config = config(kind, vec![0, 1, 2, 3, 4]);
        let fresh = RestorationAdapter::new(config.clone(), &unet, &Weights::seeded(0, &device))
            .expect("fits");
        assert!(
            bits(run(&unet, &fresh, &Scale::All(1.0))) == plain,
            "fresh {kind:?}"
        );
        let trained =
            RestorationAdapter::new(config, &unet, &Weights::formula(&device)).expect("fits");
        assert!(
            bits(run(&unet, &trained, &Scale::All(0.0))) == plain,
            "scale 0, {kind:?}"
        );
        assert!(
            bits(run(&unet, &trained, &Scale::All(1.0))) != plain,
            "a trained {kind:?} does something"
        );
    }
}

#[test]
fn a_sample_scaled_to_zero_is_the_bare_prior_and_its_neighbour_is_not() {
    let device = Device::flex();
    let unet = unet(&Weights::formula(&device));
    let config = config(BlockKind::D1, vec![0, 2, 4]);
    let adapter = RestorationAdapter::new(config, &unet, &Weights::formula(&device)).expect("fits");
    let scale = Tensor::<4>::from_data([[[[0.0_f32]]], [[[1.0]]]], (&device, DType::F32));
    let mixed = run(&unet, &adapter, &Scale::Each(scale));
    let plain = bare(&unet);
    let sample = |x: &Tensor<4>, i| bits(x.clone().narrow(0, i, 1));
    assert!(sample(&mixed, 0) == sample(&plain, 0));
    assert!(sample(&mixed, 1) != sample(&plain, 1));
}

#[test]
fn a_fresh_lora_and_strength_zero_are_the_bare_prior_bit_for_bit() {
    let device = Device::flex();
    let w = Weights::formula(&device);
    let unet = unet(&w);
    let targets = self_attention_targets(&w.shapes());
    assert!(!targets.is_empty());
    let lora = LoraConfig {
        rank: 4,
        alpha: 4.0,
    };
    let Inputs {
        x, t, conditioning, ..
    } = inputs();
    let with = |lora: &Lora| bits(unet.forward(x.clone(), t.clone(), &conditioning, lora));
    let fresh = Lora::new(&lora, &targets, &Weights::seeded(0, &device)).expect("fits");
    assert!(with(&fresh) == bits(bare(&unet)));
    let trained = Lora::new(&lora, &targets, &Weights::formula(&device)).expect("fits");
    assert!(with(&trained.clone().with_strength(0.0)) == bits(bare(&unet)));
    assert!(with(&trained) != bits(bare(&unet)));
}

#[test]
fn adapters_stand_where_the_configuration_says() {
    let device = Device::flex();
    let unet = unet(&Weights::formula(&device));
    let names: Vec<&str> = unet.sites().iter().map(|site| site.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "down_blocks.0",
            "down_blocks.1",
            "down_blocks.2",
            "mid_block",
            "up_blocks.0",
            "up_blocks.1",
            "up_blocks.2"
        ]
    );
    let downscale: Vec<usize> = unet.sites().iter().map(|site| site.downscale).collect();
    assert_eq!(downscale, [2, 4, 4, 4, 2, 1, 1]);
    let one = |block| {
        let adapter = RestorationAdapter::new(
            config(BlockKind::D3, vec![block]),
            &unet,
            &Weights::formula(&device),
        );
        bits(run(&unet, &adapter.expect("fits"), &Scale::All(1.0)))
    };
    assert!(one(0) != one(4));
    for wrong in [vec![9], vec![2, 1], vec![1, 1]] {
        let refused = RestorationAdapter::new(
            config(BlockKind::D3, wrong),
            &unet,
            &Weights::formula(&device),
        );
        let why = refused.expect_err("no such place").to_string();
        assert!(why.contains("use the adapter's own prior"), "{why}");
    }
}

#[test]
fn parameter_counts_at_the_size_of_sdxl_are_those_of_the_paper() {
    let sdxl = include_str!("../../../priors/tests/configs/sdxl_unet.json");
    let sdxl = serde_json::from_str(sdxl).expect("JSON");
    let device = Device::flex();
    let w = Weights::blank(&device);
    let unet = any(&sdxl, &w);
    assert_eq!((w.count(), w.shapes().len()), (2_567_463_684, 1680));
    let lora_w = Weights::blank(&device);
    let lora = LoraConfig {
        rank: 32,
        alpha: 32.0,
    };
    Lora::new(&lora, &self_attention_targets(&w.shapes()), &lora_w).expect("fits");
    assert_eq!(lora_w.count(), 21_299_200);
    let total = |block| {
        let config = AdapterConfig::Unet(UnetAdapterConfig {
            block,
            after: vec![0, 1, 2, 3, 4, 5],
            lq_channels: 4,
            d_emb: 1280,
            groups: 32,
        });
        let w = Weights::blank(&device);
        RestorationAdapter::new(config, &unet, &w).expect("fits");
        w.count() + lora_w.count()
    };
    assert_eq!(total(BlockKind::D1), 156_933_120);
    assert_eq!(total(BlockKind::D2), 156_139_520);
    assert_eq!(total(BlockKind::D3), 157_904_640);
    assert_eq!(total(BlockKind::D4), 155_812_800);
}

#[test]
fn a_prior_stored_in_16_bits_predicts_nearly_the_same() {
    let device = Device::flex();
    let seeded = Weights::seeded(3, &device);
    let exact = bits(bare(&unet(&seeded)));
    let values = seeded.made();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("unet.safetensors");
    let norm = |x: &[u32]| {
        x.iter()
            .map(|&v| f64::from(f32::from_bits(v)).powi(2))
            .sum::<f64>()
    };
    for (dtype, bound) in [(DType::F32, 0.0), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        save_safetensors(&path, &values, dtype, &Default::default()).expect("saves");
        let paths = std::slice::from_ref(&path);
        for precision in [Precision::Stored, Precision::F32] {
            let w = Weights::from_files(paths, precision, &device).expect("opens");
            let got = bits(bare(&unet(&w)));
            w.finish().expect("every tensor is used");
            let wrong: f64 = got
                .iter()
                .zip(&exact)
                .map(|(&a, &b)| f64::from(f32::from_bits(a) - f32::from_bits(b)).powi(2))
                .sum();
            let error = (wrong / norm(&exact)).sqrt();
            assert!(error <= bound, "{dtype:?}, {precision:?}: {error:e}");
            assert!(
                dtype == DType::F32 || error > 0.0,
                "{dtype:?} was not rounded"
            );
        }
    }
}
