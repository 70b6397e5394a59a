//! Training of autoencoders, priors and adapters, at the size of a laptop or of SDXL.
//!
//! A run is a [`config::TrainConfig`]. Parameters, gradients and optimiser state are host values keyed
//! by tensor name; every step builds the networks over them as leaves of an autodiff tape.
//!
//! Legend: `b` batch, `c` channels, `h w` rows and columns.

mod about;
mod error;

pub mod check;
pub mod checkpoint;
pub mod config;
pub mod data;
mod disk;
mod folder;
pub mod guard;
mod lent;
pub mod loss_scale;
pub mod objective;
pub mod optimise;
pub mod origin;
mod output;
pub mod plan;
#[cfg(test)]
#[path = "../../reclair/tests/priors_on_disk/mod.rs"]
mod priors_on_disk;
pub mod ranks;
pub mod report;
pub mod run;
pub mod self_test;
mod start;
mod step;
pub mod validate;
pub mod walk;

pub use error::Error;
