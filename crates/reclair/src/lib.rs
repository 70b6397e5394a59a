//! The front door of reclair: the embedded prior, and where each part of the library is.
//!
//! | crate | what |
//! |---|---|
//! | `pixels` | pictures: files, resizing, colour, degradation, scores |
//! | `priors` | diffusion priors as sequences of segments |
//! | `restore` | the paper: adapter, LoRA, samplers, guidance, tiles |
//! | `train` | training of priors and adapters |
//! | `kernels` | tensor operations with their gradients |

pub mod embedded;
#[cfg(feature = "hub")]
pub mod hub;

pub use pixels;
pub use priors;
pub use restore;
pub use train;
