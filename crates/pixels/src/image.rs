//! A picture in memory: three planes of `f32` in `[0, 1]`, and what must survive a restoration beside them.
//!
//! `rgb` is planar, `[c, h, w]` row-major with `c` = red, green, blue, sRGB-encoded as in the file (never
//! linearised). Alpha, the colour profile, EXIF and the bit depth of the source ride along untouched; operations
//! that change the size change alpha too and keep the rest.

/// Bits per sample of the file a picture came from, and so of the file it is written to where the format allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// 8 bits: every JPEG, WebP and BMP, most PNG and TIFF.
    #[default]
    Eight,
    /// 16 bits: some PNG and TIFF.
    Sixteen,
}

/// A picture: upright, RGB, planar `f32` in `[0, 1]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Samples `[3, height, width]`, `f32` in `[0, 1]`.
    pub rgb: Vec<f32>,
    /// Straight (not premultiplied) alpha `[height, width]` in `[0, 1]`, when the source had one.
    pub alpha: Option<Vec<f32>>,
    /// The ICC profile that says what the RGB numbers mean; none is sRGB.
    pub icc: Option<Vec<u8>>,
    /// The EXIF block (a TIFF structure without the `Exif\0\0` prefix), its orientation already reset to upright.
    pub exif: Option<Vec<u8>>,
    /// Bits per sample of the source.
    pub depth: Depth,
}

impl Image {
    /// A picture from planar samples `[3, height, width]`, with nothing beside them.
    ///
    /// # Panics
    /// If a side is zero or `rgb` has another length.
    pub fn new(width: usize, height: usize, rgb: Vec<f32>) -> Self {
        assert!(
            width > 0 && height > 0,
            "a picture has pixels: got {width}x{height}"
        );
        assert_eq!(
            rgb.len(),
            3 * width * height,
            "expected 3*{height}*{width} samples"
        );
        Self {
            width,
            height,
            rgb,
            alpha: None,
            icc: None,
            exif: None,
            depth: Depth::Eight,
        }
    }

    /// A picture whose sample at channel `c`, row `y`, column `x` is `sample(c, y, x)`.
    pub fn from_fn(
        width: usize,
        height: usize,
        mut sample: impl FnMut(usize, usize, usize) -> f32,
    ) -> Self {
        let mut rgb = Vec::with_capacity(3 * width * height);
        for c in 0..3 {
            for y in 0..height {
                for x in 0..width {
                    rgb.push(sample(c, y, x));
                }
            }
        }
        Self::new(width, height, rgb)
    }

    /// A picture from interleaved bytes `[height, width, 3]`, as `v / 255`.
    ///
    /// # Panics
    /// If a side is zero or `bytes` has another length.
    pub fn from_u8(width: usize, height: usize, bytes: &[u8]) -> Self {
        assert_eq!(
            bytes.len(),
            3 * width * height,
            "expected {height}*{width}*3 bytes"
        );
        Self::from_fn(width, height, |c, y, x| {
            f32::from(bytes[(y * width + x) * 3 + c]) / 255.0
        })
    }

    /// Pixels in a plane.
    pub fn area(&self) -> usize {
        self.width * self.height
    }

    /// The plane of channel `c`, `[height, width]`.
    pub fn plane(&self, c: usize) -> &[f32] {
        &self.rgb[c * self.area()..(c + 1) * self.area()]
    }

    /// The plane of channel `c`, to write.
    pub fn plane_mut(&mut self, c: usize) -> &mut [f32] {
        let area = self.area();
        &mut self.rgb[c * area..(c + 1) * area]
    }

    /// Interleaved bytes `[height, width, 3]`: `255 v`, half to even, clamped.
    pub fn to_u8(&self) -> Vec<u8> {
        let area = self.area();
        let mut bytes = vec![0; 3 * area];
        for c in 0..3 {
            for (pixel, v) in bytes.chunks_exact_mut(3).zip(self.plane(c)) {
                pixel[c] = u8_from_unit(*v);
            }
        }
        bytes
    }

    /// The rectangle whose top left pixel is (`left`, `top`).
    ///
    /// # Panics
    /// If it is empty or reaches outside.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Self {
        assert!(
            width > 0 && height > 0 && left + width <= self.width && top + height <= self.height,
            "expected a crop inside {}x{}, got {width}x{height} at ({left}, {top})",
            self.width,
            self.height
        );
        self.with_planes(width, height, |plane| {
            let mut out = Vec::with_capacity(width * height);
            for row in plane.chunks_exact(self.width).skip(top).take(height) {
                out.extend_from_slice(&row[left..left + width]);
            }
            out
        })
    }

    /// The picture extended to the right and at the bottom, by reflection about the last pixel, until both sides are
    /// multiples of `multiple`; `crop(0, 0, width, height)` undoes it.
    ///
    /// # Panics
    /// If `multiple` is zero.
    pub fn pad_to_multiple(&self, multiple: usize) -> Self {
        let (width, height) = (
            self.width.next_multiple_of(multiple),
            self.height.next_multiple_of(multiple),
        );
        self.with_planes(width, height, |plane| {
            let mut out = Vec::with_capacity(width * height);
            for y in 0..height {
                let row = &plane[reflect(y as isize, self.height) * self.width..][..self.width];
                out.extend_from_slice(row);
                out.extend((self.width..width).map(|x| row[reflect(x as isize, self.width)]));
            }
            out
        })
    }

    /// The same picture with every sample moved into `[0, 1]`.
    pub fn clamped(mut self) -> Self {
        for v in &mut self.rgb {
            *v = v.clamp(0.0, 1.0);
        }
        self
    }

    /// A picture of another size whose planes, and alpha, are made by `plane` from this one's; the rest is kept.
    pub(crate) fn with_planes(
        &self,
        width: usize,
        height: usize,
        plane: impl Fn(&[f32]) -> Vec<f32>,
    ) -> Self {
        let mut rgb = Vec::with_capacity(3 * width * height);
        for c in 0..3 {
            rgb.extend(plane(self.plane(c)));
        }
        let mut out = Self::new(width, height, rgb);
        out.alpha = self.alpha.as_deref().map(plane);
        out.icc.clone_from(&self.icc);
        out.exif.clone_from(&self.exif);
        out.depth = self.depth;
        out
    }
}

/// The byte of a sample: `255 v`, half to even, clamped; a NaN is black.
pub fn u8_from_unit(v: f32) -> u8 {
    (v * 255.0).round_ties_even() as u8 // a float cast saturates
}

/// The 16-bit word of a sample: `65535 v`, half to even, clamped; a NaN is black.
pub fn u16_from_unit(v: f32) -> u16 {
    (f64::from(v) * 65535.0).round_ties_even() as u16
}

/// The index inside `0..n` that position `i` reflects to, about the first and the last pixel, as often as needed
/// (`torch.nn.functional.pad(mode="reflect")`, which refuses more than one turn).
pub(crate) fn reflect(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Image {
        let mut image = Image::from_fn(width, height, |c, y, x| {
            (c * 100 + y * 10 + x) as f32 / 300.0
        });
        image.alpha = Some((0..width * height).map(|i| i as f32 / 100.0).collect());
        image.icc = Some(vec![1, 2, 3]);
        image.depth = Depth::Sixteen;
        image
    }

    #[test]
    fn padding_then_cropping_gives_the_picture_back() {
        for (width, height) in [(1, 1), (2, 3), (7, 8), (8, 5)] {
            let image = ramp(width, height);
            let padded = image.pad_to_multiple(8);
            assert_eq!((padded.width, padded.height), (8, 8));
            assert_eq!(padded.crop(0, 0, width, height), image, "{width}x{height}");
        }
    }

    #[test]
    fn padding_reflects_without_repeating_the_edge() {
        let padded = ramp(5, 5).pad_to_multiple(8);
        assert_eq!(padded.plane(0)[5], padded.plane(0)[3]);
        assert_eq!(padded.plane(0)[7], padded.plane(0)[1]);
        assert_eq!(padded.plane(2)[6 * 8], padded.plane(2)[2 * 8]);
    }

    #[test]
    fn reflection_turns_as_often_as_needed() {
        let seen: Vec<usize> = (-5..7).map(|i| reflect(i, 3)).collect();
        assert_eq!(seen, [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(reflect(-40, 1), 0);
    }

    #[test]
    fn cropping_moves_all_planes_together() {
        let crop = ramp(6, 5).crop(2, 1, 3, 2);
        assert_eq!(
            crop.plane(1),
            [112, 113, 114, 122, 123, 124].map(|v| v as f32 / 300.0)
        );
        assert_eq!(
            crop.alpha.as_deref(),
            Some(&[0.08, 0.09, 0.10, 0.14, 0.15, 0.16][..])
        );
        assert_eq!(crop.icc, Some(vec![1, 2, 3]));
    }

    #[test]
    fn bytes_round_half_to_even_and_clamp() {
        for (v, byte) in [
            (0.5, 128),
            (2.5 / 255.0, 2),
            (3.5 / 255.0, 4),
            (-1.0, 0),
            (9.0, 255),
            (f32::NAN, 0),
        ] {
            assert_eq!(u8_from_unit(v), byte, "{v}");
        }
        assert_eq!(u16_from_unit(1.0), 65535);
        assert!((0..=255u8).all(|byte| u8_from_unit(f32::from(byte) / 255.0) == byte));
        assert!((0..=65535u16).all(|word| u16_from_unit(f32::from(word) / 65535.0) == word));
    }

    #[test]
    fn bytes_go_in_and_out_unchanged() {
        let bytes: Vec<u8> = (0..60).map(|i| (i * 37 % 256) as u8).collect();
        assert_eq!(Image::from_u8(5, 4, &bytes).to_u8(), bytes);
    }
}
