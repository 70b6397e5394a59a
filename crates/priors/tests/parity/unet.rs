//! The U-Net, segment by segment and whole.

use burn::tensor::Device;
use priors::{
    flow::Prior,
    nn::{Bare, GroupNorm, TransformerLayer},
    unet::{Unet, UnetFlow},
    weights::Weights,
};

use crate::{
    conditioning, golden,
    golden::{BLOCK, Golden, MODEL},
};

pub(crate) fn unet(golden: &Golden, weights: &Weights) -> Unet {
    Unet::from_json(&golden.config(), golden.path(), weights)
        .expect("the golden's config is supported")
}

pub(crate) fn enter(unet: &Unet, golden: &Golden, device: &Device) -> UnetFlow {
    let conditioning = conditioning(golden, device);
    unet.enter(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning,
    )
}

/// Every segment by itself: what enters it is the golden's, so that errors do not add up and only the wrong one fails.
/// A transformer's last layer is seen as its attention module's output.
fn unet_segments(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let weights = Weights::formula(&device);
    let unet = unet(&golden, &weights);
    let mut comparison = golden.compare();
    let mut flow = enter(&unet, &golden, &device);
    comparison.see("emb", &flow.emb, BLOCK);
    comparison.see("conv_in", &flow.sample, BLOCK);
    for i in 0..unet.segments() {
        let (segment, skips) = (unet.segment_name(i), flow.skips.len());
        flow = unet.segment(i, flow, &Bare);
        if let Some(tokens) = &mut flow.tokens {
            comparison.see(segment, tokens, BLOCK);
            *tokens = golden.tensor(segment, &device);
            continue;
        }
        let module = segment
            .split(".transformer_blocks")
            .next()
            .expect("a first part");
        comparison.see(module, &flow.sample, BLOCK);
        flow.sample = golden.tensor(module, &device);
        if flow.skips.len() > skips {
            flow.skips[skips] = flow.sample.clone();
        }
    }
    assert!(flow.skips.is_empty(), "every skip is used");
    let config = unet.config();
    let channels = config.block_out_channels[0];
    let norm = GroupNorm::new(
        &weights.at("conv_norm_out"),
        config.norm_num_groups,
        channels,
        config.norm_eps,
    );
    comparison.see(
        "conv_norm_out",
        &norm.expect("formula").forward(flow.sample.clone()),
        BLOCK,
    );
    comparison.see("output.sample", &unet.leave(flow), BLOCK);
    // The rest are inside `enter` and inside segments: see the tests of embeddings and of transformer layers.
    comparison.finish(|name| {
        name.contains("time_") || name == "add_embedding" || name.contains("transformer_blocks")
    });
    whole_unet(&golden, &unet, &device);
}

fn whole_unet(golden: &Golden, unet: &Unet, device: &Device) {
    let x = golden.tensor("input.sample", device);
    let out = unet.forward(
        x,
        golden.timesteps(device),
        &conditioning(golden, device),
        &Bare,
    );
    let mut comparison = golden.compare();
    comparison.see("output.sample", &out, MODEL);
    comparison.finish(|name| name != "output.sample");
}

#[test]
fn every_segment_of_an_sdxl_shaped_unet() {
    unet_segments("unet_sdxl_tiny");
}

#[test]
fn every_segment_of_mini_shaped_unet() {
    unet_segments("unet_mini_tiny");
}

#[test]
fn blocks_of_a_batch_with_two_timesteps_and_sizes() {
    let golden = golden("unet_sdxl_tiny_batch");
    let device = Device::flex();
    let unet = unet(&golden, &Weights::formula(&device));
    let mut comparison = golden.compare();
    let mut flow = enter(&unet, &golden, &device);
    comparison.see("emb", &flow.emb, BLOCK);
    for i in 0..unet.segments() {
        flow = unet.segment(i, flow, &Bare);
        if let Some(site) = unet.sites().iter().find(|site| site.segment == i) {
            let [_, c, h, _] = flow.sample.dims();
            assert_eq!(
                (c, h * site.downscale),
                (site.channels, 16),
                "what the site says of {}",
                site.name
            );
            // Errors of all segments before: values reach 20 and torch's own f32 is 1e-5 off.
            comparison.see(&site.name, &flow.sample, MODEL);
        }
    }
    comparison.see("output.sample", &unet.leave(flow), MODEL);
    comparison.finish(|_| false);
    whole_unet(&golden, &unet, &device);
}

/// Modules by themselves with inputs of 1e-3, where the epsilon of every norm shows.
#[test]
fn norms_of_quiet_features() {
    let golden = golden("unet_quiet");
    let device = Device::flex();
    let weights = Weights::formula(&device);
    let unet = unet(&golden, &weights);
    let text = golden.tensor::<3>("input.text", &device);
    let flow = |feature: &str| UnetFlow {
        sample: golden.tensor(feature, &device),
        tokens: None,
        skips: vec![],
        emb: golden.tensor("input.emb", &device),
        text: text.clone(),
    };
    let segment = |name: &str| {
        (0..unet.segments())
            .find(|&i| unet.segment_name(i) == name)
            .expect("a segment")
    };
    let mut comparison = golden.compare();
    let resnet = "down_blocks.0.resnets.0";
    comparison.see(
        resnet,
        &unet
            .segment(segment(resnet), flow("input.feature"), &Bare)
            .sample,
        BLOCK,
    );
    let (module, layer) = (
        "down_blocks.1.attentions.0",
        "down_blocks.1.attentions.0.transformer_blocks.0",
    );
    comparison.see(
        module,
        &unet
            .segment(segment(layer), flow("input.tokens_feature"), &Bare)
            .sample,
        BLOCK,
    );
    let alone = TransformerLayer::new(&weights.at(layer), 32, 24, 2).expect("formula");
    comparison.see(
        layer,
        &alone.forward(golden.tensor("input.tokens", &device), &text, &Bare),
        BLOCK,
    );
    comparison.see("output.sample", &unet.leave(flow("input.feature")), BLOCK);
    comparison.finish(|_| false);
}

/// Stretches of any length: what `set_aside` keeps back changes nothing, to the bit.
#[test]
fn setting_skips_aside_changes_nothing() {
    let golden = golden("unet_mini_tiny");
    let device = Device::flex();
    let unet = unet(&golden, &Weights::formula(&device));
    let values = |flow| {
        unet.leave(flow)
            .into_data()
            .try_into_vec::<f32>()
            .expect("f32")
    };
    let n = unet.segments();
    let walked = |length: usize| {
        let mut flow = enter(&unet, &golden, &device);
        for start in (0..n).step_by(length) {
            let stretch = start..(start + length).min(n);
            let (needed, aside) = unet.set_aside(stretch.clone(), flow);
            let done = stretch.fold(needed, |flow, i| unet.segment(i, flow, &Bare));
            flow = unet.put_back(aside, done);
        }
        values(flow)
    };
    let whole = (0..n).fold(enter(&unet, &golden, &device), |flow, i| {
        unet.segment(i, flow, &Bare)
    });
    let whole = values(whole);
    for length in 1..=n {
        assert!(
            walked(length) == whole,
            "stretches of {length} segments differ from the whole walk"
        );
    }
}
