//! What a degradation drew, and the words for it.
//!
//! The words become the prompt of a training pair whose target is the bad picture itself ("low quality, blurry"), so
//! that the prior learns what to stay away from. They follow what was drawn, by fixed thresholds:
//!
//! - `low quality`: always;
//! - `low resolution`: at some moment the picture had at most 2/3 of the input's width;
//! - `blurry`: the blurs together leave less than 0.3 of a wave of four pixels (one Gaussian of sigma 1 leaves 0.29);
//! - `noisy`: the standard deviations of all noises, root of the sum of squares, reach 5/255;
//! - `compressed`: a JPEG quality of 75 or less.

use serde::{Deserialize, Serialize};

use crate::Image;
use crate::resize::Mode;

const LOW_RESOLUTION: f64 = 2.0 / 3.0;
const BLURRY: f64 = 0.3;
const NOISY: f64 = 5.0;
const COMPRESSED: u8 = 75;

/// A pair made by [`degrade`](super::degrade()).
#[derive(Clone, Debug, PartialEq)]
pub struct Degraded {
    /// The low-quality picture.
    pub image: Image,
    /// What a restorer should give: the input, sharpened where the degradation says so.
    pub target: Image,
    /// What was drawn, in order.
    pub drawn: Vec<Drawn>,
    /// The words for it; see [`descriptors`].
    pub descriptors: Vec<&'static str>,
}

/// One step as it was drawn; steps that did not happen leave nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum Drawn {
    /// A blur.
    Blur {
        /// Which law of kernel.
        kernel: String,
        /// Taps a side.
        size: usize,
        /// Standard deviations in pixels.
        sigma: Option<[f64; 2]>,
        /// Radians.
        rotation: Option<f64>,
        /// Shape.
        beta: Option<f64>,
        /// Of a sinc, radians a pixel.
        cutoff: Option<f64>,
        /// What is left of a wave of four pixels.
        response: f64,
    },
    /// A resize.
    Resize {
        /// How.
        mode: Mode,
        /// Pixels per row afterwards.
        width: usize,
        /// Rows afterwards.
        height: usize,
        /// `width` over the width of the input.
        of_input: f64,
    },
    /// Noise.
    Noise {
        /// `gaussian` or `poisson`.
        law: String,
        /// The sigma of the Gaussian in 1/255, or the scale of the Poisson noise.
        strength: f64,
        /// One plane for the three channels.
        grey: bool,
        /// The standard deviation of the Gaussian, or of the Poisson noise at middle grey, in 1/255.
        deviation: f64,
    },
    /// Compression.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
}

/// Every word of [`descriptors`], in their order; the first is always said.
pub const DESCRIPTORS: [&str; 5] = [
    "low quality",
    "low resolution",
    "blurry",
    "noisy",
    "compressed",
];

/// The words for what was drawn, "low quality" first; the thresholds are in the module's documentation:
/// 2/3 of the width, 0.3 of a four-pixel wave, noise of 5/255, quality 75.
pub fn descriptors(drawn: &[Drawn]) -> Vec<&'static str> {
    let (mut size, mut response, mut variance, mut quality) = (1.0, 1.0, 0.0, 100);
    for step in drawn {
        match step {
            Drawn::Blur { response: r, .. } => response *= r.abs(),
            Drawn::Resize { of_input, .. } => size = of_input.min(size),
            Drawn::Noise { deviation, .. } => variance += deviation * deviation,
            Drawn::Jpeg { quality: q } => quality = quality.min(*q),
        }
    }
    let said = [
        true,
        size <= LOW_RESOLUTION,
        response < BLURRY,
        f64::sqrt(variance) >= NOISY,
        quality <= COMPRESSED,
    ];
    let words = DESCRIPTORS.into_iter().zip(said);
    words
        .filter_map(|(word, said)| said.then_some(word))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blur(response: f64) -> Drawn {
        let kernel = "iso".to_owned();
        Drawn::Blur {
            kernel,
            size: 7,
            sigma: None,
            rotation: None,
            beta: None,
            cutoff: None,
            response,
        }
    }

    fn noise(deviation: f64) -> Drawn {
        Drawn::Noise {
            law: "gaussian".to_owned(),
            strength: deviation,
            grey: false,
            deviation,
        }
    }

    fn resize(of_input: f64) -> Drawn {
        Drawn::Resize {
            mode: Mode::Area,
            width: 1,
            height: 1,
            of_input,
        }
    }

    #[test]
    fn words_appear_at_their_thresholds_and_not_before() {
        for (drawn, words) in [
            (vec![], vec![]),
            (
                vec![
                    blur(0.31),
                    noise(4.9),
                    resize(0.67),
                    Drawn::Jpeg { quality: 76 },
                ],
                vec![],
            ),
            (vec![blur(0.29)], vec!["blurry"]),
            (vec![blur(0.5), blur(0.5)], vec!["blurry"]),
            (vec![noise(3.0), noise(4.0)], vec!["noisy"]),
            (vec![resize(0.5), resize(1.0)], vec!["low resolution"]),
            (
                vec![Drawn::Jpeg { quality: 75 }, Drawn::Jpeg { quality: 95 }],
                vec!["compressed"],
            ),
        ] {
            let mut expected = vec!["low quality"];
            expected.extend(words);
            assert_eq!(descriptors(&drawn), expected, "{drawn:?}");
        }
    }

    #[test]
    fn the_record_survives_its_file() {
        let drawn = vec![
            blur(0.5),
            noise(3.0),
            resize(0.5),
            Drawn::Jpeg { quality: 30 },
        ];
        let text = serde_json::to_string(&drawn).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Vec<Drawn>>(&text).expect("its own text"),
            drawn
        );
    }
}
