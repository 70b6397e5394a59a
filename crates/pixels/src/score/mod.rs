//! Scores that need no network: [`psnr`], [`ssim`], [`niqe`] with pyiqa's numbers, and [`detail`].
//!
//! Implemented from the published definitions and BasicSR (Apache-2.0), and held to numbers pyiqa 0.1.16 gives;
//! pyiqa's own code is not used. Pictures are scored as they are: no resize, no crop (for a `crop_border`, crop
//! first), alpha ignored. pyiqa's defaults are `psnr(.., Luma::Rgb)`, `ssim(.., Luma::Yiq)` and `niqe(..,
//! Luma::Yiq)`.

mod aggd;
mod detail;
mod niqe;
mod psnr;
mod ssim;

pub use detail::detail;
pub use niqe::niqe;
pub use psnr::psnr;
pub use ssim::ssim;

use crate::colour::Luma;
use crate::{Error, Image};

fn same_size(score: &str, image: &Image, reference: &Image) -> Result<(), Error> {
    if (image.width, image.height) == (reference.width, reference.height) {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: score.to_owned(),
        expected: format!("a reference of {}x{} pixels", image.width, image.height),
        got: format!("{}x{}", reference.width, reference.height),
        advice: "compare pictures of the same size",
    })
}

/// The planes as whole numbers 0 to 255, half to even (`torch.round`).
fn rounded_planes(image: &Image, luma: Luma) -> Vec<Vec<f64>> {
    let round = |plane: Vec<f32>| {
        plane
            .into_iter()
            .map(|v| f64::from((v * 255.0).round_ties_even()))
            .collect()
    };
    luma.planes(image).into_iter().map(round).collect()
}

#[cfg(test)]
pub(crate) mod synthetic {
    //! A pair of pictures by integer arithmetic, the same in any language.

    use crate::Image;

    /// The reference and its distortion, 320 x 256.
    pub(crate) fn pair() -> (Image, Image) {
        let (width, height) = (320, 256);
        let at = |c: usize, y: usize, x: usize| {
            let (c, y, x) = (c as i64, y as i64, x as i64);
            let mut r = ((3 * x + 2 * y + 37 * c) / 2) % 256;
            if (x / 16 + y / 16) % 2 == 1 {
                r = 255 - r;
            }
            let n = (((x * 1_103_515_245 + y * 12_345 + c * 2_654_435_761 + x * y * 69_069) >> 7)
                % 31)
                - 15;
            let reference = (r + n.div_euclid(3)).clamp(0, 255);
            (reference, (reference + n).clamp(0, 255))
        };
        let unit = |v: i64| v as f32 / 255.0;
        (
            Image::from_fn(width, height, |c, y, x| unit(at(c, y, x).0)),
            Image::from_fn(width, height, |c, y, x| unit(at(c, y, x).1)),
        )
    }

    #[test]
    fn the_pair_is_the_stated_one() {
        let (reference, distorted) = pair();
        let sum = |image: &Image| image.to_u8().iter().map(|&v| u64::from(v)).sum::<u64>();
        assert_eq!((sum(&reference), sum(&distorted)), (31_254_702, 31_253_791));
        assert_eq!(
            distorted.to_u8()[(100 * 320 + 200) * 3..][..3],
            [133, 176, 179]
        );
    }
}
