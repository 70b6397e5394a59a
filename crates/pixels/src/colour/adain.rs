//! AdaIN: every channel gets the mean and the deviation of the reference, (x - mu_x) / sigma_x * sigma_r + mu_r.
//!
//! Source: `adaptive_instance_normalization` of StableSR's `wavelet_color_fix.py`: sigma = sqrt(var + 1e-5), var
//! unbiased. It repairs a cast of the whole picture; for local ones see [`wavelet`](super::wavelet()).

use crate::{Error, Image};

/// `image` with the reference's mean and deviation per channel, clamped to `[0, 1]`; the rest is kept.
///
/// # Errors
/// `Mismatch` when the sizes differ.
pub fn adain(image: &Image, reference: &Image) -> Result<Image, Error> {
    super::same_size("AdaIN colour fix", image, reference)?;
    let mut out = image.clone();
    for c in 0..3 {
        let (mean, deviation) = moments(image.plane(c));
        let (mean_r, deviation_r) = moments(reference.plane(c));
        for v in out.plane_mut(c) {
            *v = ((f64::from(*v) - mean) / deviation * deviation_r + mean_r) as f32;
        }
    }
    Ok(out.clamped())
}

fn moments(plane: &[f32]) -> (f64, f64) {
    let n = plane.len() as f64;
    let mean = plane.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = plane
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>();
    (mean, (squares / (n - 1.0).max(1.0) + 1e-5).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_is_undone() {
        let reference = Image::from_fn(16, 12, |c, y, x| {
            0.3 + 0.4 * (((x * 5 + y * 3 + c) % 17) as f32 / 16.0)
        });
        let mut cast = reference.clone();
        for (c, shift) in [(0, 0.1), (1, -0.05), (2, 0.2)] {
            cast.plane_mut(c).iter_mut().for_each(|v| *v += shift);
        }
        let fixed = adain(&cast, &reference).expect("same size");
        let worst = fixed
            .rgb
            .iter()
            .zip(&reference.rgb)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn another_size_is_an_error_that_says_what_to_do() {
        let error = adain(
            &Image::new(2, 1, vec![0.0; 6]),
            &Image::new(1, 1, vec![0.0; 3]),
        )
        .expect_err("sizes differ");
        assert!(
            error
                .to_string()
                .ends_with("scale the reference to the size of the result first"),
            "{error}"
        );
    }
}
