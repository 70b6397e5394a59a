//! One denoising step of a whole network: `step FOLDER INPUTS OUT [--repeat N] [--adapter FOLDER]`, called by
//! `benches/peers/full_size.py`.
//!
//! `FOLDER` is a prior in diffusers' layout, of which the network alone is read, in the type it is stored in. `INPUTS`
//! holds `sample`, `lq`, `timestep`, `text`, `pooled` and, for SDXL, `time_ids`. The prediction goes to `OUT`; a JSON
//! line with seconds and peak memory goes to stdout. With `--adapter` a fresh Restoration Adapter and LoRA at the
//! paper's sizes are written to that folder in bfloat16, read back, and stepped with, each alone and both, turn by turn with the bare prior.

#![expect(clippy::print_stdout, reason = "the line is the result")]

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::{DType, Device, Tensor};
use priors::{
    any::{AnyPrior, Architecture},
    flow::{Conditioning, Prior},
    folder::Folder,
    model::PriorModel,
    nn::{Bare, Tap},
    weights::{Init, Metadata, Precision, SafetensorsFile, Values, Weights, save_safetensors},
};
use restore::{
    adapter::{
        AdapterConfig, AdapterFolder, BlockKind, DitAdapterConfig, RestorationAdapter, Scale,
        UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, self_attention_targets},
    rehearsal::peak_bytes,
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: kernels::Allocator = kernels::Allocator;

/// The paper's rank of LoRA.
const RANK: usize = 32;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Args {
    folder: PathBuf,
    inputs: PathBuf,
    out: PathBuf,
    repeat: usize,
    adapter: Option<PathBuf>,
}

impl Args {
    fn read() -> Result<Self> {
        let (mut places, mut repeat, mut adapter) = (Vec::new(), 3, None);
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => (),
                "--repeat" => repeat = args.next().ok_or("--repeat needs a number")?.parse()?,
                "--adapter" => {
                    adapter = Some(args.next().ok_or("--adapter needs a folder")?.into())
                }
                _ => places.push(PathBuf::from(arg)),
            }
        }
        let [folder, inputs, out] = places.try_into().map_err(
            |_| "give FOLDER INPUTS OUT, or run benches/peers/full_size.py, which makes them",
        )?;
        Ok(Self {
            folder,
            inputs,
            out,
            repeat,
            adapter,
        })
    }
}

struct Inputs {
    sample: Tensor<4>,
    lq: Tensor<4>,
    t: Tensor<1>,
    conditioning: Conditioning,
}

impl Inputs {
    fn open(path: &Path, device: &Device) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let w = Weights::from_files(&[path.to_owned()], Precision::F32, device)?;
        Ok(Self {
            sample: tensor(&file, &w, "sample")?,
            lq: tensor(&file, &w, "lq")?,
            t: tensor(&file, &w, "timestep")?,
            conditioning: Conditioning {
                text: tensor(&file, &w, "text")?,
                pooled: Some(tensor(&file, &w, "pooled")?),
                time_ids: (file.has("time_ids"))
                    .then(|| tensor(&file, &w, "time_ids"))
                    .transpose()?,
            },
        })
    }
}

fn tensor<const D: usize>(file: &SafetensorsFile, w: &Weights, name: &str) -> Result<Tensor<D>> {
    let shape = file.shape(name).ok_or(format!("no tensor {name}"))?;
    Ok(w.tensor(name, shape.try_into()?, Init::Zeros)?)
}

fn main() -> Result<()> {
    let args = Args::read()?;
    let device = Device::flex();
    let started = Instant::now();
    let folder = Folder::open(&args.folder)?;
    let prior = PriorModel::open_network(&folder, Precision::Stored, &device)?;
    let inputs = Inputs::open(&args.inputs, &device)?;
    let load_s = started.elapsed().as_secs_f64();
    let mut output = None;
    let mut step = || {
        let Inputs {
            sample,
            t,
            conditioning,
            ..
        } = &inputs;
        let y = prior.forward(sample.clone(), t.clone(), conditioning, &Bare);
        output = Some(y);
    };
    let Some(place) = &args.adapter else {
        let seconds: Vec<f64> = (0..args.repeat).map(|_| timed(&mut step)).collect();
        let output = output.ok_or("--repeat must be at least 1")?;
        let values = Values::from([("output".to_owned(), output.into_data())]);
        save_safetensors(&args.out, &values, DType::F32, &Metadata::new())?;
        println!(
            "{}",
            json!({"load_s": load_s, "step_s": seconds, "peak_bytes": peak_bytes()})
        );
        return Ok(());
    };
    write_adapter(place, &prior, &device)?;
    let (adapter, lora) = open_adapter(place, &prior, &device)?;
    let started = Instant::now();
    let lq = adapter.lq_features(&prior, &inputs.lq);
    let lq_s = started.elapsed().as_secs_f64();
    // Of the adapter so much, and this tap.
    let run = |scale: f64, tap: &dyn Tap| {
        let Inputs {
            sample,
            t,
            conditioning,
            ..
        } = &inputs;
        let flow = prior.enter(sample.clone(), t.clone(), conditioning);
        drop(adapter.forward(&prior, flow, &lq, &Scale::All(scale), tap));
    };
    let variants: [(&str, f64, &dyn Tap); 4] = [
        ("bare_s", 0.0, &Bare),
        ("lora_s", 0.0, &lora),
        ("adapter_s", 1.0, &Bare),
        ("adapted_s", 1.0, &lora),
    ];
    run(1.0, &lora);
    let mut said = json!({"lq_features_s": lq_s});
    for (name, ..) in variants {
        said[name] = json!([]);
    }
    for _ in 0..args.repeat {
        for (name, scale, tap) in variants {
            let seconds = timed(&mut || run(scale, tap));
            said[name]
                .as_array_mut()
                .expect("as above")
                .push(json!(seconds));
        }
    }
    said["peak_bytes"] = json!(peak_bytes());
    println!("{said}");
    Ok(())
}

fn timed(f: &mut impl FnMut()) -> f64 {
    let started = Instant::now();
    f();
    started.elapsed().as_secs_f64()
}

/// A fresh adapter and LoRA of the paper's sizes.
fn write_adapter(place: &Path, prior: &AnyPrior, device: &Device) -> Result<()> {
    let config = match prior {
        AnyPrior::Unet(unet) => AdapterConfig::Unet(UnetAdapterConfig {
            block: BlockKind::D3,
            after: (0..unet.sites().len().min(6)).collect(),
            lq_channels: unet.config().in_channels,
            d_emb: unet.config().d_emb(),
            groups: unet.config().norm_num_groups,
        }),
        AnyPrior::MmDit(mmdit) => AdapterConfig::Dit(DitAdapterConfig {
            after: (3..mmdit.sites().len()).step_by(4).collect(),
            width: mmdit.config().width(),
        }),
    };
    let w = Weights::seeded(1, device);
    RestorationAdapter::new(config.clone(), prior, &w)?;
    let (lora_config, prefix) = lora_of(prior);
    let lora_w = Weights::seeded(2, device);
    Lora::new(&lora_config, &targets(prior, device)?, &lora_w.at(prefix))?;
    let (values, lora) = (w.made(), lora_w.made());
    let count = |values: &Values| values.values().map(|v| v.num_elements()).sum::<usize>();
    eprintln!("adapter of {} parameters", count(&values) + count(&lora));
    AdapterFolder::save(
        place,
        &config,
        &values,
        Some(&lora_config),
        &lora,
        DType::BF16,
    )?;
    Ok(())
}

fn lora_of(prior: &AnyPrior) -> (LoraConfig, &'static str) {
    let config = LoraConfig {
        rank: RANK,
        alpha: RANK as f64,
    };
    (config, Architecture::folder(prior.kind()))
}

fn targets(prior: &AnyPrior, device: &Device) -> Result<Vec<restore::lora::Target>> {
    let blank = Weights::blank(device);
    prior.rebuilt(&blank)?;
    Ok(self_attention_targets(&blank.shapes()))
}

fn open_adapter(
    place: &Path,
    prior: &AnyPrior,
    device: &Device,
) -> Result<(RestorationAdapter, Lora)> {
    let folder = AdapterFolder::open(
        &Folder::Disk(place.into()),
        prior,
        Precision::Stored,
        device,
    )?;
    Ok((folder.adapter, folder.lora.ok_or("LoRA was written")?))
}
