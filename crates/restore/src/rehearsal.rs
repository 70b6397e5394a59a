//! What a restoration will take, found by doing a part of it: every network once, on one tile of the picture.
//!
//! The time is that of one tile times how often the options ask for it, and of correcting the whole picture's colours and
//! sharpening it; the memory is the process's peak after the rehearsal, in which the picture, its scaled and its padded copy,
//! all weights and one tile's features have been, and what the rehearsal leaves out: the autoencoder's sum of blended tiles or
//! features that it keeps, or the low-quality features of all tiles. Measured rather than derived from sizes, it knows the
//! machine, its kernels and its allocator. Weights that it had to wait for are in the system's
//! cache afterwards, so a part that waited is rehearsed once more, and the wait is told apart.

use std::{cell::Cell, time::Instant};

use burn::tensor::Tensor;
use pixels::Image;
use serde::Serialize;

use crate::{
    Error,
    denoiser::{CfgScale, Denoiser, Guided},
    options::RestoreOptions,
    restorer::{Restorer, finished, scaled},
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
    /// Expected time from the loaded prior to the result, without reading and writing files, the weights being in the
    /// system's cache as the rehearsal leaves them.
    pub seconds: f64,
    /// What the rehearsal waited for weights that were not in the system's cache: a later restoration waits so much longer
    /// when they are no longer there. 0 where the system does not tell (it is Linux that does).
    pub reading_seconds: f64,
    /// Expected peak memory of the process, where the system tells it (Linux).
    pub peak_bytes: Option<u64>,
}

impl Restorer {
    /// Rehearses the restoration of `image` on one tile.
    ///
    /// # Errors
    /// As [`Restorer::restore`].
    pub fn rehearse(&self, image: &Image, options: &RestoreOptions) -> Result<Plan, Error> {
        let mut clock = Clock::default();
        let schedule = self.schedule(options)?;
        let calls = calls(self, options, &schedule)?;
        let (copies, prepare_s) = timed(|| {
            let wanted = scaled(image, options.scale)?;
            let padded = self.padded(&wanted);
            Ok::<_, Error>((wanted, padded))
        });
        let (wanted, padded) = copies?;
        let padded_px = [padded.width, padded.height];
        let tiles = self.tiles(&padded, options)?;
        let [height, width] = tiles.seen_px();
        let (_, pixels) = tiles.vae();
        let vae = tiles.vae_work();
        let from = pixels.tiles()[0];
        let (z, encode_s) = clock.settled(|| tiles.encode_tile(&padded, from));
        let (_, decode_s) = clock.settled(|| self.prior.vae.image_from_latent(z.clone()));
        let tiling = tiles.latent();
        let seen = tiling.tiles();
        let [_, c, _, _] = z.dims();
        let c_lq = device_tensor(
            vec![0.0; c * tiling.height * tiling.width],
            [c, tiling.height, tiling.width],
            &self.device,
        );
        let lq = self.lq(&c_lq, &tiles);
        let (features, lq_s) = clock.settled(|| lq.of(0));
        let kept = features.as_ref().is_none_or(|features| lq.keeps(features));
        let (conditioning, text_s) =
            clock.settled(|| self.conditioning(&options.prompt, options, &tiles, &mut |_| ()));
        let texts = if options.cfg_scale == CfgScale::Constant(1.0) {
            1
        } else {
            2
        };
        let denoiser = self.denoiser(conditioning, options, &schedule, &lq, &tiles);
        let tile = cut(&c_lq, seen[0]);
        // Features that are not kept are made in every call, in this one too.
        let (_, call_s) = clock.settled(|| denoiser.one(0, tile.clone(), schedule.levels[0]));
        let networks_peak = peak_bytes();
        drop((denoiser, tile, z, padded));
        kernels::give_back();
        let (finish, finish_s) = timed(|| finished(wanted.clone(), &wanted, options));
        finish?;
        let n = seen.len();
        let lq_total = if kept { n as f64 * lq_s } else { 0.0 };
        let seconds = prepare_s
            + vae.times[0] * encode_s
            + vae.times[1] * decode_s
            + f64::from(texts) * text_s
            + lq_total
            + (calls * n) as f64 * call_s
            + finish_s;
        let features = features.map_or(0, |features| 4 * features.count());
        let kept_bytes = if kept { (n - 1) * features } else { 0 };
        // The result as a picture, beside the tensor that it is taken from.
        let [padded_width, padded_height] = padded_px;
        let result_bytes = 12 * padded_width * padded_height;
        Ok(Plan {
            result_px: [wanted.width, wanted.height],
            padded_px,
            tile_px: [width, height],
            vae_tiles: vae.tiles,
            tiles: n,
            calls,
            seconds,
            reading_seconds: clock.reading_seconds,
            peak_bytes: networks_peak
                .map(|peak| peak + (vae.bytes + result_bytes).max(kept_bytes) as u64)
                .max(peak_bytes()),
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

/// Measures parts that may find memory and caches cold.
#[derive(Debug, Default)]
struct Clock {
    /// What was waited for the disk.
    reading_seconds: f64,
}

impl Clock {
    /// The time of a second run where the first was quick or waited for the disk.
    fn settled<T>(&mut self, mut f: impl FnMut() -> T) -> (T, f64) {
        let before = disk_faults();
        let (value, first) = timed(&mut f);
        let waited = disk_faults().saturating_sub(before) > FEW_FAULTS;
        if first > 2.0 && !waited {
            return (value, first);
        }
        drop(value);
        let (value, second) = timed(f);
        if waited {
            self.reading_seconds += (first - second).max(0.0);
        }
        (value, second)
    }
}

/// Waits for the disk that a run may have without a second one: of a page of the program itself, say.
const FEW_FAULTS: u64 = 50;

/// How often this process has waited for a page from the disk, where the system tells it (Linux).
fn disk_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").ok();
    stat.and_then(|stat| major_faults(&stat)).unwrap_or(0)
}

/// The major faults in a process's `stat`, as proc(5) lays it out.
fn major_faults(stat: &str) -> Option<u64> {
    // Names may hold spaces and parentheses; after the last one the state is the first field, major faults the tenth.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(9)?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_faults_are_the_tenth_field_after_the_name() {
        let stat = "71 (re) clair) R 1 2 3 4 5 6 700 8 912 10 11 12\n";
        assert_eq!(major_faults(stat), Some(912));
        assert_eq!(major_faults("71 (reclair) R 1"), None);
        assert_eq!(major_faults(""), None);
        #[cfg(target_os = "linux")]
        assert!(
            major_faults(&std::fs::read_to_string("/proc/self/stat").expect("Linux")).is_some()
        );
    }

    #[test]
    fn a_quick_part_runs_twice_and_its_second_run_counts() {
        let (mut clock, mut runs) = (Clock::default(), 0);
        let (value, _) = clock.settled(|| {
            runs += 1;
            runs
        });
        assert_eq!((value, clock.reading_seconds), (2, 0.0));
    }
}
