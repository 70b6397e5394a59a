//! Scaling for people: a convolution whose kernel is stretched when shrinking, on each plane in `f32`, clamped to
//! `[0, 1]`.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::Image;

/// The kernel of [`scale`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, radius 1: soft, never overshoots.
    Bilinear,
    /// Cubic with B = 0, C = 1/2, radius 2: sharp with slight overshoot.
    #[default]
    CatmullRom,
    /// Windowed sinc, radius 3: the sharpest, overshoots most.
    Lanczos3,
}

/// The picture at `width` x `height` pixels; alpha is scaled as its own plane, the rest is kept.
///
/// # Panics
/// If a side is zero or beyond `u32`.
pub fn scale(image: &Image, width: usize, height: usize, filter: Filter) -> Image {
    assert!(
        width > 0 && height > 0,
        "a picture has pixels: got {width}x{height}"
    );
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    let side = |n: usize| u32::try_from(n).expect("a side fits u32");
    let (from, to) = (
        (side(image.width), side(image.height)),
        (side(width), side(height)),
    );
    let filter = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::CatmullRom => FilterType::CatmullRom,
        Filter::Lanczos3 => FilterType::Lanczos3,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    image.with_planes(width, height, |plane| {
        let pixels: Vec<F32> = plane.iter().map(|&v| F32::new(v)).collect();
        let source = TypedImageRef::new(from.0, from.1, &pixels).expect("the plane has its size");
        let mut out = TypedImage::<F32>::new(to.0, to.1);
        Resizer::new()
            .resize_typed(&source, &mut out, &options)
            .expect("the whole plane is a valid crop");
        out.pixels().iter().map(|p| p.0.clamp(0.0, 1.0)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTERS: [Filter; 3] = [Filter::Bilinear, Filter::CatmullRom, Filter::Lanczos3];

    #[test]
    fn a_constant_stays_constant_and_alpha_follows() {
        let mut image = Image::from_fn(9, 7, |c, _, _| 0.2 + 0.3 * c as f32);
        image.alpha = Some(vec![0.25; 63]);
        for filter in FILTERS {
            for (width, height) in [(3, 2), (31, 20), (9, 40)] {
                let out = scale(&image, width, height, filter);
                for c in 0..3 {
                    let worst = out
                        .plane(c)
                        .iter()
                        .map(|v| (v - 0.2 - 0.3 * c as f32).abs())
                        .fold(0.0, f32::max);
                    assert!(worst < 1e-6, "{filter:?} {width}x{height}: {worst}");
                }
                assert!(
                    out.alpha
                        .expect("kept")
                        .iter()
                        .all(|a| (a - 0.25).abs() < 1e-6)
                );
            }
        }
    }

    #[test]
    fn shrinking_does_not_alias() {
        // One-pixel stripes carry nothing but their mean at half the size.
        let stripes = Image::from_fn(64, 64, |_, _, x| (x % 2) as f32);
        for filter in FILTERS {
            let out = scale(&stripes, 24, 24, filter);
            let inner = out.crop(4, 4, 16, 16);
            let worst = inner
                .rgb
                .iter()
                .map(|v| (v - 0.5).abs())
                .fold(0.0, f32::max);
            assert!(worst < 0.1, "{filter:?}: {worst}");
        }
    }

    #[test]
    fn a_ramp_stays_a_ramp_inside() {
        let ramp = Image::from_fn(20, 20, |_, _, x| (x as f32 + 0.5) / 20.0);
        let out = scale(&ramp, 40, 40, Filter::CatmullRom);
        for x in 8..32 {
            assert!(
                (out.plane(0)[20 * 40 + x] - (x as f32 + 0.5) / 40.0).abs() < 1e-5,
                "column {x}"
            );
        }
    }

    #[test]
    fn overshoot_is_clamped() {
        let edge = Image::from_fn(16, 4, |_, _, x| f32::from(x >= 8));
        for filter in FILTERS {
            assert!(
                scale(&edge, 37, 9, filter)
                    .rgb
                    .iter()
                    .all(|v| (0.0..=1.0).contains(v))
            );
        }
    }
}
