//! The ControlNet that the adapter is compared with.

use burn::tensor::{DType, Device, Tensor};
use priors::{
    any::AnyPrior,
    flow::{Conditioning, Prior},
    nn::Bare,
    unet::Unet,
    weights::{Precision, Weights, save_safetensors},
};
use restore::adapter::{AdapterConfig, COPIED, ControlNetConfig, RestorationAdapter, Scale};

use crate::{
    bits,
    golden::{Golden, MODEL},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden() -> Golden {
    Golden::open(FOLDER, "controlnet_tiny")
}

fn prior(golden: &Golden, w: &Weights) -> AnyPrior {
    let unet = Unet::from_json(&golden.config(), golden.path(), w).expect("supported");
    AnyPrior::Unet(Box::new(unet))
}

fn config(lq_channels: usize) -> AdapterConfig {
    AdapterConfig::ControlNet(ControlNetConfig { lq_channels })
}

fn build(prior: &AnyPrior, w: &Weights) -> RestorationAdapter {
    RestorationAdapter::new(config(16), prior, w).expect("fits")
}

fn run(
    golden: &Golden,
    prior: &AnyPrior,
    net: Option<&RestorationAdapter>,
    scale: &Scale,
) -> Tensor<4> {
    let device = Device::flex();
    let x = golden.tensor("input.sample", &device);
    let t = golden.timesteps(&device);
    let text = Conditioning::of_text(golden.tensor("input.text", &device));
    let Some(net) = net else {
        return prior.forward(x, t, &text, &Bare);
    };
    let lq = net.lq_features(prior, &golden.tensor("input.lq", &device));
    net.forward(prior, prior.enter(x, t, &text), &lq, scale, &Bare)
}

#[test]
fn it_is_that_of_diffusers() {
    let golden = golden();
    let device = Device::flex();
    let prior = prior(&golden, &Weights::formula(&device));
    let net = build(&prior, &Weights::formula(&device).at("controlnet"));
    let mut comparison = golden.compare();
    let one = |net, scale| run(&golden, &prior, net, &Scale::All(scale));
    comparison.see("output.bare", &one(None, 1.0), MODEL);
    comparison.see("output.control", &one(Some(&net), 1.0), MODEL);
    comparison.see("output.scale_0.5", &one(Some(&net), 0.5), MODEL);
    comparison.finish(|_| false);
}

#[test]
fn fresh_and_scale_zero_are_the_bare_prior_bit_for_bit() {
    let golden = golden();
    let device = Device::flex();
    let prior = prior(&golden, &Weights::formula(&device));
    let plain = bits(run(&golden, &prior, None, &Scale::All(1.0)));
    let fresh = build(&prior, &Weights::seeded(0, &device));
    assert!(bits(run(&golden, &prior, Some(&fresh), &Scale::All(1.0))) == plain);
    let trained = build(&prior, &Weights::formula(&device));
    assert!(bits(run(&golden, &prior, Some(&trained), &Scale::All(0.0))) == plain);
    // A sample scaled to zero is the bare prior and its neighbour is not.
    let scale = Tensor::<4>::from_data([[[[0.0_f32]]], [[[1.0]]]], (&device, DType::F32));
    let mixed = run(&golden, &prior, Some(&trained), &Scale::Each(scale));
    let bare = run(&golden, &prior, None, &Scale::All(1.0));
    let sample = |x: &Tensor<4>, i| bits(x.clone().narrow(0, i, 1));
    assert!(sample(&mixed, 0) == sample(&bare, 0));
    assert!(sample(&mixed, 1) != sample(&bare, 1));
}

#[test]
fn it_copies_the_way_down_and_the_middle_and_adds_its_convolutions() {
    let golden = golden();
    let device = Device::flex();
    let (unet, net) = (Weights::blank(&device), Weights::blank(&device));
    build(&prior(&golden, &unet), &net);
    let copied = |name: &String| COPIED.iter().any(|part| name.starts_with(part));
    for (name, shape) in unet.shapes().iter().filter(|(name, _)| copied(name)) {
        assert_eq!(net.shapes().get(name), Some(shape), "{name}");
    }
    let shapes = net.shapes();
    let own: Vec<&String> = shapes.keys().filter(|name| !copied(name)).collect();
    // Six skips, the middle and the hint, each with a weight and a bias.
    assert_eq!(own.len(), 2 * 8, "{own:?}");
    assert!(own.iter().all(|name| name.starts_with("controlnet_")));
}

#[test]
fn stored_and_loaded_it_is_the_same_and_another_priors_is_refused() {
    let golden = golden();
    let device = Device::flex();
    let prior = prior(&golden, &Weights::formula(&device));
    let values = crate::golden::formula_values(&device, |w| drop(build(&prior, w)));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("net.safetensors");
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    let w = Weights::from_files(&[path], Precision::Stored, &device).expect("opens");
    let loaded = build(&prior, &w);
    w.finish().expect("every tensor is used");
    let made = build(&prior, &Weights::formula(&device));
    let one = |net| bits(run(&golden, &prior, Some(net), &Scale::All(1.0)));
    assert!(one(&loaded) == one(&made));
    let wrong = RestorationAdapter::new(config(4), &prior, &Weights::formula(&device));
    let why = wrong.expect_err("other channels").to_string();
    assert!(why.contains("use that prior"), "{why}");
}
