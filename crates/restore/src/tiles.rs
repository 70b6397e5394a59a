//! A padded picture in tiles: which there are, and the autoencoder over them.

use burn::tensor::{Device, Tensor};
use pixels::Image;
use priors::{
    flow::Prior,
    model::PriorModel,
    vae::{AutoencoderKl, Plan},
};

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

/// How the autoencoder takes a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At once: tiles and what they keep would take as much memory.
    Whole,
    /// In tiles that share their norms' statistics.
    Pooled { tile_px: usize, budget: usize },
    /// In tiles that know nothing of each other.
    Blended,
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

    /// How the picture, or a tile of it alone, would be encoded and decoded with pooled statistics.
    fn plans(&self, [height, width]: [usize; 2], (tile_px, budget): (usize, usize)) -> [Plan; 2] {
        let size = [height, width].map(|side| self.f * side);
        self.prior.vae.pooled_plans(size, tile_px, budget)
    }

    /// How the autoencoder encodes and decodes.
    fn ways(&self) -> [Way; 2] {
        let Some(tiling) = self.pooled() else {
            return [Way::Blended; 2];
        };
        let (tile_px, budget) = tiling;
        let way = |plan: Plan| match plan.is_whole_as_small() {
            true => Way::Whole,
            false => Way::Pooled { tile_px, budget },
        };
        self.plans([self.height, self.width], tiling).map(way)
    }

    /// What encoding and decoding take, in terms of one tile's.
    pub(crate) fn vae_work(&self) -> VaeWork {
        let (latent, pixels) = self.vae();
        // A sum of three planes and one of weights.
        let blended = 16 * pixels.height * pixels.width;
        let Some(tiling) = self.pooled() else {
            let tiles = latent.tiles().len();
            return VaeWork {
                tiles,
                times: [tiles as f64; 2],
                bytes: blended,
            };
        };
        let all = self.plans([self.height, self.width], tiling);
        let tile = latent.tiles()[0];
        let one = self.plans([tile.height, tile.width], tiling);
        let of = |i: usize| match all[i].is_whole_as_small() {
            true => (
                all[i].least_work,
                all[i].whole_bytes.saturating_sub(one[i].whole_bytes),
            ),
            false => (all[i].work, all[i].kept_bytes),
        };
        let [(encode, encode_bytes), (decode, decode_bytes)] = [of(0), of(1)];
        VaeWork {
            tiles: match all[0].is_whole_as_small() {
                true => 1,
                false => all[0].stages[0].tiles(),
            },
            times: [encode / one[0].least_work, decode / one[1].least_work],
            bytes: encode_bytes.max(decode_bytes),
        }
    }

    /// The latent `[1, c, h, w]` of the padded picture.
    pub(crate) fn encode(&self, padded: &Image) -> Tensor<4> {
        let (latent, pixels) = self.vae();
        let x = || self.image(padded);
        match self.ways()[0] {
            Way::Whole => return self.encoder.latent_from_image(x()),
            Way::Pooled { tile_px, budget } => {
                return self.encoder.latent_from_image_pooled(x(), tile_px, budget);
            }
            Way::Blended => {}
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
        let vae = &self.prior.vae;
        match self.ways()[1] {
            Way::Whole => return picture(host(vae.image_from_latent(z.clone()))),
            Way::Pooled { tile_px, budget } => {
                return picture(host(vae.image_from_latent_pooled(
                    z.clone(),
                    tile_px,
                    budget,
                )));
            }
            Way::Blended => {}
        }
        let mut blend = Blend::new(pixels, 3);
        for (from, to) in latent.tiles().into_iter().zip(pixels.tiles()) {
            blend.add(to, &host(self.prior.vae.image_from_latent(cut(z, from))));
        }
        picture(blend.finish())
    }
}
