//! Pieces of self-contained HTML.

use std::path::Path;

use pixels::{
    Image,
    io::{Format, encode},
};

use crate::Error;

/// Text in HTML, also inside quotation marks.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A picture that is part of the page; `Format::Jpeg` or `Format::Png`.
///
/// # Errors
/// A picture too large for the format.
pub fn image_tag(image: &Image, format: Format, alt: &str) -> Result<String, Error> {
    let kind = if format == Format::Jpeg {
        "jpeg"
    } else {
        "png"
    };
    let format = if format == Format::Jpeg {
        format
    } else {
        Format::Png
    };
    let bytes = encode(image, format, Path::new(alt))?;
    Ok(format!(
        "<img alt=\"{}\" src=\"data:image/{kind};base64,{}\">",
        escape(alt),
        base64(&bytes)
    ))
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let at = |i: usize| u32::from(part.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= part.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xbe]), "/+++");
    }
}
