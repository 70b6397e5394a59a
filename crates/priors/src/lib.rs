//! Diffusion priors as sequences of segments: the SDXL-shaped U-Net, SD3's transformer, AutoencoderKL, the CLIP
//! and T5 text encoders, their tokenizers and configuration, in diffusers' folder layout and tensor names.
//!
//! A prior is entered with a latent, walked segment by segment, and left with a prediction; whoever
//! walks it may stand between two segments (a restoration adapter, a gradient checkpoint, a parity
//! test). This crate knows no adapter; a low-rank term enters through [`nn::Tap`].
//!
//! Legend: `b` batch, `c` channels, `h w` latent or pixel rows and columns, `n` tokens, `d` width,
//! `k` heads.

mod error;
mod json;

pub mod any;
pub mod clip;
pub mod flow;
pub mod folder;
pub mod kind;
pub mod known;
pub mod mmdit;
pub mod model;
pub mod nn;
pub mod scheduler;
pub mod single_file;
pub mod t5;
pub mod text;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

pub use error::{Error, one_line};
