//! Writing a picture: the extension chooses the format, and the file appears whole or not at all.
//!
//! The bytes go to a temporary file in the same folder, are synced, and take the name in one rename; after a failure
//! nothing new lies there. Alpha, 16 bits, ICC and EXIF are written where the format carries them:
//!
//! | | alpha | 16 bits | ICC | EXIF |
//! |---|---|---|---|---|
//! | PNG | yes | yes | yes | yes |
//! | JPEG | dropped | 8 | yes | yes, up to 64 kB |
//! | WebP | yes | 8 | yes | yes |
//! | TIFF | yes | yes | yes | no |
//! | BMP | yes | 8 | no | no |

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use image::codecs::{bmp::BmpEncoder, png::PngEncoder, tiff::TiffEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::Format;
use crate::image::{u8_from_unit, u16_from_unit};
use crate::{Depth, Error, Image};

/// Quality of JPEG files, with full chroma resolution.
const JPEG_QUALITY: u8 = 95;
/// The largest EXIF block a JPEG segment holds beside its length and prefix.
const JPEG_EXIF_BYTES: usize = 65_533 - 6;

/// Writes the picture to `path`, atomically, in the format of its extension.
///
/// # Errors
/// `Unsupported` for another extension or a picture too large for the format, `Io` when the folder is missing, full
/// or not writable.
pub fn save(image: &Image, path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let bytes = encode(image, Format::from_path(path)?, path)?;
    write_atomically(&bytes, path)
}

/// The bytes of the picture as a file of this format; `path` is only for messages.
///
/// # Errors
/// `Unsupported` when the picture is too large for the format.
pub fn encode(image: &Image, format: Format, path: &Path) -> Result<Vec<u8>, Error> {
    let too_large = |most: usize| {
        let problem = format!(
            "{}x{} is too large for {format:?}, which ends at {most} px",
            image.width, image.height
        );
        Error::unsupported(path, problem, "save it as .png or .tiff")
    };
    let longest = image.width.max(image.height);
    match format {
        Format::Jpeg if longest > 65_535 => return Err(too_large(65_535)),
        Format::WebP if longest > 16_383 => return Err(too_large(16_383)),
        _ => {}
    }
    if format == Format::Jpeg {
        return encode_jpeg(image, path);
    }
    let depth = if matches!(format, Format::Png | Format::Tiff) {
        image.depth
    } else {
        Depth::Eight
    };
    let (bytes, layout) = interleaved(image, depth);
    let mut out = Cursor::new(Vec::new());
    match format {
        Format::Png => with_metadata(PngEncoder::new(&mut out), image, &bytes, layout),
        Format::WebP => with_metadata(WebPEncoder::new_lossless(&mut out), image, &bytes, layout),
        Format::Tiff => with_metadata(TiffEncoder::new(&mut out), image, &bytes, layout),
        Format::Bmp => with_metadata(BmpEncoder::new(&mut out), image, &bytes, layout),
        Format::Jpeg => unreachable!("written above"),
    }
    .map_err(|e| Error::unsupported(path, format!("cannot be encoded ({e})"), "save it as .png"))?;
    Ok(out.into_inner())
}

fn with_metadata(
    mut encoder: impl ImageEncoder,
    image: &Image,
    bytes: &[u8],
    layout: ExtendedColorType,
) -> image::ImageResult<()> {
    // A format that carries none says so here; the module doc has the table.
    if let Some(icc) = &image.icc {
        let _ = encoder.set_icc_profile(icc.clone());
    }
    if let Some(exif) = &image.exif {
        let _ = encoder.set_exif_metadata(exif.clone());
    }
    encoder.write_image(bytes, image.width as u32, image.height as u32, layout)
}

fn encode_jpeg(image: &Image, path: &Path) -> Result<Vec<u8>, Error> {
    let failed =
        |e| Error::unsupported(path, format!("cannot be encoded ({e})"), "save it as .png");
    let mut out = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut out, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::R_4_4_4);
    if let Some(exif) = image
        .exif
        .as_ref()
        .filter(|exif| exif.len() <= JPEG_EXIF_BYTES)
    {
        encoder.add_exif_metadata(exif).map_err(failed)?;
    }
    if let Some(icc) = &image.icc {
        encoder.add_icc_profile(icc).map_err(failed)?;
    }
    let (width, height) = (image.width as u16, image.height as u16); // both were checked
    encoder
        .encode(&image.to_u8(), width, height, jpeg_encoder::ColorType::Rgb)
        .map_err(failed)?;
    Ok(out)
}

/// Pixels in native byte order, with alpha where there is one.
fn interleaved(image: &Image, depth: Depth) -> (Vec<u8>, ExtendedColorType) {
    let mut planes: Vec<&[f32]> = (0..3).map(|c| image.plane(c)).collect();
    planes.extend(image.alpha.as_deref());
    let samples = (0..image.area()).flat_map(|i| planes.iter().map(move |plane| plane[i]));
    match depth {
        Depth::Eight => (
            samples.map(u8_from_unit).collect(),
            if planes.len() == 4 {
                ExtendedColorType::Rgba8
            } else {
                ExtendedColorType::Rgb8
            },
        ),
        Depth::Sixteen => (
            samples
                .flat_map(|v| u16_from_unit(v).to_ne_bytes())
                .collect(),
            if planes.len() == 4 {
                ExtendedColorType::Rgba16
            } else {
                ExtendedColorType::Rgb16
            },
        ),
    }
}

fn write_atomically(bytes: &[u8], path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let refused = |source| {
        Error::io(
            path,
            source,
            "check that the output folder exists, is writable and has room",
        )
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".reclair-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // the umask applies, as to any new file
    }
    let mut file = builder.tempfile_in(&folder).map_err(refused)?; // removed again unless it is persisted
    file.write_all(bytes).map_err(refused)?;
    file.as_file().sync_all().map_err(refused)?;
    file.persist(path).map_err(|e| refused(e.error))?;
    // The rename itself is durable once the folder is synced; a file system that cannot do so is no failure.
    let _ = std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
    Ok(())
}
