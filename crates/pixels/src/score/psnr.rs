//! Peak signal-to-noise ratio: 10 log10(1 / (mean((x - y)^2) + 1e-8)), x and y in `[0, 1]`, in dB.
//!
//! Equal pictures give 80 dB, as in pyiqa. Luma is not rounded.

use super::same_size;
use crate::colour::Luma;
use crate::{Error, Image};

/// PSNR in dB over all samples of the planes; higher is better.
///
/// # Errors
/// `Mismatch` when the sizes differ.
pub fn psnr(image: &Image, reference: &Image, luma: Luma) -> Result<f64, Error> {
    same_size("PSNR", image, reference)?;
    let (x, y) = (luma.planes(image).concat(), luma.planes(reference).concat());
    let squares: f64 = x
        .iter()
        .zip(&y)
        .map(|(x, y)| f64::from(x - y).powi(2))
        .sum();
    Ok(-10.0 * (squares / x.len() as f64 + 1e-8).log10())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::synthetic;

    #[test]
    fn pyiqa_gives_the_same() {
        let (reference, distorted) = synthetic::pair();
        for (luma, expected) in [
            (Luma::Rgb, 29.310_161),
            (Luma::Yiq, 35.441_374),
            (Luma::Ycbcr, 36.763_242),
        ] {
            let got = psnr(&distorted, &reference, luma).expect("same size");
            assert!(
                (got - expected).abs() < 1e-5,
                "{luma:?}: {got}, expected {expected}"
            );
        }
        let inner = |image: &Image| image.crop(4, 4, 312, 248);
        let got = psnr(&inner(&distorted), &inner(&reference), Luma::Rgb).expect("same size");
        assert!((got - 29.311_041).abs() < 1e-5, "{got}");
    }

    #[test]
    fn equal_pictures_give_eighty() {
        let (reference, _) = synthetic::pair();
        assert_eq!(
            psnr(&reference, &reference, Luma::Rgb).expect("same size"),
            80.0
        );
    }
}
