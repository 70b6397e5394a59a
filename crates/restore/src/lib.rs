//! Restoration with a frozen diffusion prior: Restoration Adapter, LoRA, samplers, guidance, tiles.
//!
//! Implements *Diffusion Restoration Adapter for Real-World Image Restoration* (2502.20679).
//!
//! A sampler is a function of a denoiser `D(x, sigma) -> x0`; predictions, guidance and tiling are
//! wrappers that turn one denoiser into another; the Restoration Sampling Strategy acts between steps.
//!
//! Legend: `b` batch, `c` channels, `h w` latent rows and columns, `n` tokens, `d` width.

mod error;
mod tiles;

pub mod adapter;
pub mod denoiser;
pub mod denoising;
pub mod lora;
pub mod options;
pub mod rehearsal;
pub mod restorer;
pub mod rss;
pub mod sampler;
pub mod schedule;
pub mod tiled;

pub use error::Error;
