//! Pictures: files, resizing, colour, degradation, scores; knows no tensor.
//!
//! Legend: `c` channel (red, green, blue), `h w` height and width in pixels, `y x` a row and a column;
//! a *plane* is `h * w` samples, row after row; samples are `f32` in `[0, 1]` unless a name says otherwise.

pub mod colour;
pub mod degrade;
mod error;
pub mod image;
pub mod io;
pub mod random;
pub mod resize;
pub mod score;
mod softness;

pub use crate::error::Error;
pub use crate::image::{Depth, Image};
pub use crate::softness::softness;
