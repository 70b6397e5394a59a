//! The file formats, by name and by content.

use std::path::Path;

use crate::Error;

/// A file format this program reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 8 bits, no alpha; written at quality 95 without chroma subsampling.
    Jpeg,
    /// 8 or 16 bits, alpha.
    Png,
    /// 8 bits, alpha; written lossless.
    WebP,
    /// 8 bits, alpha; no metadata.
    Bmp,
    /// 8 or 16 bits, alpha.
    Tiff,
}

impl Format {
    /// The format a file of this name is to have.
    ///
    /// # Errors
    /// `Unsupported` when the extension is missing or another.
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_ascii_lowercase();
        match extension.as_str() {
            "jpg" | "jpeg" => Ok(Self::Jpeg),
            "png" => Ok(Self::Png),
            "webp" => Ok(Self::WebP),
            "bmp" => Ok(Self::Bmp),
            "tif" | "tiff" => Ok(Self::Tiff),
            _ => Err(Error::unsupported(
                path,
                match extension.as_str() {
                    "" => "the file name has no extension to choose a format by".to_owned(),
                    other => format!("cannot write .{other} pictures"),
                },
                "end the name in .png, .jpg, .webp, .bmp or .tiff",
            )),
        }
    }

    /// The format of these bytes, by their first ones.
    ///
    /// # Errors
    /// `Unsupported` for a picture format that is not read here, `Input` for anything else; `path` is for the
    /// message.
    pub fn from_content(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        use image::ImageFormat;
        if bytes.is_empty() {
            return Err(Error::input(
                path,
                "the file is empty",
                "copy or download it again",
            ));
        }
        let convert = "convert it to PNG or JPEG first";
        match image::guess_format(bytes) {
            Ok(ImageFormat::Jpeg) => Ok(Self::Jpeg),
            Ok(ImageFormat::Png) => Ok(Self::Png),
            Ok(ImageFormat::WebP) => Ok(Self::WebP),
            Ok(ImageFormat::Bmp) => Ok(Self::Bmp),
            Ok(ImageFormat::Tiff) => Ok(Self::Tiff),
            Ok(other) => Err(Error::unsupported(
                path,
                format!("{other:?} pictures are not read"),
                convert,
            )),
            Err(_) if bytes.get(4..8) == Some(b"ftyp") => Err(Error::unsupported(
                path,
                "HEIC, AVIF and video files are not read",
                convert,
            )),
            Err(_) => Err(Error::input(
                path,
                "the content is not a picture, whatever the name says",
                "give a JPEG, PNG, WebP, BMP or TIFF file",
            )),
        }
    }
}

/// Whether a file of this name claims to be a picture that [`open`](super::open) reads; for finding pictures in a
/// folder. Hidden files (a leading dot) do not count.
pub fn is_picture_name(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with('.'));
    !hidden && Format::from_path(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pictures_are_known_in_any_case() {
        for name in [
            "a.jpg", "a.JPEG", "b/c.Png", "x.webp", "x.bmp", "x.tif", "x.y.TIFF",
        ] {
            assert!(is_picture_name(Path::new(name)), "{name}");
        }
        for name in ["a", "a.gif", "a.txt", "png", ".a.png", "a.png.part", ""] {
            assert!(!is_picture_name(Path::new(name)), "{name}");
        }
    }
}
