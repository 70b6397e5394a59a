//! Reading a picture: content decides the format, limits come before any allocation, and the result is upright RGB.
//!
//! Grey becomes RGB; palettes are resolved; CMYK JPEG becomes RGB; alpha is kept aside; 16 bits stay exact. The ICC
//! profile is kept when it describes RGB data (a grey or CMYK profile does not fit the RGB samples and is dropped).
//! A JPEG must reach its end marker: decoders of the field fill what is missing with grey, and a restorer would
//! paint there.

use std::io::Cursor;
use std::path::Path;

use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::Format;
use crate::{Depth, Error, Image};

/// What [`open_within`] refuses to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest side, in pixels.
    pub side: u32,
    /// The most pixels in all; a picture takes 12 bytes each in memory, and a while more when decoding.
    pub pixels: u64,
    /// The largest file, in bytes.
    pub file_bytes: u64,
}

impl Default for Limits {
    /// 30,000 px a side, 200 million pixels (the largest phone cameras), 1 GiB of file.
    fn default() -> Self {
        Self {
            side: 30_000,
            pixels: 200_000_000,
            file_bytes: 1 << 30,
        }
    }
}

const AGAIN: &str = "copy or download it again, or open and re-save it in another program";

/// The picture in the file at `path`, within the default [`Limits`].
///
/// # Errors
/// `Io` when the file cannot be read, `Input` when it is empty, damaged, truncated or no picture, `Unsupported` for
/// other formats, animations and floating-point samples, `Limits` when it is too large.
pub fn open(path: impl AsRef<Path>) -> Result<Image, Error> {
    open_within(path, Limits::default())
}

/// [`open`] with limits of your own.
///
/// # Errors
/// As [`open`].
pub fn open_within(path: impl AsRef<Path>, limits: Limits) -> Result<Image, Error> {
    let path = path.as_ref();
    let readable = |source| Error::io(path, source, "check that the file exists and may be read");
    let metadata = std::fs::metadata(path).map_err(readable)?;
    if metadata.is_dir() {
        return Err(Error::input(
            path,
            "is a folder, not a picture",
            "name a file in it",
        ));
    }
    if metadata.len() > limits.file_bytes {
        let problem = format!(
            "the file has {} bytes, more than the limit of {}",
            metadata.len(),
            limits.file_bytes
        );
        return Err(Error::limits(path, problem, "re-save it smaller"));
    }
    decode(&std::fs::read(path).map_err(readable)?, path, limits)
}

/// Width and height of the picture in `bytes` as they are stored, without decoding it; `path` is only for messages.
///
/// # Errors
/// As [`decode`].
pub fn size(bytes: &[u8], path: &Path) -> Result<[usize; 2], Error> {
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|source| Error::io(path, source, AGAIN))?;
    let (width, height) = reader
        .into_dimensions()
        .map_err(|error| from_image_error(error, path))?;
    Ok([width as usize, height as usize])
}

/// The picture in `bytes`; `path` is only for messages.
///
/// # Errors
/// As [`open`], without `Io`.
pub fn decode(bytes: &[u8], path: &Path, limits: Limits) -> Result<Image, Error> {
    let format = Format::from_content(bytes, path)?;
    if format == Format::Jpeg && !jpeg_is_whole(bytes) {
        return Err(Error::input(
            path,
            "the JPEG is truncated: it stops before its end marker",
            AGAIN,
        ));
    }
    if format == Format::WebP
        && bytes.get(12..16) == Some(b"VP8X")
        && bytes.get(20).is_some_and(|f| f & 2 != 0)
    {
        return Err(Error::unsupported(
            path,
            "animated WebP is not read",
            "extract a frame as PNG first",
        ));
    }
    let failed = |error| from_image_error(error, path);
    let mut reader = ImageReader::with_format(
        Cursor::new(bytes),
        match format {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::WebP => ImageFormat::WebP,
            Format::Bmp => ImageFormat::Bmp,
            Format::Tiff => ImageFormat::Tiff,
        },
    );
    let mut decoder_limits = image::Limits::no_limits();
    // 16-bit RGBA, and room for metadata.
    decoder_limits.max_alloc = Some(limits.pixels.saturating_mul(8).saturating_add(64 << 20));
    reader.limits(decoder_limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;

    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::input(
            path,
            format!("the picture has no pixels ({width}x{height})"),
            AGAIN,
        ));
    }
    if width.max(height) > limits.side || u64::from(width) * u64::from(height) > limits.pixels {
        let problem = format!(
            "the picture is {width}x{height}, more than the limit of {} pixels a side or {} in all",
            limits.side, limits.pixels
        );
        return Err(Error::limits(
            path,
            problem,
            "crop it or scale it down first",
        ));
    }

    // Broken metadata must not cost the picture.
    let icc = if format == Format::Tiff {
        // Once limits are set, `image` 0.25 refuses every TIFF profile that takes more room than the pixels.
        TiffDecoder::new(Cursor::new(bytes)).and_then(|mut fresh| fresh.icc_profile())
    } else {
        decoder.icc_profile()
    };
    let icc = icc
        .ok()
        .flatten()
        .filter(|icc| icc.get(16..20) == Some(b"RGB "));
    let mut exif = decoder.exif_metadata().ok().flatten();
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if let Some(exif) = &mut exif {
        let _ = Orientation::remove_from_exif_chunk(exif);
    }

    let mut pixels = DynamicImage::from_decoder(decoder).map_err(failed)?;
    pixels.apply_orientation(orientation);
    let mut image = planar(pixels, path)?;
    image.icc = icc;
    image.exif = exif;
    Ok(image)
}

/// Planes and alpha of any layout the decoders give.
fn planar(pixels: DynamicImage, path: &Path) -> Result<Image, Error> {
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let colour = pixels.color();
    let channels = usize::from(colour.channel_count());
    let (depth, sample): (_, fn(&[u8], usize) -> f32) =
        match usize::from(colour.bytes_per_pixel()) / channels {
            1 => (Depth::Eight, |bytes, i| f32::from(bytes[i]) / 255.0),
            2 => (Depth::Sixteen, |bytes, i| {
                f32::from(u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]])) / 65535.0
            }),
            _ => {
                return Err(Error::unsupported(
                    path,
                    "floating-point pictures are not read",
                    "tone-map it and save it with 8 or 16 bits first",
                ));
            }
        };
    let bytes = pixels.as_bytes();
    let plane = |c: usize| (0..width * height).map(move |i| sample(bytes, i * channels + c));
    let [r, g, b] = if colour.has_color() {
        [0, 1, 2]
    } else {
        [0; 3]
    };
    let rgb = plane(r).chain(plane(g)).chain(plane(b)).collect();
    let mut image = Image::new(width, height, rgb);
    image.alpha = colour.has_alpha().then(|| plane(channels - 1).collect());
    image.depth = depth;
    Ok(image)
}

/// Whether the marker segments lead to an end-of-image marker.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2; // past the start-of-image marker
    loop {
        // The next marker: 0xFF, then neither stuffing (0), fill (0xFF) nor a restart.
        let marker = loop {
            match bytes.get(at..at + 2) {
                None => return false,
                Some(&[0xFF, marker]) if !matches!(marker, 0 | 0xFF | 0xD0..=0xD7) => break marker,
                Some(_) => at += 1,
            }
        };
        if marker == 0xD9 {
            return true;
        }
        match bytes.get(at + 2..at + 4) {
            Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2),
            _ => return false,
        }
    }
}

/// The bytes are in memory, so that every failure, even an "I/O" one, is the picture's.
fn from_image_error(error: ImageError, path: &Path) -> Error {
    let problem = |error: &dyn std::fmt::Display| error.to_string().replace('\n', " ");
    match error {
        ImageError::Limits(e) => Error::limits(
            path,
            format!("decoding needs more memory than allowed ({})", problem(&e)),
            "crop it or scale it down first",
        ),
        ImageError::Unsupported(e) => {
            Error::unsupported(path, problem(&e), "re-save it as an ordinary PNG or JPEG")
        }
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::input(path, "the picture is truncated", AGAIN)
        }
        other => Error::input(
            path,
            format!("the picture is damaged ({})", problem(&other)),
            AGAIN,
        ),
    }
}
