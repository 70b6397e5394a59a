//! A padded picture in tiles: which there are, and the autoencoder over them.

use burn::tensor::{Device, Tensor};
use pixels::Image;
use priors::{flow::Prior, model::PriorModel, vae::AutoencoderKl};

use crate::{
    Error,
    tiled::{Blend, Tile, Tiling, cut, device_tensor, host},
};

/// Tiles of the autoencoder share this many latent rows and columns.
const VAE_OVERLAP: usize = 16;

/// Tiles of the denoiser share this part of their side.
const OVERLAP_PART: usize = 4;

/// The autoencoder over tiles of a padded picture.
pub(crate) struct Tiles<'a> {
    prior: &'a PriorModel,
    encoder: &'a AutoencoderKl,
    device: &'a Device,
    /// Latent rows and columns.
    height: usize,
    width: usize,
    /// Side of a tile in latent rows.
    tile: usize,
    /// Pixels to a latent row.
    f: usize,
    /// Latent rows to a row of the coarsest feature.
    grid: usize,
}

impl<'a> Tiles<'a> {
    /// `encoder` makes the latents, the prior's autoencoder pictures of them.
    ///
    /// # Errors
    /// Tiles that are too large for the prior.
    pub(crate) fn new(
        prior: &'a PriorModel,
        encoder: &'a AutoencoderKl,
        device: &'a Device,
        padded: &Image,
        tile_px: usize,
    ) -> Result<Self, Error> {
        let f = prior.vae.downscale();
        let grid = prior.network.downscale();
        let (height, width) = (padded.height / f, padded.width / f);
        let tile = match tile_px {
            0 => height.max(width),
            px => (px / f / grid).max(2 * OVERLAP_PART) * grid,
        };
        let seen = tile.min(height.max(width));
        match prior.network.largest() {
            Some(most) if seen > most => Err(Error::Input(format!(
                "this prior takes at most {} pixels a side and the tile has {}; choose a smaller --tile",
                most * f,
                seen * f
            ))),
            _ => Ok(Self {
                prior,
                encoder,
                device,
                height,
                width,
                tile,
                f,
                grid,
            }),
        }
    }

    /// Height and width in pixels of what the denoiser sees at once: all tiles are of one size.
    pub(crate) fn seen_px(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| self.f * side.min(self.tile))
    }

    /// How the denoiser cuts the latent.
    pub(crate) fn latent(&self) -> Tiling {
        let overlap = (self.tile / OVERLAP_PART).next_multiple_of(self.grid);
        Tiling {
            height: self.height,
            width: self.width,
            tile: self.tile,
            overlap,
            grid: self.grid,
        }
    }

    /// How the autoencoder cuts latent and pixels.
    pub(crate) fn vae(&self) -> (Tiling, Tiling) {
        let latent = Tiling {
            overlap: VAE_OVERLAP.min(self.tile / 2),
            grid: 1,
            ..self.latent()
        };
        let f = self.f;
        let pixels = Tiling {
            height: f * latent.height,
            width: f * latent.width,
            tile: f * latent.tile,
            overlap: f * latent.overlap,
            grid: f,
        };
        (latent, pixels)
    }

    /// The latent `[1, c, h, w]` of the padded picture.
    pub(crate) fn encode(&self, padded: &Image) -> Tensor<4> {
        let (latent, pixels) = self.vae();
        let channels = self.prior.vae.config().latent_channels;
        let mut blend = Blend::new(latent, channels);
        for (to, from) in latent.tiles().into_iter().zip(pixels.tiles()) {
            blend.add(to, &host(self.encode_tile(padded, from)));
        }
        device_tensor(
            blend.finish(),
            [channels, self.height, self.width],
            self.device,
        )
    }

    /// The latent of one tile, `from` in pixels.
    pub(crate) fn encode_tile(&self, padded: &Image, from: Tile) -> Tensor<4> {
        let crop = padded.crop(from.left, from.top, from.width, from.height);
        let values = crop.rgb.iter().map(|v| 2.0 * v - 1.0).collect();
        let x = device_tensor(values, [3, from.height, from.width], self.device);
        self.encoder.latent_from_image(x)
    }

    /// The padded picture of a latent.
    pub(crate) fn decode(&self, z: &Tensor<4>) -> Image {
        let (latent, pixels) = self.vae();
        let mut blend = Blend::new(pixels, 3);
        for (from, to) in latent.tiles().into_iter().zip(pixels.tiles()) {
            blend.add(to, &host(self.prior.vae.image_from_latent(cut(z, from))));
        }
        let rgb = blend.finish().into_iter().map(|v| 0.5 * v + 0.5).collect();
        Image::new(pixels.width, pixels.height, rgb)
    }
}
