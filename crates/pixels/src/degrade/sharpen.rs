//! Unsharp masking of the target, as Real-ESRGAN trains: residual r = x - G x, mask m = G \[|r| 255 > threshold\],
//! out = m clip(x + weight r) + (1 - m) x.
//!
//! G is Gaussian, 51 x 51, OpenCV's sigma for that size (8.0). Source: BasicSR `img_process_util.py`, `USMSharp`.

use super::Sharpen;
use super::filter::separable;
use crate::Image;

/// The picture sharpened; alpha and metadata are kept.
pub fn sharpen(image: &Image, law: &Sharpen) -> Image {
    let taps = gaussian(law.size | 1);
    let (weight, threshold) = (law.weight as f32, law.threshold as f32);
    let mut out = image.clone();
    for c in 0..3 {
        let blurred = separable(image.plane(c), image.width, &taps);
        let plane = out.plane_mut(c);
        let mask: Vec<f32> = plane
            .iter()
            .zip(&blurred)
            .map(|(x, g)| f32::from((x - g).abs() * 255.0 > threshold))
            .collect();
        let mask = separable(&mask, image.width, &taps);
        for ((x, g), m) in plane.iter_mut().zip(blurred).zip(mask) {
            let sharp = (*x + weight * (*x - g)).clamp(0.0, 1.0);
            *x = m * sharp + (1.0 - m) * *x;
        }
    }
    out
}

/// `cv2.getGaussianKernel(size, 0)`.
pub(crate) fn gaussian(size: usize) -> Vec<f32> {
    let half = (size / 2) as f64;
    let sigma = 0.3 * (half - 1.0) + 0.8;
    let taps: Vec<f64> = (0..size)
        .map(|i| (-0.5 * ((i as f64 - half) / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = taps.iter().sum();
    taps.into_iter().map(|tap| (tap / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: Sharpen = Sharpen {
        weight: 0.5,
        size: 51,
        threshold: 10.0,
    };

    #[test]
    fn flat_and_faint_pictures_stay() {
        let faint = Image::from_fn(64, 48, |_, y, x| 0.5 + 0.01 * ((x + y) % 2) as f32);
        assert_eq!(sharpen(&faint, &LAW), faint);
    }

    #[test]
    fn an_edge_gets_steeper() {
        let edge = Image::from_fn(64, 48, |_, _, x| if x < 32 { 0.4 } else { 0.6 });
        let sharp = sharpen(&edge, &LAW);
        assert!(
            sharp.plane(0)[31] < 0.38 && sharp.plane(0)[32] > 0.62,
            "{:?}",
            &sharp.plane(0)[28..36]
        );
    }
}
