//! Gradients of the U-Net and of the autoencoder.

use burn::tensor::Device;
use priors::{
    flow::{Conditioning, Prior},
    nn::Bare,
    vae::AutoencoderKl,
    weights::Weights,
};

use crate::{
    golden,
    golden::{BLOCK, formula_values},
    unet::unet,
};

/// Gradients relative to each one's largest value; torch's own f32 is within 5e-6.
const GRADIENT: f64 = 1e-4;

#[test]
fn gradients_of_the_unet() {
    let golden = golden("grads_unet_mini_tiny");
    let plain = Device::flex();
    let weights = Weights::tracked(formula_values(&plain, |w| drop(unet(&golden, w))), &plain);
    let device = weights.device().clone();
    let unet = unet(&golden, &weights);
    let sample = golden.tensor::<4>("input.sample", &device).require_grad();
    let text = golden.tensor::<3>("input.text", &device).require_grad();
    let conditioning = Conditioning::of_text(text.clone());
    let out = unet.forward(
        sample.clone(),
        golden.timesteps(&device),
        &conditioning,
        &Bare,
    );
    let loss = (out - golden.tensor("input.target", &device))
        .square()
        .mean();
    let mut comparison = golden.compare();
    comparison.see_scalar("loss", &loss, BLOCK);
    let mut gradients = loss.backward();
    let of_sample = sample.grad(&gradients).expect("a gradient of the sample");
    let of_text = text.grad(&gradients).expect("a gradient of the text");
    comparison.see_scaled("grad.input.sample", of_sample.into_data(), GRADIENT);
    comparison.see_scaled("grad.input.text", of_text.into_data(), GRADIENT);
    comparison.see_gradients(weights.gradients(&mut gradients), GRADIENT);
    comparison.finish(|_| false);
}

#[test]
fn loss_and_gradients_of_the_autoencoder() {
    let golden = golden("vae_loss_tiny");
    let plain = Device::flex();
    let build = |w: &Weights| {
        AutoencoderKl::from_json(&golden.config(), golden.path(), w).expect("supported")
    };
    let weights = Weights::tracked(formula_values(&plain, |w| drop(build(w))), &plain);
    let vae = build(&weights);
    let image = golden.tensor::<4>("input.image", weights.device());
    let posterior = vae.encode(image.clone());
    let l1 = (vae.decode(posterior.mean.clone()) - image).abs().mean();
    let (mean, logvar) = (posterior.mean, posterior.logvar);
    let kl = ((mean.square() + logvar.clone().exp() - 1.0 - logvar) * 0.5).mean();
    let loss = l1.clone() + kl.clone() * 1e-6;
    let mut comparison = golden.compare();
    for (name, value) in [("l1", &l1), ("kl", &kl), ("loss", &loss)] {
        comparison.see_scalar(name, value, BLOCK);
    }
    comparison.see_gradients(weights.gradients(&mut loss.backward()), GRADIENT);
    comparison.finish(|_| false);
}
