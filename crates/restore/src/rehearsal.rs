//! What a restoration will take, found by doing a part of it: every network once, on one tile of the picture.
//!
//! The time is that of one tile times how often the options ask for it; the memory is the process's peak after the
//! rehearsal, in which the picture, its scaled and its padded copy, all weights and one tile's features have been, and what the
//! rehearsal leaves out: the sum of blended tiles and the low-quality features that are kept. Measured rather than
//! derived from sizes, it knows the machine, its kernels and its allocator.

use std::{cell::Cell, time::Instant};

use burn::tensor::Tensor;
use pixels::Image;
use serde::Serialize;

use crate::{
    Error,
    denoiser::{CfgScale, Denoiser, Guided},
    options::RestoreOptions,
    restorer::{Restorer, scaled},
    sampler::sample,
    schedule::{Level, Schedule, Space},
    tiled::{cut, device_tensor},
};

/// What a restoration will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Width and height of the result, pixels.
    pub result_px: [usize; 2],
    /// Width and height of what the networks see, padded by reflection, pixels.
    pub padded_px: [usize; 2],
    /// Width and height of a tile, pixels.
    pub tile_px: [usize; 2],
    /// Tiles of the autoencoder.
    pub vae_tiles: usize,
    /// Tiles of the denoiser.
    pub tiles: usize,
    /// Calls of the network for each tile.
    pub calls: usize,
    /// Expected time from the loaded prior to the result, without reading and writing files.
    pub seconds: f64,
    /// Expected peak memory of the process, where the system tells it (Linux).
    pub peak_bytes: Option<u64>,
}

impl Restorer {
    /// Rehearses the restoration of `image` on one tile.
    ///
    /// # Errors
    /// As [`Restorer::restore`].
    pub fn rehearse(&self, image: &Image, options: &RestoreOptions) -> Result<Plan, Error> {
        let schedule = self.schedule(options)?;
        let calls = calls(self, options, &schedule)?;
        let (copies, prepare_s) = timed(|| {
            let wanted = scaled(image, options.scale)?;
            let padded = self.padded(&wanted);
            Ok::<_, Error>((wanted, padded))
        });
        let (wanted, padded) = copies?;
        let tiles = self.tiles(&padded, options)?;
        let [height, width] = tiles.seen_px();
        let (latent, pixels) = tiles.vae();
        let from = pixels.tiles()[0];
        let (z, encode_s) = settled(|| tiles.encode_tile(&padded, from));
        let (_, decode_s) = settled(|| self.prior.vae.image_from_latent(z.clone()));
        let tiling = tiles.latent();
        let seen = tiling.tiles();
        let [_, c, _, _] = z.dims();
        let c_lq = device_tensor(
            vec![0.0; c * tiling.height * tiling.width],
            [c, tiling.height, tiling.width],
            &self.device,
        );
        let lq = self.lq(&c_lq, &tiles);
        let (features, lq_s) = timed(|| lq.of(0));
        let kept = features.as_ref().is_none_or(|features| lq.keeps(features));
        let (conditioning, text_s) =
            timed(|| self.conditioning(&options.prompt, &tiles, &mut |_| ()));
        let texts = if options.cfg_scale == CfgScale::Constant(1.0) {
            1
        } else {
            2
        };
        let denoiser = self.denoiser(conditioning, options, &schedule, &lq, &tiles);
        let tile = cut(&c_lq, seen[0]);
        // Features that are not kept are made in every call, in this one too.
        let (_, call_s) = settled(|| denoiser.one(0, tile.clone(), schedule.levels[0]));
        let (vae_tiles, n) = (latent.tiles().len(), seen.len());
        let lq_total = if kept { n as f64 * lq_s } else { 0.0 };
        let seconds = prepare_s
            + vae_tiles as f64 * (encode_s + decode_s)
            + f64::from(texts) * text_s
            + lq_total
            + (calls * n) as f64 * call_s;
        // The blended sum has three planes and one of weights.
        let blended = 16 * padded.width * padded.height;
        let features = features.map_or(0, |features| 4 * features.count());
        let kept_bytes = if kept { (n - 1) * features } else { 0 };
        Ok(Plan {
            result_px: [wanted.width, wanted.height],
            padded_px: [padded.width, padded.height],
            tile_px: [width, height],
            vae_tiles,
            tiles: n,
            calls,
            seconds,
            peak_bytes: peak_bytes().map(|peak| peak + (blended + kept_bytes) as u64),
        })
    }
}

/// The most memory this process has had, mapped weights included, where the system tells it (Linux).
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let value = f();
    (value, started.elapsed().as_secs_f64())
}

/// The time of a second run where the first, which finds memory and caches cold, was quick.
fn settled<T>(mut f: impl FnMut() -> T) -> (T, f64) {
    let (value, seconds) = timed(&mut f);
    if seconds > 2.0 {
        return (value, seconds);
    }
    drop(value);
    timed(f)
}

/// A denoiser that counts its calls.
struct Counting<'a> {
    space: Space,
    calls: &'a Cell<usize>,
}

impl Denoiser for Counting<'_> {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, _level: Level) -> Tensor<4> {
        self.calls.set(self.calls.get() + 1);
        z.zeros_like()
    }
}

/// How often the options ask the network for a tile: their sampler runs with a denoiser that only counts.
fn calls(
    restorer: &Restorer,
    options: &RestoreOptions,
    schedule: &Schedule,
) -> Result<usize, Error> {
    let calls = Cell::new(0);
    let counting = || Counting {
        space: schedule.space,
        calls: &calls,
    };
    let denoiser = Guided {
        text: counting(),
        null: counting(),
        cfg_scale: options.cfg_scale,
        schedule,
    };
    let zero = || device_tensor(vec![0.0], [1, 1, 1], &restorer.device);
    let mut sampler = options.sampler.sampler(&restorer.prior.scheduler)?;
    sample(
        sampler.as_mut(),
        &denoiser,
        schedule,
        None,
        zero(),
        &mut || zero(),
        &mut |_| (),
    );
    Ok(calls.get())
}
