//! A padded picture in tiles: which there are, and the autoencoder over them.

use burn::tensor::{Device, Tensor};
use pixels::Image;
use priors::{flow::Prior, model::PriorModel, vae::AutoencoderKl};

use crate::{
    Error,
    options::{RestoreOptions, VaeTiles},
    tiled::{Blend, Tile, TileWeights, Tiling, cut, device_tensor, host},
};

/// Blended tiles of the autoencoder share this many latent rows and columns.
const VAE_OVERLAP: usize = 16;

/// Tiles of the denoiser share this part of their side.
const OVERLAP_PART: usize = 4;

/// Bytes for a pixel that the pooled autoencoder's kept features may take: with as much SDXL's decoder does 1.8 times the least
/// work at 2048x2048 (3.4 times with 640, once with 2560).
const KEPT_PER_PIXEL: usize = 768;

/// The least and the most that they may take: a small picture's are kept all, a very large one's work is done more often.
const KEPT: [usize; 2] = [1 << 30, 3 << 29];

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
    weights: TileWeights,
    vae_tiles: VaeTiles,
}

/// What the autoencoder will do.
pub(crate) struct VaeWork {
    /// Tiles it begins with.
    pub(crate) tiles: usize,
    /// How much more than one tile's work encoding and decoding are.
    pub(crate) times: [f64; 2],
    /// Bytes of what is kept beside one tile's features.
    pub(crate) bytes: usize,
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
        options: &RestoreOptions,
    ) -> Result<Self, Error> {
        let f = prior.vae.downscale();
        let grid = prior.network.downscale();
        let (height, width) = (padded.height / f, padded.width / f);
        let tile = match options.tile_px {
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
                weights: options.tile_weights,
                vae_tiles: options.vae_tiles,
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
            weights: self.weights,
        }
    }

    /// How the autoencoder cuts latent and pixels.
    pub(crate) fn vae(&self) -> (Tiling, Tiling) {
        let latent = Tiling {
            overlap: VAE_OVERLAP.min(self.tile / 2),
            grid: 1,
            weights: TileWeights::Cosine,
            ..self.latent()
        };
        let f = self.f;
        let pixels = Tiling {
            height: f * latent.height,
            width: f * latent.width,
            tile: f * latent.tile,
            overlap: f * latent.overlap,
            grid: f,
            weights: TileWeights::Cosine,
        };
        (latent, pixels)
    }

    /// Side of a tile in pixels and budget in bytes, where the autoencoder takes tiles with pooled statistics.
    fn pooled(&self) -> Option<(usize, usize)> {
        let pixels = self.f * self.f * self.height * self.width;
        let pooled = self.vae_tiles == VaeTiles::Pooled && self.tile < self.height.max(self.width);
        pooled.then(|| {
            (
                self.f * self.tile,
                (KEPT_PER_PIXEL * pixels).clamp(KEPT[0], KEPT[1]),
            )
        })
    }

    /// What encoding and decoding take, in terms of one tile's.
    pub(crate) fn vae_work(&self) -> VaeWork {
        let (latent, pixels) = self.vae();
        // A sum of three planes and one of weights.
        let blended = 16 * pixels.height * pixels.width;
        let Some((tile_px, budget)) = self.pooled() else {
            let tiles = latent.tiles().len();
            return VaeWork {
                tiles,
                times: [tiles as f64; 2],
                bytes: blended,
            };
        };
        let plans = |size| self.prior.vae.pooled_plans(size, tile_px, budget);
        let whole = plans([pixels.height, pixels.width]);
        let tile = pixels.tiles()[0];
        let one = plans([tile.height, tile.width]);
        let times = [0, 1].map(|i| whole[i].work / one[i].least_work);
        VaeWork {
            tiles: whole[0].stages[0].tiles(),
            times,
            bytes: whole.iter().map(|plan| plan.kept_bytes).max().unwrap_or(0),
        }
    }

    /// The latent `[1, c, h, w]` of the padded picture.
    pub(crate) fn encode(&self, padded: &Image) -> Tensor<4> {
        let (latent, pixels) = self.vae();
        if let Some((tile_px, budget)) = self.pooled() {
            let x = self.image(padded);
            return self.encoder.latent_from_image_pooled(x, tile_px, budget);
        }
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
        self.encoder.latent_from_image(self.image(&crop))
    }

    /// A picture in the autoencoder's range.
    fn image(&self, image: &Image) -> Tensor<4> {
        let values = image.rgb.iter().map(|v| 2.0 * v - 1.0).collect();
        device_tensor(values, [3, image.height, image.width], self.device)
    }

    /// The padded picture of a latent.
    pub(crate) fn decode(&self, z: &Tensor<4>) -> Image {
        let (latent, pixels) = self.vae();
        let picture = |values: Vec<f32>| {
            let rgb = values.into_iter().map(|v| 0.5 * v + 0.5).collect();
            Image::new(pixels.width, pixels.height, rgb)
        };
        if let Some((tile_px, budget)) = self.pooled() {
            let x = self
                .prior
                .vae
                .image_from_latent_pooled(z.clone(), tile_px, budget);
            return picture(host(x));
        }
        let mut blend = Blend::new(pixels, 3);
        for (from, to) in latent.tiles().into_iter().zip(pixels.tiles()) {
            blend.add(to, &host(self.prior.vae.image_from_latent(cut(z, from))));
        }
        picture(blend.finish())
    }
}
