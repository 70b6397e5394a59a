//! How much of the reference's detail a restoration has: the slope of its gradients on the reference's,
//! sum(grad x . grad y) / sum(|grad y|^2) on luma (YIQ), forward differences inside the picture.
//!
//! Identity gives 1 and k x gives k; a blur gives less than 1; noise that has nothing to do with the reference adds
//! nothing on average, so that invented texture is not counted as detail, unlike in a sharpness score. PSNR punishes
//! a shift; this one hardly sees a change of tone.

use super::same_size;
use crate::colour::Luma;
use crate::{Error, Image};

/// The share of the reference's gradients present in `image`; 0 when the reference is flat.
///
/// # Errors
/// `Mismatch` when the sizes differ.
pub fn detail(image: &Image, reference: &Image) -> Result<f64, Error> {
    same_size("detail", image, reference)?;
    let (x, y) = (&Luma::Yiq.planes(image)[0], &Luma::Yiq.planes(reference)[0]);
    let (width, area) = (image.width, image.area());
    let (mut product, mut square) = (0.0, 0.0);
    let mut add = |i: usize, next: usize| {
        let (dx, dy) = (f64::from(x[next] - x[i]), f64::from(y[next] - y[i]));
        product += dx * dy;
        square += dy * dy;
    };
    for i in 0..area {
        if i % width + 1 < width {
            add(i, i + 1);
        }
        if i + width < area {
            add(i, i + width);
        }
    }
    Ok(if square > 0.0 { product / square } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::kernel::{Kernel, Shape};
    use crate::degrade::{Channels, filter2d, gaussian_noise};
    use crate::random::stream;
    use crate::score::synthetic;

    #[test]
    fn identity_is_one_and_a_factor_is_itself() {
        let (reference, _) = synthetic::pair();
        assert_eq!(detail(&reference, &reference).expect("same size"), 1.0);
        let faint = Image::from_fn(320, 256, |c, y, x| {
            0.3 + 0.25 * reference.plane(c)[y * 320 + x]
        });
        assert!((detail(&faint, &reference).expect("same size") - 0.25).abs() < 1e-5);
        assert_eq!(
            detail(&reference, &Image::from_fn(320, 256, |_, _, _| 0.5)).expect("same size"),
            0.0
        );
    }

    #[test]
    fn blur_takes_it_away_more_and_more() {
        let (reference, _) = synthetic::pair();
        let blurred = |sigma: f64| {
            let kernel = Kernel::new(
                13,
                Shape::Gaussian {
                    sigma: [sigma; 2],
                    rotation: 0.0,
                },
            );
            detail(&filter2d(&reference, &kernel), &reference).expect("same size")
        };
        let seen = [0.4, 0.8, 1.6].map(blurred);
        assert!(
            1.0 > seen[0] && seen[0] > seen[1] && seen[1] > seen[2] && seen[2] > 0.0,
            "{seen:?}"
        );
    }

    #[test]
    fn noise_adds_nothing() {
        let reference = Image::from_fn(256, 256, |_, y, x| {
            0.5 + 0.2 * (x as f32 / 3.0).sin() * (y as f32 / 4.0).cos()
        });
        let mut noisy = reference.clone();
        gaussian_noise(&mut noisy, 15.0, Channels::Each, &mut stream(5, "detail"));
        let got = detail(&noisy, &reference).expect("same size");
        assert!((got - 1.0).abs() < 0.02, "{got}");
    }
}
