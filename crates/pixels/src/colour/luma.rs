//! The two lumas image-quality scores are computed on.
//!
//! - `Yiq`: Y = 0.299 R + 0.587 G + 0.114 B (pyiqa's default);
//! - `Ycbcr`: Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 (BT.601 studio swing, MATLAB's `rgb2ycbcr`), with R,
//!   G, B in `[0, 1]`.
//!
//! The choice moves PSNR by 1.3 dB, so that it is always named.

use serde::{Deserialize, Serialize};

use crate::Image;

/// Which planes a score looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Luma {
    /// One plane, full swing.
    Yiq,
    /// One plane, studio swing.
    Ycbcr,
    /// No luma: the three channels.
    Rgb,
}

impl Luma {
    /// The planes, `[h, w]` each: one, or three for [`Luma::Rgb`].
    pub fn planes(self, image: &Image) -> Vec<Vec<f32>> {
        let (r, g, b) = (image.plane(0), image.plane(1), image.plane(2));
        let weighted = |weights: [f32; 3], offset: f32| {
            let pixels = r.iter().zip(g).zip(b);
            vec![
                pixels
                    .map(|((r, g), b)| r * weights[0] + g * weights[1] + b * weights[2] + offset)
                    .collect(),
            ]
        };
        match self {
            Self::Yiq => weighted([0.299, 0.587, 0.114], 0.0),
            Self::Ycbcr => weighted(
                [65.481, 128.553, 24.966].map(|w: f32| w / 255.0),
                16.0 / 255.0,
            ),
            Self::Rgb => vec![r.to_vec(), g.to_vec(), b.to_vec()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_and_black_have_their_swing() {
        for (luma, black, white) in [
            (Luma::Yiq, 0.0, 1.0),
            (Luma::Ycbcr, 16.0 / 255.0, 235.0 / 255.0),
        ] {
            for (v, y) in [(0.0, black), (1.0, white)] {
                let planes = luma.planes(&Image::from_fn(2, 2, |_, _, _| v));
                assert_eq!(planes.len(), 1);
                assert!(
                    (planes[0][3] - y).abs() < 1e-6,
                    "{luma:?} {v}: {}",
                    planes[0][3]
                );
            }
        }
    }
}
