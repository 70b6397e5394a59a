//! Making a bad photograph from a good one: the second-order degradation of Real-ESRGAN, and others, from one list
//! of steps.
//!
//! A [`Degradation`] is data: a scale, an optional sharpening of the target, and steps, each with the ranges it draws
//! from. [`degrade`] draws, applies, rounds to 8 bits, and returns the picture at the low size or resized back,
//! together with all it has drawn and the words for it.
//!
//! Source: X. Wang et al., *Real-ESRGAN* (2021); order and numbers of `realesrgan_model.py`, `realesrgan_dataset.py`
//! and BasicSR's `degradations.py` (Apache-2.0). Where we differ: JPEG is a real 4:2:0 codec with whole qualities
//! (there: DiffJPEG with fractional ones, nearest chroma), and each picture draws for itself (there: one draw of
//! resize, noise kind and order a batch).

mod config;
mod draw;
mod drawn;
mod filter;
mod jpeg;
pub mod kernel;
mod noise;
mod pipeline;
mod presets;
mod sharpen;

pub use config::{Degradation, KernelLaw, Noise, Range, Resize, Sharpen, Step};
pub use drawn::{DESCRIPTORS, Degraded, Drawn, descriptors};
pub use filter::filter2d;
pub(crate) use filter::separable;
pub use jpeg::jpeg;
pub use kernel::Kernel;
pub use noise::{Channels, gaussian_noise, poisson_noise};
pub use pipeline::{OutputSize, degrade};
pub(crate) use sharpen::gaussian;
pub use sharpen::sharpen;
