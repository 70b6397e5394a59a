//! Gradients piece by piece are those of the whole tape, and take less memory the finer the cut.

use std::{path::Path, sync::Mutex};

use burn::tensor::{DType, Device, Tensor, TensorData};
use peak_alloc::PeakAlloc;
use priors::{
    any::{AnyFlow, AnyPrior},
    clip::ClipText,
    flow::{Conditioning, Prior},
    mmdit::MmDit,
    unet::Unet,
    weights::{Init, Values, Weights},
};
use restore::{
    adapter::{
        AdapterConfig, BlockKind, ControlNetConfig, DitAdapterConfig, RestorationAdapter, Scale,
        UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, Target, self_attention_targets},
};
use serde_json::{Value, json};
use train::{
    config::Gradient,
    optimise::Named,
    walk::{Inputs, Networks, Text, gradients},
};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The tests share one count of the memory.
static ALONE: Mutex<()> = Mutex::new(());

fn unet_json(layers: usize, channels: [usize; 3]) -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": null,
        "attention_head_dim": [1, 1, 2],
        "block_out_channels": channels,
        "cross_attention_dim": 12,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4,
        "layers_per_block": layers,
        "transformer_layers_per_block": 2,
        "norm_eps": 1e-5,
        "norm_num_groups": 4,
        "out_channels": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "use_linear_projection": true
    })
}

fn dit_json() -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel", "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 4,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16,
        "pooled_projection_dim": 12, "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0]
    })
}

fn text_json() -> Value {
    json!({
        "model_type": "clip_text_model", "vocab_size": 20, "hidden_size": 12, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 6,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 19
    })
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Prior, text encoder and adapter.
    All,
    /// Adapter and LoRA over a frozen prior.
    Adapter,
}

struct Setup {
    what: What,
    adapter: AdapterConfig,
    prior: Value,
    frozen: Option<(AnyPrior, Conditioning)>,
    targets: Vec<Target>,
}

impl Setup {
    fn new(what: What, block: BlockKind, unet: Value) -> Self {
        let d_emb = any(&unet, &Weights::blank(&Device::flex())).d_emb();
        let adapter = AdapterConfig::Unet(UnetAdapterConfig {
            block,
            after: vec![0, 1, 2, 3, 4, 5],
            lq_channels: 4,
            d_emb,
            groups: 4,
        });
        Self::of(what, adapter, unet)
    }

    /// A transformer's adapter and LoRA over it frozen, or it, its text encoder and its adapter.
    fn dit(what: What) -> Self {
        let adapter = AdapterConfig::Dit(DitAdapterConfig {
            after: vec![1, 3],
            width: 16,
        });
        Self::of(what, adapter, dit_json())
    }

    /// A ControlNet and LoRA over a frozen U-Net.
    fn controlnet() -> Self {
        let adapter = AdapterConfig::ControlNet(ControlNetConfig { lq_channels: 4 });
        Self::of(What::Adapter, adapter, unet_json(1, [8, 16, 24]))
    }

    fn of(what: What, adapter: AdapterConfig, prior_json: Value) -> Self {
        let device = Device::flex();
        let w = Weights::formula(&device);
        let prior = any(&prior_json, &w);
        let targets = self_attention_targets(&w.shapes());
        let text = Conditioning {
            pooled: Some(field([2, 12], 5)),
            ..Conditioning::of_text(field([2, 6, 12], 4))
        };
        let frozen = (what == What::Adapter).then_some((prior, text));
        Self {
            what,
            adapter,
            prior: prior_json,
            frozen,
            targets,
        }
    }

    fn networks(&self, w: &Weights) -> Networks {
        let (prior, text_encoder) = match &self.frozen {
            Some((prior, _)) => (prior.clone(), None),
            None => {
                let prior = any(&self.prior, &w.at(network(&self.prior)));
                let text =
                    ClipText::from_json(&text_json(), Path::new("text"), &w.at("text_encoder"));
                (prior, Some(text.expect("supported")))
            }
        };
        let adapter = self.adapter.clone();
        let adapter = RestorationAdapter::new(adapter, &prior, &w.at("restoration_adapter"));
        let adapter = adapter.expect("fits");
        let lora = (self.what == What::Adapter).then(|| {
            Lora::new(
                &LoraConfig {
                    rank: 2,
                    alpha: 2.0,
                },
                &self.targets,
                &w.at("lora").at(prior.kind().folder()),
            )
            .expect("fits")
        });
        Networks {
            prior,
            text_encoder,
            adapter: Some(adapter),
            lora,
        }
    }

    /// Values by the formula, so that nothing is zero.
    fn values(&self) -> Values {
        let device = Device::flex();
        let blank = Weights::blank(&device);
        self.networks(&blank);
        let formula = Weights::formula(&device);
        let value = |(name, shape): (String, Vec<usize>)| {
            let n = shape.iter().product::<usize>();
            let flat = match shape[..] {
                [a] => formula
                    .tensor(&name, [a], Init::Zeros)
                    .map(Tensor::into_data),
                [a, b] => formula
                    .tensor(&name, [a, b], Init::Zeros)
                    .map(Tensor::into_data),
                [a, b, c] => formula
                    .tensor(&name, [a, b, c], Init::Zeros)
                    .map(Tensor::into_data),
                [a, b, c, d] => formula
                    .tensor(&name, [a, b, c, d], Init::Zeros)
                    .map(Tensor::into_data),
                _ => panic!("{name} has {n} values in an unusual shape"),
            };
            (name, flat.expect("formula"))
        };
        blank.shapes().into_iter().map(value).collect()
    }

    fn inputs(&self, side: usize) -> Inputs {
        let text = match &self.frozen {
            Some((_, text)) => Text::Encoded(text.clone()),
            None => Text::Ids(vec![vec![0, 3, 4, 5, 19, 19], vec![0, 7, 19, 19, 19, 19]]),
        };
        Inputs {
            x: field([2, 4, side, side], 1),
            t: Tensor::from_floats([500.0, 20.0], &Device::flex()),
            text,
            c_lq: field([2, 4, side, side], 2),
            scale: Scale::All(1.0),
        }
    }

    fn gradients(&self, values: &Values, how: Gradient, side: usize) -> (f64, Named) {
        let device = Device::flex();
        let w = Weights::tracked(values.clone(), &device);
        let taped = self.networks(&w);
        let plain = self.networks(&Weights::from_values(values.clone(), &device));
        let target = field([2, 4, side, side], 3);
        gradients(&plain, &taped, &self.inputs(side), &w, how, |prediction| {
            (prediction - target).square().mean()
        })
    }
}

/// The network's folder in diffusers' layout.
fn network(json: &Value) -> &'static str {
    if json["_class_name"] == "SD3Transformer2DModel" {
        "transformer"
    } else {
        "unet"
    }
}

fn any(json: &Value, w: &Weights) -> AnyPrior {
    if network(json) == "transformer" {
        let mmdit = MmDit::from_json(json, Path::new("transformer"), w).expect("supported");
        return AnyPrior::MmDit(Box::new(mmdit));
    }
    let unet = Unet::from_json(json, Path::new("unet"), w).expect("supported");
    AnyPrior::Unet(Box::new(unet))
}

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

/// All gradients together to 1e-5, each tensor's own to 5e-5: some are small sums of large terms, and that of a key's bias is
/// nothing but rounding.
fn compare(whole: &Named, pieces: &Named, what: &str) {
    assert_eq!(
        whole.keys().collect::<Vec<_>>(),
        pieces.keys().collect::<Vec<_>>(),
        "{what}"
    );
    let square = |g: &mut dyn Iterator<Item = f32>| g.map(|g| f64::from(g).powi(2)).sum::<f64>();
    let (mut all, mut wrong) = (0.0, 0.0);
    for (name, whole) in whole {
        let norm = square(&mut whole.iter().copied());
        let difference = square(&mut whole.iter().zip(&pieces[name]).map(|(a, b)| a - b));
        let (norm_, difference_) = (norm.sqrt(), difference.sqrt());
        assert!(
            difference_ <= 5e-5 * norm_ + 5e-8,
            "{what}: {name} differs by {difference_:e} of {norm_:e}"
        );
        all += norm;
        wrong += difference;
    }
    assert!(
        all > 0.0 && wrong.sqrt() <= 1e-5 * all.sqrt(),
        "{what}: {wrong:e} of {all:e}"
    );
}

#[test]
fn gradients_piece_by_piece_are_those_of_the_whole_tape() {
    let _alone = ALONE.lock();
    let unet = |what, block| Setup::new(what, block, unet_json(1, [8, 16, 24]));
    for (name, setup) in [
        ("D1", unet(What::All, BlockKind::D1)),
        ("D3", unet(What::Adapter, BlockKind::D3)),
        ("D2", unet(What::Adapter, BlockKind::D2)),
        ("transformer", Setup::dit(What::Adapter)),
        ("transformer and text encoder", Setup::dit(What::All)),
        ("ControlNet", Setup::controlnet()),
    ] {
        let values = setup.values();
        let (loss, whole) = setup.gradients(&values, Gradient::Whole, 8);
        assert_eq!(
            whole.len(),
            values.len(),
            "every trained tensor has a gradient"
        );
        for pieces in [1, 4, 16] {
            let (again, cut) = setup.gradients(&values, Gradient::Cut(pieces), 8);
            assert!((loss - again).abs() <= 1e-6 * loss, "{loss} and {again}");
            compare(&whole, &cut, &format!("{name} cut {pieces} ways"));
        }
    }
}

#[test]
fn only_adapter_and_lora_get_gradients_over_a_frozen_prior() {
    let _alone = ALONE.lock();
    let unet = Setup::new(What::Adapter, BlockKind::D3, unet_json(1, [8, 16, 24]));
    for (lora, setup) in [
        ("lora.unet.", unet),
        ("lora.transformer.", Setup::dit(What::Adapter)),
    ] {
        let (_, gradients) = setup.gradients(&setup.values(), Gradient::Cut(8), 8);
        let known =
            |name: &String| name.starts_with("restoration_adapter.") || name.starts_with(lora);
        assert!(gradients.keys().all(known));
        let any = |part: &str| gradients.keys().any(|name| name.contains(part));
        assert!(any("lora_A.weight") && any("adapters.0.lq_block"));
    }
}

#[test]
fn a_gradient_is_the_slope_of_the_loss() {
    let _alone = ALONE.lock();
    let setup = Setup::new(What::All, BlockKind::D1, unet_json(1, [8, 16, 24]));
    let values = setup.values();
    let (_, gradients) = setup.gradients(&values, Gradient::Cut(4), 8);
    for name in [
        "unet.conv_in.weight",
        "restoration_adapter.adapters.2.lq_block.convs.0.weight",
    ] {
        let norm = gradients[name]
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let moved = |sign: f64| {
            let mut values = values.clone();
            let old = values[name].clone();
            let step = sign * 1e-2 / norm;
            let new: Vec<f32> = old
                .as_slice::<f32>()
                .expect("f32")
                .iter()
                .zip(&gradients[name])
                .map(|(v, g)| (f64::from(*v) + step * f64::from(*g)) as f32)
                .collect();
            values.insert(name.into(), TensorData::new(new, old.shape().clone()));
            setup.gradients(&values, Gradient::Whole, 8).0
        };
        let slope = (moved(1.0) - moved(-1.0)) / 2e-2;
        assert!(
            (slope - norm).abs() < 0.02 * norm,
            "{name}: slope {slope}, gradient norm {norm}"
        );
    }
}

/// Peak memory of one gradient over what was there before, bytes.
fn peak(setup: &Setup, values: &Values, how: Gradient, side: usize) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    setup.gradients(values, how, side);
    ALLOCATOR.peak_usage() - before
}

#[test]
fn a_finer_cut_peaks_lower() {
    let _alone = ALONE.lock();
    let setup = Setup::new(What::Adapter, BlockKind::D3, unet_json(2, [16, 24, 32]));
    let values = setup.values();
    let peaks: Vec<usize> = [Gradient::Whole, Gradient::Cut(4), Gradient::Cut(16)]
        .into_iter()
        .map(|how| peak(&setup, &values, how, 64))
        .collect();
    assert!(
        peaks[1] < peaks[0] * 8 / 10 && peaks[2] < peaks[1],
        "{peaks:?} bytes"
    );
}

/// Bytes of what enters each piece: kept by any walk.
fn saved(setup: &Setup, side: usize) -> usize {
    let networks = setup.networks(&Weights::from_values(setup.values(), &Device::flex()));
    let Inputs { x, t, .. } = setup.inputs(side);
    let text = Conditioning::of_text(field([2, 6, 12], 4));
    let mut flow = networks.prior.enter(x, t, &text);
    let mut bytes = 0;
    for i in 0..networks.prior.segments() {
        let AnyFlow::Unet(at) = &flow else {
            panic!("a U-Net's flow");
        };
        bytes += 4 * at.sample.dims().iter().product::<usize>();
        bytes += 4 * at
            .tokens
            .as_ref()
            .map_or(0, |tokens| tokens.dims().iter().product());
        flow = networks.prior.segment(i, flow, &priors::nn::Bare);
    }
    bytes
}

#[test]
fn four_times_the_layers_cost_little_more_than_what_enters_them() {
    let _alone = ALONE.lock();
    let cost = |layers: usize| {
        let setup = Setup::new(
            What::Adapter,
            BlockKind::D3,
            unet_json(layers, [16, 24, 32]),
        );
        let values = setup.values();
        let segments = setup
            .networks(&Weights::from_values(values.clone(), &Device::flex()))
            .prior
            .segments();
        let state: usize = values.values().map(|value| 4 * value.num_elements()).sum();
        let fixed = saved(&setup, 64) + 3 * state;
        peak(&setup, &values, Gradient::Cut(segments), 64).saturating_sub(fixed) as f64
    };
    let (one, four) = (cost(1), cost(4));
    assert!(
        four <= 1.2 * one,
        "beyond saved inputs and parameters: {one} and {four} bytes"
    );
}
