//! SDXL's autoencoder with made-up weights on a large picture: `vae whole|pooled|alone PIXELS [BUDGET_MB] [TILE] [FILE]`.
//!
//! Encodes and decodes a square picture and prints a JSON line: seconds, peak memory, how often the work of the whole was
//! done. With `FILE` latent and picture are written there, or compared with what is there. One mode a process, so that the
//! peak is its own. `alone` is tiles that know nothing of each other, side by side.

#![expect(clippy::print_stdout, reason = "the line is the result")]

use std::{error::Error, path::Path, time::Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use priors::{
    folder::Folder,
    kind::Kind,
    known,
    vae::AutoencoderKl,
    weights::{Init, Metadata, Precision, Values, Weights, save_safetensors},
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: kernels::Allocator = kernels::Allocator;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let [mode, side, rest @ ..] = &args[..] else {
        eprintln!("give whole, pooled or alone, and the side in pixels");
        return Ok(());
    };
    let side: usize = side.parse()?;
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |text| text.parse());
    let (budget, tile) = (number(0, 1024)? << 20, number(1, 512)?);
    let device = Device::flex();
    let folder: Folder = known::configs(Kind::SdxlBase).ok_or("SDXL is known")?;
    let config = folder.json("vae/config.json")?;
    let vae = AutoencoderKl::from_json(&config, Path::new("vae"), &Weights::formula(&device))?;
    let image = picture(side, &device);
    let (latent, encode_s) = timed(|| match mode.as_str() {
        "whole" => vae.encode(image).mean,
        "pooled" => vae.encode_pooled(image, tile, budget).mean,
        _ => side_by_side(&image, tile, |x| vae.encode(x).mean),
    });
    let z = latent.clone();
    let (back, decode_s) = timed(|| match mode.as_str() {
        "whole" => vae.decode(z),
        "pooled" => vae.decode_pooled(z, tile, budget),
        _ => side_by_side(&z, tile / vae.downscale(), |z| vae.decode(z)),
    });
    let peak = peak_bytes();
    let plans = vae.pooled_plans([side, side], tile, budget).map(|plan| {
        json!({
            "kept_bytes": plan.kept_bytes, "stages": plan.stages.len(), "work": plan.work / plan.least_work,
        })
    });
    let errors = match rest.get(2) {
        Some(file) => compare(Path::new(file), &latent, &back, &device)?,
        None => None,
    };
    println!(
        "{}",
        json!({
            "mode": mode, "side": side, "encode_s": encode_s, "decode_s": decode_s, "peak_bytes": peak,
            "planned": plans, "errors": errors,
        })
    );
    Ok(())
}

/// A third of it dark and quiet, the rest bright and restless.
fn picture(side: usize, device: &Device) -> Tensor<4> {
    let value = |i: usize| {
        let (c, y, x) = (i / (side * side), i / side % side, i % side);
        let wave = ((x * (c + 3)) as f32 * 0.037).sin() * (y as f32 * 0.023).cos();
        if x < side / 3 {
            -0.7 + 0.1 * wave
        } else {
            0.3 + 0.6 * wave
        }
    };
    let values: Vec<f32> = (0..3 * side * side).map(value).collect();
    Tensor::from_data(
        TensorData::new(values, [1, 3, side, side]),
        (device, DType::F32),
    )
}

/// Tiles each for itself.
fn side_by_side(x: &Tensor<4>, tile: usize, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let rows = (0..h).step_by(tile).map(|top| {
        let columns = (0..w).step_by(tile).map(|left| {
            let (bottom, right) = ((top + tile).min(h), (left + tile).min(w));
            f(x.clone().slice([0..b, 0..c, top..bottom, left..right]))
        });
        Tensor::cat(columns.collect(), 3)
    });
    Tensor::cat(rows.collect(), 2)
}

/// Errors of the norm of latent and picture against those in `file`, which are written where it is not there.
fn compare(
    file: &Path,
    latent: &Tensor<4>,
    image: &Tensor<4>,
    device: &Device,
) -> Result<Option<[f64; 2]>> {
    let pair = [("latent", latent), ("image", image)];
    if !file.exists() {
        let values: Values = pair.map(|(name, x)| (name.to_owned(), x.to_data())).into();
        save_safetensors(file, &values, DType::F32, &Metadata::new())?;
        return Ok(None);
    }
    let w = Weights::from_files(&[file.to_owned()], Precision::F32, device)?;
    let mut errors = [0.0; 2];
    for (error, (name, x)) in errors.iter_mut().zip(pair) {
        let host = |x: &Tensor<4>| x.to_data().try_into_vec::<f32>();
        let got = host(x).map_err(|why| format!("{why:?}"))?;
        let want =
            host(&w.tensor(name, x.dims(), Init::Zeros)?).map_err(|why| format!("{why:?}"))?;
        let square = |v: f64| v * v;
        let pairs = got.iter().zip(&want);
        let sum: f64 = pairs.map(|(a, b)| square(f64::from(a - b))).sum();
        *error = (sum / want.iter().map(|&v| square(f64::from(v))).sum::<f64>()).sqrt();
    }
    Ok(Some(errors))
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let value = f();
    (value, started.elapsed().as_secs_f64())
}

fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}
