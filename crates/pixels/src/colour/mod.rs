//! Colour: luma, and moving the colours of a reference onto a restored picture.

mod adain;
mod luma;
mod wavelet;

pub use adain::adain;
pub use luma::Luma;
pub use wavelet::wavelet;

use crate::{Error, Image};

fn same_size(what: &str, image: &Image, reference: &Image) -> Result<(), Error> {
    if (image.width, image.height) == (reference.width, reference.height) {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: what.to_owned(),
        expected: format!("a reference of {}x{} pixels", image.width, image.height),
        got: format!("{}x{}", reference.width, reference.height),
        advice: "scale the reference to the size of the result first",
    })
}
