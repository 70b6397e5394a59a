//! The autoencoder, segment by segment.

use burn::tensor::{Device, Tensor};
use priors::{vae::AutoencoderKl, weights::Weights};

use crate::{golden, golden::BLOCK};

fn autoencoder(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let vae = AutoencoderKl::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("supported");
    let mut comparison = golden.compare();
    // The last convolution of either half is its whole output.
    let mut see = |segment: &str, y: &Tensor<4>| {
        comparison.see(segment.trim_end_matches(".conv_out"), y, BLOCK)
    };
    let image = golden.tensor::<4>("input.image", &device);
    let posterior = vae.encode_seen(image.clone(), &mut see);
    let decoded = vae.decode_seen(golden.tensor("input.latent", &device), &mut see);
    comparison.see("output.mean", &posterior.mean, BLOCK);
    comparison.see("output.logvar", &posterior.logvar, BLOCK);
    comparison.see("output.latent", &vae.latent_from_image(image), BLOCK);
    comparison.see("output.image", &decoded, BLOCK);
    comparison.finish(|_| false);
    // image_from_latent undoes the scale and the shift.
    let (scale, shift) = (vae.config().scaling_factor, vae.config().shift_factor);
    let scaled = (golden.tensor::<4>("input.latent", &device) - shift) * scale;
    let mut comparison = golden.compare();
    comparison.see("output.image", &vae.image_from_latent(scaled), BLOCK);
    comparison.finish(|name| name != "output.image");
}

#[test]
fn every_segment_of_an_autoencoder_with_quant_convolutions() {
    autoencoder("vae_tiny_quant");
}

#[test]
fn every_segment_of_an_autoencoder_without_quant_convolutions() {
    autoencoder("vae_tiny_plain");
}
