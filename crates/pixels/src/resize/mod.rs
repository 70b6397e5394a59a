//! Changing the size of a picture: [`scale`] for people, [`interpolate`] for parity with torch.
//!
//! [`scale`] filters before it samples, so that shrinking does not alias; [`interpolate`] is what training pipelines
//! of the field call, and aliases exactly as they do.

mod scale;
mod torch;

pub use scale::{Filter, scale};
pub use torch::{Mode, Target, interpolate};
