//! From a picture to a restored picture: the whole loop.
//!
//! Scale, pad, encode to `c_lq`, make the low-quality features, start from noise or from the noised
//! `c_lq`, denoise in steps with guidance, decode, fix the colours, crop, put alpha back. A picture
//! larger than a tile is encoded, denoised and decoded in overlapping tiles.

use burn::tensor::{Device, Tensor};
use pixels::{Image, colour, random::stream};
use priors::{
    any::AnyPrior,
    flow::{Conditioning, Prior},
    folder::Folder,
    model::PriorModel,
    nn::{Bare, Tap},
    scheduler::Prediction,
    weights::Precision,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::{
    Error,
    adapter::{AdapterFolder, LqFeatures, RestorationAdapter, Scale},
    denoiser::{CfgScale, Denoiser, Guided, network_input, x0_from_prediction},
    lora::Lora,
    options::{ColourFix, RestoreOptions, Start},
    sampler::sample,
    schedule::{Level, Schedule, Space},
    tiled::{Blend, Tile, Tiling, cut, device_tensor, host},
};

/// What a restoration tells whoever watches it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Something the user should know.
    Note(String),
    /// This part of the work is done, from 0 to 1.
    Done(f64),
}

/// What a restoration gives beside the picture.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The picture.
    pub image: Image,
    /// Root of the mean squared distance of the final latent to `c_lq`.
    pub distance: f64,
}

/// A prior with its adapter, ready to restore.
#[derive(Clone, Debug)]
pub struct Restorer {
    prior: PriorModel,
    adapter: Option<AdapterFolder>,
    device: Device,
}

/// Tiles of the autoencoder share this many latent rows and columns.
const VAE_OVERLAP: usize = 16;

/// Tiles of the denoiser share this part of their side.
const OVERLAP_PART: usize = 4;

/// Low-quality features of tiles are kept between steps up to this many values.
const FEATURE_BUDGET: usize = 128 << 20;

impl Restorer {
    /// Loads a prior and, if given, an adapter for it.
    ///
    /// # Errors
    /// Missing or unsupported files, an adapter made for another prior.
    pub fn open(
        prior: &Folder,
        adapter: Option<&Folder>,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, Error> {
        let prior = PriorModel::open(prior, precision, device)?;
        let adapter = adapter
            .map(|folder| AdapterFolder::open(folder, &prior.network, precision, device))
            .transpose()?;
        Ok(Self {
            prior,
            adapter,
            device: device.clone(),
        })
    }

    /// The prior.
    pub fn prior(&self) -> &PriorModel {
        &self.prior
    }

    /// Restores one picture.
    ///
    /// # Errors
    /// Options that make no sense for this prior, or a picture too large at this scale.
    pub fn restore(
        &self,
        image: &Image,
        options: &RestoreOptions,
        watch: &mut dyn FnMut(Event),
    ) -> Result<Restored, Error> {
        let mut sampler = options.sampler.sampler(&self.prior.scheduler)?;
        let schedule = self.schedule(options)?;
        let rss = options.rss.filter(|rss| {
            let acts = rss.acts(schedule.steps(), schedule.full_steps);
            if !acts {
                watch(Event::Note(format!(
                    "restoration guidance is inactive: the run covers the last {} of {} steps, all within the threshold {}; raise --strength or lower --rss-threshold",
                    schedule.steps(),
                    schedule.full_steps,
                    rss.threshold
                )));
            }
            acts
        });
        let wanted = scaled(image, options.scale)?;
        let grid = self.prior.vae.downscale() * self.prior.network.downscale();
        let padded = wanted.pad_to_multiple(grid);
        let lq = Tiles::new(self, &padded, options.tile_px)?;
        let c_lq = lq.encode(&padded);
        let mut rng = stream(options.seed, "latent noise");
        let noise = |rng: &mut ChaCha8Rng| -> Tensor<4> {
            let [_, c, h, w] = c_lq.dims();
            let values = (0..c * h * w).map(|_| rng.sample(StandardNormal)).collect();
            device_tensor(values, [c, h, w], &self.device)
        };
        let first = schedule.levels[0].sigma;
        let z = match options.start {
            Start::Noise => noise(&mut rng) * schedule.initial_beta,
            Start::Lq { .. } => {
                c_lq.clone() * schedule.space.alpha(first)
                    + noise(&mut rng) * schedule.space.beta(first)
            }
        };
        let conditioning = self.conditioning(&options.prompt, &lq, watch);
        // At scale 1 the null denoiser is not asked, and a large text encoder need not run twice.
        let null = if options.cfg_scale == CfgScale::Constant(1.0) {
            conditioning.clone()
        } else {
            self.conditioning(&options.negative, &lq, watch)
        };
        let text = self.denoiser(conditioning, options, &schedule, &c_lq, &lq);
        let null = self.denoiser(null, options, &schedule, &c_lq, &lq);
        let denoiser = Guided {
            text,
            null,
            cfg_scale: options.cfg_scale,
            schedule: &schedule,
        };
        let steps = schedule.steps() as f64;
        let z = sample(
            sampler.as_mut(),
            &denoiser,
            &schedule,
            rss.as_ref().map(|rss| (rss, &c_lq)),
            z,
            &mut || noise(&mut rng),
            &mut |progress| watch(Event::Done(0.9 * progress.done as f64 / steps)),
        );
        let distance = root_mean_square(z.clone() - c_lq);
        let result = lq.decode(&z);
        let mut result = result.crop(0, 0, wanted.width, wanted.height);
        result = match options.colour {
            ColourFix::None => result,
            ColourFix::Wavelet => colour::wavelet(&result, &wanted)?,
            ColourFix::Adain => colour::adain(&result, &wanted)?,
        };
        result = result.clamped();
        let image = Image {
            rgb: result.rgb,
            ..wanted
        };
        watch(Event::Done(1.0));
        Ok(Restored { image, distance })
    }

    fn schedule(&self, options: &RestoreOptions) -> Result<Schedule, Error> {
        let config = &options.laid_out(&self.prior.scheduler);
        let space = options.sampler.space();
        match options.start {
            Start::Noise => Schedule::new(config, space, options.steps),
            Start::Lq { strength } => {
                Schedule::from_strength(config, space, options.steps, strength)
            }
        }
    }

    /// What a tile's denoiser is told.
    fn conditioning(
        &self,
        prompt: &str,
        tiles: &Tiles<'_>,
        watch: &mut dyn FnMut(Event),
    ) -> Conditioning {
        let (conditioning, notes) = self.prior.text.conditioning(&[prompt], tiles.seen_px());
        notes.into_iter().for_each(|note| watch(Event::Note(note)));
        conditioning
    }

    fn denoiser<'a>(
        &'a self,
        conditioning: Conditioning,
        options: &RestoreOptions,
        schedule: &Schedule,
        c_lq: &'a Tensor<4>,
        tiles: &Tiles<'a>,
    ) -> TiledDenoiser<'a> {
        let tiling = tiles.latent(OVERLAP_PART);
        TiledDenoiser {
            restorer: self,
            conditioning,
            space: schedule.space,
            scale: options.adapter_scale,
            c_lq,
            features: tiling.tiles().iter().map(|_| None.into()).collect(),
            tiling,
        }
    }
}

/// The picture at `scale` times its size.
fn scaled(image: &Image, scale: f64) -> Result<Image, Error> {
    let side = |n: usize| ((n as f64 * scale).round() as usize).max(1);
    let (width, height) = (side(image.width), side(image.height));
    if !(scale > 0.0 && scale <= 16.0) || width.max(height) > 1 << 16 {
        return Err(Error::Input(format!(
            "scale {scale} gives {width}x{height} pixels; choose a smaller one"
        )));
    }
    if scale == 1.0 {
        return Ok(image.clone());
    }
    Ok(pixels::resize::scale(
        image,
        width,
        height,
        pixels::resize::Filter::CatmullRom,
    ))
}

fn root_mean_square(x: Tensor<4>) -> f64 {
    let values = host(x);
    (values
        .iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        / values.len() as f64)
        .sqrt()
}

/// The autoencoder over tiles of a padded picture.
struct Tiles<'a> {
    restorer: &'a Restorer,
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
    /// # Errors
    /// Tiles that are too large for the prior.
    fn new(restorer: &'a Restorer, padded: &Image, tile_px: usize) -> Result<Self, Error> {
        let f = restorer.prior.vae.downscale();
        let grid = restorer.prior.network.downscale();
        let (height, width) = (padded.height / f, padded.width / f);
        let tile = match tile_px {
            0 => height.max(width),
            px => (px / f / grid).max(2 * OVERLAP_PART) * grid,
        };
        let seen = tile.min(height.max(width));
        match restorer.prior.network.largest() {
            Some(most) if seen > most => Err(Error::Input(format!(
                "this prior takes at most {} pixels a side and the tile has {}; choose a smaller --tile",
                most * f,
                seen * f
            ))),
            _ => Ok(Self {
                restorer,
                height,
                width,
                tile,
                f,
                grid,
            }),
        }
    }

    /// Height and width in pixels of what the denoiser sees at once: all tiles are of one size.
    fn seen_px(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| self.f * side.min(self.tile))
    }

    fn latent(&self, part: usize) -> Tiling {
        let overlap = (self.tile / part).next_multiple_of(self.grid);
        Tiling {
            height: self.height,
            width: self.width,
            tile: self.tile,
            overlap,
            grid: self.grid,
        }
    }

    fn vae(&self) -> (Tiling, Tiling) {
        let latent = Tiling {
            overlap: VAE_OVERLAP.min(self.tile / 2),
            grid: 1,
            ..self.latent(OVERLAP_PART)
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

    fn encode(&self, padded: &Image) -> Tensor<4> {
        let (latent, pixels) = self.vae();
        let vae = &self.restorer.prior.vae;
        let channels = vae.config().latent_channels;
        let mut blend = Blend::new(latent, channels);
        for (to, from) in latent.tiles().into_iter().zip(pixels.tiles()) {
            let crop = padded.crop(from.left, from.top, from.width, from.height);
            let values = crop.rgb.iter().map(|v| 2.0 * v - 1.0).collect();
            let x = device_tensor(values, [3, from.height, from.width], &self.restorer.device);
            blend.add(to, &host(vae.latent_from_image(x)));
        }
        device_tensor(
            blend.finish(),
            [channels, self.height, self.width],
            &self.restorer.device,
        )
    }

    fn decode(&self, z: &Tensor<4>) -> Image {
        let (latent, pixels) = self.vae();
        let mut blend = Blend::new(pixels, 3);
        for (from, to) in latent.tiles().into_iter().zip(pixels.tiles()) {
            blend.add(
                to,
                &host(self.restorer.prior.vae.image_from_latent(cut(z, from))),
            );
        }
        let rgb = blend.finish().into_iter().map(|v| 0.5 * v + 0.5).collect();
        Image::new(pixels.width, pixels.height, rgb)
    }
}

/// One network call: prior, adapter and LoRA as a denoiser.
#[derive(Clone, Debug)]
pub struct Denoising<'a> {
    /// The prior.
    pub prior: &'a AnyPrior,
    /// The Restoration Adapter with its low-quality features.
    pub adapter: Option<(&'a RestorationAdapter, &'a LqFeatures)>,
    /// LoRA.
    pub lora: Option<&'a Lora>,
    /// The text, for one picture.
    pub conditioning: Conditioning,
    /// What the network's output means.
    pub prediction: Prediction,
    /// What a state is made of.
    pub space: Space,
    /// Weight of the adapter's term.
    pub scale: f64,
}

impl Denoiser for Denoising<'_> {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let tap: &dyn Tap = match self.lora {
            Some(lora) => lora,
            None => &Bare,
        };
        let input = network_input(z, self.space, level.sigma);
        let t = Tensor::full(
            [input.dims()[0]],
            level.t as f32,
            (&input.device(), input.dtype()),
        );
        let output = match self.adapter {
            Some((adapter, lq)) => {
                let flow = self.prior.enter(input.clone(), t, &self.conditioning);
                adapter.forward(self.prior, flow, lq, &Scale::All(self.scale), tap)
            }
            None => self
                .prior
                .forward(input.clone(), t, &self.conditioning, tap),
        };
        x0_from_prediction(self.prediction, input, output, level.sigma)
    }
}

/// The denoiser of a whole picture: tiles blended on the denoiser's output.
struct TiledDenoiser<'a> {
    restorer: &'a Restorer,
    conditioning: Conditioning,
    space: Space,
    scale: f64,
    c_lq: &'a Tensor<4>,
    tiling: Tiling,
    features: Vec<std::cell::RefCell<Option<LqFeatures>>>,
}

impl TiledDenoiser<'_> {
    fn one(&self, i: usize, tile: Tile, z: Tensor<4>, level: Level) -> Tensor<4> {
        let adapter = self.restorer.adapter.as_ref();
        let features = adapter.map(|adapter| self.features(i, tile, &adapter.adapter));
        let denoising = Denoising {
            prior: &self.restorer.prior.network,
            adapter: adapter
                .map(|adapter| &adapter.adapter)
                .zip(features.as_ref()),
            lora: adapter.and_then(|adapter| adapter.lora.as_ref()),
            conditioning: self.conditioning.clone(),
            prediction: self.restorer.prior.scheduler.prediction(),
            space: self.space,
            scale: self.scale,
        };
        denoising.denoise(z, level)
    }

    /// The low-quality features of a tile: made once where all tiles' fit the budget.
    fn features(&self, i: usize, tile: Tile, adapter: &RestorationAdapter) -> LqFeatures {
        if let Some(features) = &*self.features[i].borrow() {
            return features.clone();
        }
        let features = adapter.lq_features(&self.restorer.prior.network, &cut(self.c_lq, tile));
        if features.count() * self.features.len() <= FEATURE_BUDGET {
            *self.features[i].borrow_mut() = Some(features.clone());
        }
        features
    }
}

impl Denoiser for TiledDenoiser<'_> {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let tiles = self.tiling.tiles();
        if let [tile] = tiles[..] {
            return self.one(0, tile, z, level);
        }
        let [_, c, h, w] = z.dims();
        let mut blend = Blend::new(self.tiling, c);
        for (i, &tile) in tiles.iter().enumerate() {
            blend.add(tile, &host(self.one(i, tile, cut(&z, tile), level)));
        }
        device_tensor(blend.finish(), [c, h, w], &z.device())
    }
}
