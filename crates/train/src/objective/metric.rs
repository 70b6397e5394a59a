//! What an error in the latent does to the decoded picture: a quadratic form over channels.
//!
//! For a small error `d` `[c]` at each position, independent between positions, the decoder's squared
//! error is about `dT G d` with `G = E[JT J]`, `J` the decoder's derivative. `G` is measured: every
//! channel is disturbed by the same random signs over positions, and the decoded differences are
//! multiplied with each other. With `G = L LT`, the loss is `|LT d|^2`, normalized to trace `c`.

use burn::tensor::{DType, Device, Tensor, TensorData};
use pixels::random::stream;
use priors::vae::AutoencoderKl;
use rand::RngExt;

/// Size of the disturbance, in units of the latent's standard deviation.
const SIZE: f64 = 0.1;

/// `LT` as the weight of a 1x1 convolution, `[c, c, 1, 1]`, measured on latents `[b, c, h, w]`.
pub fn pixel_metric(
    vae: &AutoencoderKl,
    latents: &Tensor<4>,
    seed: u64,
    device: &Device,
) -> Tensor<4> {
    let [b, c, h, w] = latents.dims();
    let mut gram = vec![0.0; c * c];
    for sample in 0..b {
        let z = latents.clone().narrow(0, sample, 1);
        let base = decoded(vae, z.clone());
        let mut rng = stream(seed, &format!("pixel metric {sample}"));
        let signs: Vec<f32> = (0..h * w)
            .map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 })
            .collect();
        let signs =
            Tensor::<4>::from_data(TensorData::new(signs, [1, 1, h, w]), (device, DType::F32));
        let response = |channel: usize| -> Vec<f64> {
            let slice = [0..1, channel..channel + 1, 0..h, 0..w];
            let moved = z.clone().slice(slice.clone()) + signs.clone() * SIZE;
            let moved = decoded(vae, z.clone().slice_assign(slice, moved));
            moved.iter().zip(&base).map(|(a, b)| a - b).collect()
        };
        let responses: Vec<Vec<f64>> = (0..c).map(response).collect();
        for i in 0..c {
            for j in 0..c {
                gram[i * c + j] += responses[i]
                    .iter()
                    .zip(&responses[j])
                    .map(|(a, b)| a * b)
                    .sum::<f64>();
            }
        }
    }
    let trace: f64 = (0..c).map(|i| gram[i * c + i]).sum();
    gram.iter_mut().for_each(|g| *g *= c as f64 / trace);
    let lower = cholesky(&gram, c);
    let transposed: Vec<f32> = (0..c * c)
        .map(|at| lower[(at % c) * c + at / c] as f32)
        .collect();
    Tensor::from_data(
        TensorData::new(transposed, [c, c, 1, 1]),
        (device, DType::F32),
    )
}

fn decoded(vae: &AutoencoderKl, latent: Tensor<4>) -> Vec<f64> {
    let values = vae
        .image_from_latent(latent)
        .into_data()
        .try_into_vec::<f32>()
        .expect("f32 pictures");
    values.into_iter().map(f64::from).collect()
}

/// The lower factor of a positive semi-definite matrix `[n, n]`; a small ridge keeps it definite.
fn cholesky(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
            lower[i * n + j] = if i == j {
                (matrix[i * n + i] + 1e-3 - dot).max(1e-6).sqrt()
            } else {
                (matrix[i * n + j] - dot) / lower[j * n + j]
            };
        }
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_multiplies_back() {
        let matrix = [4.0, 2.0, 0.6, 2.0, 3.0, 0.4, 0.6, 0.4, 1.0];
        let lower = cholesky(&matrix, 3);
        for i in 0..3 {
            for j in 0..3 {
                let product: f64 = (0..3).map(|k| lower[i * 3 + k] * lower[j * 3 + k]).sum();
                let wanted = matrix[i * 3 + j] + if i == j { 1e-3 } else { 0.0 };
                assert!(
                    (product - wanted).abs() < 1e-12,
                    "({i}, {j}): {product} for {wanted}"
                );
            }
        }
    }
}
