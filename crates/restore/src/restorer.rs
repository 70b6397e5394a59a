//! From a picture to a restored picture: the whole loop.
//!
//! Scale, pad, encode to `c_lq`, make the low-quality features, start from noise or from the noised
//! `c_lq`, denoise in steps with guidance, decode, fix the colours, crop, put alpha back. A picture
//! larger than a tile is encoded, denoised and decoded in overlapping tiles.

use burn::tensor::{Device, Tensor};
use pixels::{
    Image, colour,
    degrade::{Sharpen, sharpen},
    random::stream,
};
use priors::{
    flow::{Conditioning, Prior},
    folder::Folder,
    model::PriorModel,
    vae::AutoencoderKl,
    weights::Precision,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::{
    Error,
    adapter::{About, AdapterFolder, open_encoder},
    denoiser::{CfgScale, Guided},
    denoising::{TiledDenoiser, TiledLq},
    options::{ColourFix, RestoreOptions, Start, ToldSize},
    sampler::sample,
    schedule::Schedule,
    tiled::{device_tensor, host},
    tiles::Tiles,
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
    pub(crate) prior: PriorModel,
    adapter: Option<AdapterFolder>,
    /// What makes `c_lq`: the prior's autoencoder, with the adapter's encoder where it has one.
    pub(crate) encoder: AutoencoderKl,
    pub(crate) device: Device,
    notes: Vec<String>,
}

/// Side of the unsharp mask's kernel, whose sigma is 2 pixels.
const SHARPEN_SIZE: usize = 11;

/// A picture's latent deviates by about 1, which is what autoencoders' scaling factors are for. Flux's with SD3's factor deviates by
/// 4.2 (1.5305 / 0.3611); SD 1's with SDXL's by 0.7, which a soft picture does too.
const WIDEST_LATENT: f64 = 2.5;

impl Restorer {
    /// Whether there is a Restoration Adapter or LoRA beside the prior.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

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
        let mut notes = Vec::new();
        if let Some(folder) = adapter
            && let Some(about) = About::open(folder)?
        {
            notes.extend(about.mismatch(folder, prior)?);
        }
        let prior = PriorModel::open(prior, precision, device)?;
        let adapter = adapter
            .map(|folder| {
                let robust = open_encoder(folder, &prior.vae, precision, device)?;
                let adapter = AdapterFolder::open(folder, &prior.network, precision, device)?;
                Ok::<_, Error>((adapter, robust))
            })
            .transpose()?;
        let (adapter, robust) = adapter.unzip();
        Ok(Self {
            encoder: robust.flatten().unwrap_or_else(|| prior.vae.clone()),
            prior,
            adapter,
            device: device.clone(),
            notes,
        })
    }

    /// What the user should know about the prior and the adapter, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
        watch: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Restored, Error> {
        kernels::in_pool(|| self.restore_here(image, options, watch))
    }

    fn restore_here(
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
        let padded = self.padded(&wanted);
        let tiles = self.tiles(&padded, options)?;
        let c_lq = tiles.encode(&padded);
        drop(padded);
        let deviation = deviation(&c_lq);
        if deviation > WIDEST_LATENT {
            watch(Event::Note(format!(
                "the picture's latent deviates by {deviation:.1}, where priors expect about 1: the autoencoder may be another model's (Flux's looks like SD3's); give the prior's own with --vae"
            )));
        }
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
        let conditioning = self.conditioning(&options.prompt, options, &tiles, watch);
        // At scale 1 the null denoiser is not asked, and a large text encoder need not run twice.
        let null = if options.cfg_scale == CfgScale::Constant(1.0) {
            conditioning.clone()
        } else {
            self.conditioning(&options.negative, options, &tiles, watch)
        };
        let lq = self.lq(&c_lq, &tiles);
        let text = self.denoiser(conditioning, options, &schedule, &lq, &tiles);
        let null = self.denoiser(null, options, &schedule, &lq, &tiles);
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
        let distance = root_mean_square(z.clone() - c_lq.clone());
        // The low-quality features of all tiles are not needed beside the decoder's.
        drop(denoiser);
        drop(lq);
        kernels::give_back();
        let result = tiles.decode(&z);
        let result = result.crop(0, 0, wanted.width, wanted.height);
        let result = finished(result, &wanted, options)?;
        let image = Image {
            rgb: result.rgb,
            ..wanted
        };
        watch(Event::Done(1.0));
        Ok(Restored { image, distance })
    }

    pub(crate) fn schedule(&self, options: &RestoreOptions) -> Result<Schedule, Error> {
        let config = &options.laid_out(&self.prior.scheduler);
        let (space, family) = (options.sampler.space(), options.sampler.family());
        match options.start {
            Start::Noise => Schedule::new(config, space, family, options.steps),
            Start::Lq { strength } => {
                Schedule::from_strength(config, space, family, options.steps, strength)
            }
        }
    }

    /// What a tile's denoiser is told.
    pub(crate) fn conditioning(
        &self,
        prompt: &str,
        options: &RestoreOptions,
        tiles: &Tiles<'_>,
        watch: &mut dyn FnMut(Event),
    ) -> Conditioning {
        let size = match options.told_size {
            ToldSize::Seen => tiles.seen_px(),
            ToldSize::Constant(px) => [px, px],
        };
        let (conditioning, notes) = self.prior.text.conditioning(&[prompt], size);
        notes.into_iter().for_each(|note| watch(Event::Note(note)));
        conditioning
    }

    /// The picture with its sides padded by reflection to what the networks take.
    pub(crate) fn padded(&self, wanted: &Image) -> Image {
        wanted.pad_to_multiple(self.prior.vae.downscale() * self.prior.network.downscale())
    }

    /// The padded picture in tiles.
    ///
    /// # Errors
    /// Tiles that are too large for the prior.
    pub(crate) fn tiles(
        &self,
        padded: &Image,
        options: &RestoreOptions,
    ) -> Result<Tiles<'_>, Error> {
        Tiles::new(&self.prior, &self.encoder, &self.device, padded, options)
    }

    pub(crate) fn lq<'a>(&'a self, c_lq: &'a Tensor<4>, tiles: &Tiles<'_>) -> TiledLq<'a> {
        let adapter = self.adapter.as_ref().map(|adapter| &adapter.adapter);
        TiledLq::new(&self.prior.network, adapter, c_lq, tiles.latent())
    }

    pub(crate) fn denoiser<'a>(
        &'a self,
        conditioning: Conditioning,
        options: &RestoreOptions,
        schedule: &Schedule,
        lq: &'a TiledLq<'a>,
        tiles: &Tiles<'_>,
    ) -> TiledDenoiser<'a> {
        TiledDenoiser {
            prior: &self.prior,
            adapter: self.adapter.as_ref(),
            conditioning,
            space: schedule.space,
            scale: options.adapter_scale,
            tiling: tiles.latent(),
            lq,
        }
    }
}

/// What the networks made of `wanted`, its colours corrected, sharpened and inside the range.
pub(crate) fn finished(
    result: Image,
    wanted: &Image,
    options: &RestoreOptions,
) -> Result<Image, Error> {
    let mut result = match options.colour {
        ColourFix::None => result,
        ColourFix::Wavelet => colour::wavelet(&result, wanted)?,
        ColourFix::Adain => colour::adain(&result, wanted)?,
    };
    if options.sharpen != 0.0 {
        let weight = options.sharpen * pixels::softness(&result);
        if weight != 0.0 {
            let mask = Sharpen {
                weight,
                size: SHARPEN_SIZE,
                threshold: 0.0,
            };
            result = sharpen(&result, &mask);
        }
    }
    Ok(result.clamped())
}

/// The picture at `scale` times its size.
pub(crate) fn scaled(image: &Image, scale: f64) -> Result<Image, Error> {
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

/// The deviation of a latent `[b, c, h, w]` about each channel's mean.
fn deviation(x: &Tensor<4>) -> f64 {
    let mean = x.clone().mean_dim(3).mean_dim(2);
    root_mean_square(x.clone() - mean)
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
