//! A model's files: a diffusers folder on disk, a checkpoint, or embedded in the program.

mod cache;
mod files;
mod find;
mod fingerprint;
mod given;
mod shapes;
mod shards;

pub use cache::{Repository, hub_cache};
pub use files::Folder;
use find::refuse_pickle;
pub(crate) use find::safetensors_below;
pub use given::{Given, Replaced};
pub use shapes::{Shapes, StoredPart};

/// The weights file of a network in a diffusers folder.
pub const NETWORK_FILE: &str = "diffusion_pytorch_model.safetensors";

/// The weights file of a text encoder in a diffusers folder.
pub const ENCODER_FILE: &str = "model.safetensors";
