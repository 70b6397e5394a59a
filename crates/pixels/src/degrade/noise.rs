//! Sensor noise: Gaussian, and Poisson whose photon count follows from how many levels the picture has.
//!
//! Gaussian: x + sigma/255 n, n ~ N(0, 1). Poisson: with x rounded to 8 bits and V = 2^ceil(log2(#distinct levels)),
//! x + scale (Poisson(x V) / V - x). Grey noise is one plane for the three channels; the grey Poisson noise is that
//! of the luma 0.2989 R + 0.587 G + 0.114 B. Both clip to `[0, 1]` and do not round. Source: BasicSR
//! `degradations.py`.

use rand::Rng;
use rand_distr::{Distribution, Poisson, StandardNormal};

use crate::Image;
use crate::image::u8_from_unit;

/// Whether the three channels share their noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Every channel draws for itself.
    Each,
    /// One plane of noise for all three.
    Shared,
}

/// Adds Gaussian noise of standard deviation `sigma` / 255.
pub fn gaussian_noise(image: &mut Image, sigma: f64, channels: Channels, rng: &mut impl Rng) {
    let sigma = (sigma / 255.0) as f32;
    let area = image.area();
    let mut draw = || -> f32 { StandardNormal.sample(&mut *rng) };
    match channels {
        Channels::Each => image
            .rgb
            .iter_mut()
            .for_each(|v| *v = (*v + sigma * draw()).clamp(0.0, 1.0)),
        Channels::Shared => {
            let noise: Vec<f32> = (0..area).map(|_| sigma * draw()).collect();
            add(image, &noise, area);
        }
    }
}

/// Adds Poisson noise times `scale`; returns its standard deviation at middle grey, in 1/255.
pub fn poisson_noise(image: &mut Image, scale: f64, channels: Channels, rng: &mut impl Rng) -> f64 {
    let area = image.area();
    let levels: Vec<u8> = match channels {
        Channels::Each => image.rgb.iter().map(|&v| u8_from_unit(v)).collect(),
        Channels::Shared => {
            let (r, g, b) = (image.plane(0), image.plane(1), image.plane(2));
            let pixels = r.iter().zip(g).zip(b);
            pixels
                .map(|((r, g), b)| u8_from_unit(0.2989 * r + 0.587 * g + 0.114 * b))
                .collect()
        }
    };
    let mut present = [false; 256];
    levels
        .iter()
        .for_each(|&level| present[usize::from(level)] = true);
    let values = present.iter().filter(|&&p| p).count().next_power_of_two() as f64;

    // One sampler a level: setting one up costs more than drawing from it.
    let samplers: Vec<Option<Poisson<f64>>> = (0..256)
        .map(|level| Poisson::new(f64::from(level) / 255.0 * values).ok())
        .collect();
    let noise: Vec<f32> = levels
        .iter()
        .map(|&level| {
            let count = samplers[usize::from(level)]
                .as_ref()
                .map_or(0.0, |poisson| poisson.sample(rng)); // level 0 stays 0
            (scale * (count / values - f64::from(level) / 255.0)) as f32
        })
        .collect();
    add(image, &noise, area);
    scale * (0.5 / values).sqrt() * 255.0
}

/// Adds one plane of noise to all channels, or three planes to three.
fn add(image: &mut Image, noise: &[f32], area: usize) {
    for (v, n) in image
        .rgb
        .iter_mut()
        .zip(noise.iter().cycle().take(3 * area))
    {
        *v = (*v + n).clamp(0.0, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    fn deviation(noisy: &Image, clean: &Image, c: usize) -> f64 {
        let squares = noisy
            .plane(c)
            .iter()
            .zip(clean.plane(c))
            .map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / noisy.area() as f64).sqrt() * 255.0
    }

    #[test]
    fn gaussian_noise_has_its_deviation_and_clips() {
        let clean = Image::from_fn(128, 128, |_, _, _| 0.5);
        for channels in [Channels::Each, Channels::Shared] {
            let mut noisy = clean.clone();
            gaussian_noise(&mut noisy, 20.0, channels, &mut stream(3, "gaussian"));
            for c in 0..3 {
                assert!(
                    (deviation(&noisy, &clean, c) - 20.0).abs() < 0.5,
                    "{channels:?}"
                );
            }
            assert_eq!(
                noisy.plane(0) == noisy.plane(1),
                channels == Channels::Shared
            );
            gaussian_noise(&mut noisy, 255.0, channels, &mut stream(3, "clip"));
            assert!(noisy.rgb.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }

    #[test]
    fn poisson_noise_grows_as_the_root_of_the_light_and_says_its_deviation() {
        // All 256 levels in a strip on top, so that V = 256; below, two flat halves.
        let clean = Image::from_fn(256, 129, |_, y, x| match (y, x) {
            (0, x) => x as f32 / 255.0,
            (_, 0..128) => 51.0 / 255.0,
            _ => 204.0 / 255.0,
        });
        let mut noisy = clean.clone();
        let said = poisson_noise(&mut noisy, 0.5, Channels::Each, &mut stream(3, "poisson"));
        assert!((said - 0.5 * (0.5f64 / 256.0).sqrt() * 255.0).abs() < 1e-9);
        for (left, level) in [(0, 0.2f64), (128, 0.8)] {
            let (a, b) = (noisy.crop(left, 1, 128, 128), clean.crop(left, 1, 128, 128));
            let expected = 0.5 * (level / 256.0).sqrt() * 255.0;
            let got = deviation(&a, &b, 1);
            assert!(
                (got / expected - 1.0).abs() < 0.03,
                "{level}: {got}, expected {expected}"
            );
        }
    }

    #[test]
    fn black_has_no_photons() {
        let mut black = Image::from_fn(8, 8, |_, _, _| 0.0);
        poisson_noise(&mut black, 3.0, Channels::Shared, &mut stream(3, "black"));
        assert!(black.rgb.iter().all(|&v| v == 0.0));
    }
}
