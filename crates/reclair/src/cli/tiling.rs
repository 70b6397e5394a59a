//! The options of `restore` for pictures larger than a tile.

use clap::ValueEnum;
use restore::{
    options::{RestoreOptions, ToldSize, VaeTiles},
    tiled::TileWeights,
};

/// How a large picture is cut.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Tiling {
    /// Side of the tiles in pixels; 0 never tiles.
    #[arg(long, default_value_t = 512)]
    tile: usize,
    /// What the denoiser's tiles weigh where they overlap [presets: mini cosine, paper and quick gaussian].
    #[arg(long, value_enum)]
    tile_weights: Option<Weights>,
    /// How the autoencoder takes a picture larger than a tile.
    #[arg(long, value_enum, default_value_t = Vae::Pooled)]
    vae_tiles: Vae,
    /// Pixels a side that SDXL is told it works at, 1024 as in SUPIR for example; by default what it sees, the tile.
    #[arg(long, value_name = "PIXELS")]
    told_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    /// Rising over the overlap along half a cosine, 1 inside.
    Cosine,
    /// A Gaussian about the tile's middle, as SUPIR's.
    Gaussian,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Vae {
    /// The whole picture's statistics in every norm: as without tiles.
    Pooled,
    /// Every tile for itself with blended overlaps: the least memory.
    Blended,
}

impl Tiling {
    /// Refuses sizes that make no sense.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.told_size {
            Some(px) => super::in_range("--told-size", px as f64, 64.0, 16384.0),
            None => Ok(()),
        }
    }

    /// The preset's options with these in their place.
    pub(super) fn options(&self, preset: RestoreOptions) -> RestoreOptions {
        RestoreOptions {
            tile_px: self.tile,
            tile_weights: match self.tile_weights {
                None => preset.tile_weights,
                Some(Weights::Cosine) => TileWeights::Cosine,
                Some(Weights::Gaussian) => TileWeights::Gaussian,
            },
            vae_tiles: match self.vae_tiles {
                Vae::Pooled => VaeTiles::Pooled,
                Vae::Blended => VaeTiles::Blended,
            },
            told_size: self.told_size.map_or(ToldSize::Seen, ToldSize::Constant),
            ..preset
        }
    }
}
