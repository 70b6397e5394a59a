//! Structural similarity (Wang et al. 2004), 11 x 11 Gaussian windows of sigma 1.5 that lie wholly inside.
//!
//! On whole numbers 0 to 255: with window means mu, variances s (biased) and covariance s_xy,
//! cs = max(0, (2 s_xy + C2) / (s_x + s_y + C2)), ssim = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1) cs, C1 = (0.01
//! 255)^2, C2 = (0.03 255)^2; the mean over windows, then over planes. Sums in `f64`; pyiqa stores its taps in
//! `f32`, which moves the score by less than 1e-7.

use rayon::prelude::*;

use super::{rounded_planes, same_size};
use crate::colour::Luma;
use crate::{Error, Image};

const SIDE: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = 6.5025;
const C2: f64 = 58.5225;

/// SSIM, 1 for equal pictures; higher is better.
///
/// # Errors
/// `Mismatch` when the sizes differ or a side is below 11 pixels.
pub fn ssim(image: &Image, reference: &Image, luma: Luma) -> Result<f64, Error> {
    same_size("SSIM", image, reference)?;
    if image.width < SIDE || image.height < SIDE {
        return Err(Error::Mismatch {
            what: "SSIM".to_owned(),
            expected: "pictures of at least 11x11 pixels".to_owned(),
            got: format!("{}x{}", image.width, image.height),
            advice: "compare larger pictures",
        });
    }
    let (xs, ys) = (rounded_planes(image, luma), rounded_planes(reference, luma));
    let scores: Vec<f64> = xs
        .par_iter()
        .zip(&ys)
        .map(|(x, y)| plane_ssim(x, y, image.width))
        .collect();
    Ok(scores.iter().sum::<f64>() / scores.len() as f64)
}

fn plane_ssim(x: &[f64], y: &[f64], width: usize) -> f64 {
    let mean_of = |value: fn(f64, f64) -> f64| {
        window_means(
            &x.iter()
                .zip(y)
                .map(|(&x, &y)| value(x, y))
                .collect::<Vec<f64>>(),
            width,
        )
    };
    let (mx, my) = (mean_of(|x, _| x), mean_of(|_, y| y));
    let (mxx, myy, mxy) = (
        mean_of(|x, _| x * x),
        mean_of(|_, y| y * y),
        mean_of(|x, y| x * y),
    );
    let windows = (0..mx.len()).map(|i| {
        let (mx, my) = (mx[i], my[i]);
        let (sx, sy, sxy) = (mxx[i] - mx * mx, myy[i] - my * my, mxy[i] - mx * my);
        let cs = ((2.0 * sxy + C2) / (sx + sy + C2)).max(0.0);
        (2.0 * mx * my + C1) / (mx * mx + my * my + C1) * cs
    });
    windows.sum::<f64>() / mx.len() as f64
}

/// The Gaussian mean of every window inside the plane, `[h - 10, w - 10]`.
fn window_means(plane: &[f64], width: usize) -> Vec<f64> {
    let taps: Vec<f64> = (0..SIDE)
        .map(|i| (-0.5 * ((i as f64 - 5.0) / SIGMA).powi(2)).exp())
        .collect();
    let sum: f64 = taps.iter().sum();
    let taps: Vec<f64> = taps.iter().map(|tap| tap / sum).collect();
    let inner = width - SIDE + 1;
    let across: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|row| {
            row.windows(SIDE).map(|window| {
                window
                    .iter()
                    .zip(&taps)
                    .map(|(v, tap)| v * tap)
                    .sum::<f64>()
            })
        })
        .collect();
    let rows = plane.len() / width - SIDE + 1;
    let mut out = vec![0.0; rows * inner];
    for (y, target) in out.chunks_exact_mut(inner).enumerate() {
        for (k, tap) in taps.iter().enumerate() {
            for (sum, v) in target.iter_mut().zip(&across[(y + k) * inner..]) {
                *sum += tap * v;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::synthetic;

    #[test]
    fn pyiqa_gives_the_same() {
        let (reference, distorted) = synthetic::pair();
        for (luma, expected) in [
            (Luma::Yiq, 0.941_707_05),
            (Luma::Rgb, 0.858_787_79),
            (Luma::Ycbcr, 0.949_306_08),
        ] {
            let got = ssim(&distorted, &reference, luma).expect("same size");
            assert!(
                (got - expected).abs() < 1e-6,
                "{luma:?}: {got}, expected {expected}"
            );
        }
        let inner = |image: &Image| image.crop(4, 4, 312, 248);
        let got = ssim(&inner(&distorted), &inner(&reference), Luma::Yiq).expect("same size");
        assert!((got - 0.943_834_74).abs() < 1e-6, "{got}");
    }

    #[test]
    fn equal_pictures_give_one_and_small_ones_an_error() {
        let (reference, _) = synthetic::pair();
        assert!((ssim(&reference, &reference, Luma::Rgb).expect("same size") - 1.0).abs() < 1e-12);
        let small = reference.crop(0, 0, 10, 40);
        assert!(ssim(&small, &small, Luma::Yiq).is_err());
    }
}
