//! The photographs a run is trained on.

use std::path::PathBuf;

use pixels::degrade::Degradation;
use serde::{Deserialize, Serialize};

use super::is_default;

/// The training photographs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder of pictures or WebDataset shards, searched through, or one shard; captions in `.txt` or `.json` files
    /// beside the pictures.
    pub images: PathBuf,
    /// Pictures for validation grids and scores; never trained on.
    pub validation: Option<PathBuf>,
    /// Side of the square crops, pixels.
    pub crop_px: usize,
    /// What becomes of photographs with a side smaller than the crop.
    #[serde(default, skip_serializing_if = "is_default")]
    pub small: Small,
    /// Photographs are first reduced by a factor drawn from here, log-uniformly: `[1, 1]` never reduces.
    #[serde(default = "no_reduction")]
    pub reduce: [f64; 2],
    /// Degradations and how often each is drawn, by weight.
    #[serde(default)]
    pub degradations: Vec<Mix>,
    /// Decoded photographs kept in memory, megabytes.
    #[serde(default = "cache")]
    pub cache_mb: usize,
    /// Threads that decode, crop and degrade.
    #[serde(default = "workers")]
    pub workers: usize,
    /// How often a caption is replaced by the empty string.
    #[serde(default = "half")]
    pub null_text: f64,
    /// Whether frozen text encoders read each prompt once, into `text/` of the run's folder, and leave the memory. The
    /// result is the same.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache_text: bool,
    /// How many samples are drawn before they come again, their latents being kept in `latents/` of the run's folder, so that
    /// the frozen autoencoder reads each once; 0 draws a new one every time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache_latents: usize,
}

/// What becomes of photographs with a side smaller than the crop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Small {
    /// They are left out: an enlarged photograph would teach that blur is clean.
    #[default]
    Skip,
    /// Their crops are enlarged (Catmull-Rom).
    Enlarge,
}

/// One degradation of a mixture: a preset by name or a whole law.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// A preset's name.
    pub preset: Option<String>,
    /// A law spelt out.
    pub law: Option<Degradation>,
    /// How often, relative to the others.
    pub weight: f64,
}

fn no_reduction() -> [f64; 2] {
    [1.0, 1.0]
}
fn cache() -> usize {
    2048
}
fn workers() -> usize {
    2
}
fn half() -> f64 {
    0.5
}
