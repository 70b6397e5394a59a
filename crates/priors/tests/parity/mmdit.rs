//! SD3's transformer, block by block and whole.

use burn::tensor::{Device, Tensor};
use priors::{
    flow::{Conditioning, Prior},
    mmdit::{MmDit, MmDitFlow},
    nn::Bare,
    weights::Weights,
};

use crate::{
    conditioning, golden,
    golden::{BLOCK, Golden, MODEL},
};

fn enter(mmdit: &MmDit, golden: &Golden, device: &Device) -> MmDitFlow {
    mmdit.enter(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning(golden, device),
    )
}

/// Every block by itself: what enters it is the golden's, so that errors do not add up and only the wrong one fails.
fn blocks(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let mmdit = MmDit::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("the golden's config is supported");
    let mut comparison = golden.compare();
    let mut flow = enter(&mmdit, &golden, &device);
    comparison.see("pos_embed", &flow.image, BLOCK);
    comparison.see("time_text_embed", &flow.emb, BLOCK);
    comparison.see("context_embedder", &flow.text, BLOCK);
    for i in 0..mmdit.segments() {
        flow = mmdit.segment(i, flow, &Bare);
        let stream = |which: &str| format!("{}.{which}", mmdit.segment_name(i));
        comparison.see(&stream("image"), &flow.image, BLOCK);
        flow.image = golden.tensor(&stream("image"), &device);
        if i + 1 < mmdit.segments() {
            comparison.see(&stream("text"), &flow.text, BLOCK);
            flow.text = golden.tensor(&stream("text"), &device);
        }
    }
    comparison.see("output.sample", &mmdit.leave(flow), BLOCK);
    comparison.finish(|_| false);

    let x: Tensor<4> = golden.tensor("input.sample", &device);
    let out = mmdit.forward(
        x,
        golden.timesteps(&device),
        &conditioning(&golden, &device),
        &Bare,
    );
    let mut comparison = golden.compare();
    comparison.see("output.sample", &out, MODEL);
    comparison.finish(|name| name != "output.sample");
}

/// The positions are cropped from the table's middle at every size, as in diffusers.
#[test]
fn positions_at_other_sizes() {
    let golden = golden("mmdit_sizes_tiny");
    let device = Device::flex();
    let mut comparison = golden.compare();
    for most in [12, 15] {
        let mut config = golden.config();
        config["pos_embed_max_size"] = most.into();
        let mmdit = MmDit::from_json(&config, golden.path(), &Weights::formula(&device))
            .expect("the golden's config is supported");
        for [h, w] in [[1, 1], [5, 7], [4, most], [most, 3], [2, 9], [most, most]] {
            let name = format!("{most}.{h}x{w}");
            let conditioning = Conditioning {
                text: Tensor::zeros([1, 5, 24], &device),
                pooled: Some(Tensor::zeros([1, 20], &device)),
                time_ids: None,
            };
            let x = golden.tensor(&format!("input.{name}"), &device);
            let flow = mmdit.enter(x, Tensor::zeros([1], &device), &conditioning);
            comparison.see(&format!("positions.{name}"), &flow.image, BLOCK);
        }
    }
    comparison.finish(|_| false);
}

#[test]
fn every_block_of_sd3_medium_shaped() {
    blocks("mmdit_sd3_tiny");
}

#[test]
fn every_block_of_sd35_medium_shaped() {
    blocks("mmdit_sd35_medium_tiny");
}

#[test]
fn every_block_of_sd35_large_shaped() {
    blocks("mmdit_sd35_large_tiny");
}
