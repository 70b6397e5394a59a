//! Wavelet colour fix: the details of the result on the broad colours of the reference.
//!
//! An undecimated decomposition of five levels: low_0 = x, low_{i+1} = B_{2^i} low_i, high = x - low_5, where B_r is
//! the 3x3 binomial kernel \[1 2 1; 2 4 2; 1 2 1\]/16 with taps r = 1, 2, 4, 8, 16 pixels apart and replicated edges.
//! out = high(result) + low_5(reference). Source: StableSR `scripts/wavelet_color_fix.py`. The kernel is applied as a
//! row and a column, which is the same sum.

use rayon::prelude::*;

use crate::{Error, Image};

const LEVELS: u32 = 5;

/// `image` with the reference's colours at scales above some 32 pixels, clamped to `[0, 1]`; the rest is kept.
///
/// # Errors
/// `Mismatch` when the sizes differ.
pub fn wavelet(image: &Image, reference: &Image) -> Result<Image, Error> {
    super::same_size("wavelet colour fix", image, reference)?;
    let mut out = image.clone();
    let (width, area) = (image.width, image.area());
    out.rgb
        .par_chunks_exact_mut(area)
        .enumerate()
        .for_each(|(c, plane)| {
            // low_5 is linear: high(result) + low(reference) = result + low(reference - result), in one decomposition.
            let mut low: Vec<f32> = reference
                .plane(c)
                .iter()
                .zip(&*plane)
                .map(|(r, x)| r - x)
                .collect();
            for level in 0..LEVELS {
                low = blur(&low, width, 1 << level);
            }
            for (v, low) in plane.iter_mut().zip(low) {
                *v += low;
            }
        });
    Ok(out.clamped())
}

/// \[1 2 1\]/4 along the rows, then along the columns, taps `radius` apart, edges replicated.
fn blur(plane: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let height = plane.len() / width;
    let mut across = Vec::with_capacity(plane.len());
    for row in plane.chunks_exact(width) {
        across.extend((0..width).map(|x| {
            let (before, after) = (
                row[x.saturating_sub(radius)],
                row[(x + radius).min(width - 1)],
            );
            0.25 * before + 0.5 * row[x] + 0.25 * after
        }));
    }
    let mut out = Vec::with_capacity(plane.len());
    for y in 0..height {
        let row = |y: usize| &across[y * width..][..width];
        let (before, here, after) = (
            row(y.saturating_sub(radius)),
            row(y),
            row((y + radius).min(height - 1)),
        );
        out.extend((0..width).map(|x| 0.25 * before[x] + 0.5 * here[x] + 0.25 * after[x]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texture(width: usize, height: usize) -> Image {
        Image::from_fn(width, height, |c, y, x| {
            0.35 + 0.3 * (((x * 7 + y * 11 + c * 5) % 13) as f32 / 12.0)
        })
    }

    #[test]
    fn a_picture_fixed_by_itself_is_itself() {
        assert_eq!(
            wavelet(&texture(40, 33), &texture(40, 33)).expect("same size"),
            texture(40, 33)
        );
    }

    #[test]
    fn a_constant_cast_is_undone() {
        let mut cast = texture(40, 33);
        cast.plane_mut(1).iter_mut().for_each(|v| *v += 0.2);
        let fixed = wavelet(&cast, &texture(40, 33)).expect("same size");
        let worst = fixed
            .rgb
            .iter()
            .zip(&texture(40, 33).rgb)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn details_come_from_the_picture_not_from_the_reference() {
        let grey = Image::from_fn(128, 96, |_, _, _| 0.5);
        let fixed =
            wavelet(&grey, &Image::from_fn(128, 96, |_, _, x| (x % 2) as f32)).expect("same size");
        let inner = fixed.crop(32, 32, 64, 32);
        assert!(inner.rgb.iter().all(|v| (v - 0.5).abs() < 1e-3));
    }
}
