//! Compression by a real JPEG codec: Annex K tables scaled by quality, 4:2:0 with averaged chroma, 8 bits in and out.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

use crate::Image;

/// The picture after compression with this quality (1 to 100), without alpha or metadata.
///
/// # Panics
/// If a side exceeds 65,535 pixels.
pub fn jpeg(image: &Image, quality: u8) -> Image {
    let side = |n: usize| u16::try_from(n).expect("a JPEG side is at most 65,535 pixels");
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder
        .encode(
            &image.to_u8(),
            side(image.width),
            side(image.height),
            ColorType::Rgb,
        )
        .expect("a picture of a valid size encodes");
    let decoder = JpegDecoder::new(Cursor::new(file)).expect("our own JPEG");
    let mut bytes = vec![0; 3 * image.area()];
    decoder.read_image(&mut bytes).expect("our own JPEG");
    Image::from_u8(image.width, image.height, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(quality: u8) -> f64 {
        let image = Image::from_fn(50, 35, |c, y, x| {
            0.5 + 0.4 * ((x * (c + 1)) as f32 / 9.0 + y as f32 / 5.0).sin()
        });
        let out = jpeg(&image, quality);
        assert_eq!((out.width, out.height), (50, 35));
        image
            .rgb
            .iter()
            .zip(&out.rgb)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            / out.rgb.len() as f64
    }

    #[test]
    fn lower_quality_loses_more() {
        let errors = [95, 70, 40, 10].map(error);
        assert!(errors.is_sorted(), "{errors:?}");
        assert!(errors[0] < 5e-4 && errors[3] > 2e-3, "{errors:?}");
    }

    #[test]
    fn grey_survives_and_tiny_pictures_pass() {
        let out = jpeg(&Image::from_fn(1, 1, |_, _, _| 0.5), 90);
        assert!(
            out.rgb.iter().all(|v| (v - 0.5).abs() < 0.02),
            "{:?}",
            out.rgb
        );
    }
}
