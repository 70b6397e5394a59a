//! How soft a picture is: whether it lacks the finest detail that a sharp one has.
//!
//! ```text
//! ratio = rms(y - G0.8 y) / rms(y - G2 y)        y luma, G Gaussian of that sigma in pixels
//! ```
//!
//! Squares let edges count more than noise. A measure of our own; the two ratios lie between those of mini's restorations of heavily
//! degraded and of clean pictures (docs/quality.md, "Sharpening").

use crate::Image;
use crate::degrade::{gaussian, separable};

/// The ratio up to which a picture is soft.
const SOFT: f64 = 0.27;
/// The ratio from which it is not.
const FINE: f64 = 0.33;

/// Weights of red, green and blue in luma (BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// 1 for a picture without fine detail, 0 for a sharp one, between them by the ratio; a flat picture is soft.
pub fn softness(image: &Image) -> f64 {
    let luma: Vec<f32> = (0..image.plane(0).len())
        .map(|i| (0..3).map(|c| LUMA[c] * image.plane(c)[i]).sum())
        .collect();
    // Sides of 3 and 11 are sigmas of 0.8 and 2.
    let [fine, all] = [3, 11].map(|size| {
        let blurred = separable(&luma, image.width, &gaussian(size));
        let squares = luma.iter().zip(blurred);
        squares.map(|(y, g)| f64::from(y - g).powi(2)).sum::<f64>()
    });
    // Below a thousandth of a grey level there is nothing to tell.
    if all <= luma.len() as f64 * 1e-11 {
        return 1.0;
    }
    let ratio = (fine / all).sqrt();
    ((FINE - ratio) / (FINE - SOFT)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blur_makes_soft_and_fine_detail_does_not() {
        let edge = |width: f32| {
            let of = |x: usize| ((x as f32 - 32.0) / width).tanh() * 0.4 + 0.5;
            softness(&Image::from_fn(64, 48, |_, _, x| of(x)))
        };
        assert_eq!(edge(0.1), 0.0);
        assert_eq!(edge(4.0), 1.0);
        let grain = Image::from_fn(64, 48, |c, y, x| {
            0.3 + 0.1 * ((x * 7 + y * 13 + c) % 5) as f32
        });
        assert_eq!(softness(&grain), 0.0);
    }

    #[test]
    fn brightness_and_contrast_do_not_matter() {
        let of = |contrast: f32, grey: f32| {
            let edge = |x: usize| ((x as f32 - 32.0) / 0.75).tanh();
            softness(&Image::from_fn(64, 48, |_, _, x| grey + contrast * edge(x)))
        };
        let (strong, weak) = (of(0.4, 0.5), of(0.1, 0.2));
        assert!(strong > 0.0 && strong < 1.0, "{strong}");
        assert!((strong - weak).abs() < 1e-3, "{strong} {weak}");
    }

    #[test]
    fn a_flat_picture_is_soft() {
        assert_eq!(
            softness(&Image::from_fn(8, 8, |c, _, _| 0.2 * c as f32)),
            1.0
        );
    }
}
