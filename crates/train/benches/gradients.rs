//! Loss and gradients of a whole adapter on one given sample, beside another program's: `gradients RUN.toml SAMPLE`, called by
//! `benches/peers/full_size_training.py`.
//!
//! `RUN.toml` is a configuration of stage `adapter`. `SAMPLE` holds what the network gets (`sample`, `lq`, `timestep`, `text`,
//! `pooled` and, for SDXL, `time_ids`), what it should say (`target`), and the other program's `value.NAME` and `grad.NAME` of
//! everything that trains and its `loss`. Errors, relative to these, go to stdout as a JSON line.

#![expect(clippy::print_stdout, reason = "the line is the result")]

use std::{error::Error, path::Path, time::Instant};

use burn::tensor::{Device, Tensor, TensorData};
use priors::{
    any::AnyPrior,
    flow::Conditioning,
    folder::Folder,
    model::PriorModel,
    weights::{Precision, SafetensorsFile, Values, Weights},
};
use restore::{
    adapter::{RestorationAdapter, Scale},
    lora::{Lora, Target, self_attention_targets},
    rehearsal::peak_bytes,
};
use serde_json::json;
use train::{
    config::TrainConfig,
    optimise::Named,
    walk::{Inputs, Networks, Text, gradients},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn data(file: &SafetensorsFile, name: &str) -> Result<TensorData> {
    let data = file.data(name).ok_or(format!("no tensor {name}"))?;
    Ok(data.convert::<f32>())
}

fn tensor<const D: usize>(
    file: &SafetensorsFile,
    name: &str,
    device: &Device,
) -> Result<Tensor<D>> {
    Ok(Tensor::from_data(data(file, name)?, device))
}

fn networks(
    config: &TrainConfig,
    prior: &AnyPrior,
    targets: &[Target],
    w: &Weights,
) -> Result<Networks> {
    let adapter = config.adapter.clone().ok_or("no section [adapter]")?;
    let lora = config.lora.as_ref().ok_or("no section [lora]")?;
    let lora_w = w.at("lora").at(prior.kind().folder());
    Ok(Networks {
        adapter: Some(RestorationAdapter::new(
            adapter,
            prior,
            &w.at("restoration_adapter"),
        )?),
        lora: Some(Lora::new(lora, targets, &lora_w)?),
        text_encoder: None,
        prior: prior.clone(),
    })
}

/// The error of all gradients relative to their norm, the largest of one tensor relative to its own, and that tensor's name.
fn errors(file: &SafetensorsFile, ours: &Named) -> Result<(f64, f64, String)> {
    let (mut wrong, mut all, mut worst) = (0.0, 0.0, (0.0, String::new()));
    for (name, ours) in ours {
        let theirs = data(file, &format!("grad.{name}"))?.try_into_vec::<f32>()?;
        let square = |difference: f32| f64::from(difference).powi(2);
        let off: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = theirs.iter().map(|&b| square(b)).sum();
        wrong += off;
        all += norm;
        let own = (off / norm).sqrt();
        if own > worst.0 {
            worst = (own, name.clone());
        }
    }
    Ok(((wrong / all).sqrt(), worst.0, worst.1))
}

fn main() -> Result<()> {
    let places: Vec<String> = std::env::args().skip(1).collect();
    let places: Vec<&String> = places.iter().filter(|arg| *arg != "--bench").collect();
    let [run, sample] = places[..] else {
        return Err(
            "give RUN.toml SAMPLE, or run benches/peers/full_size_training.py, which makes them"
                .into(),
        );
    };
    let device = Device::flex();
    let config = TrainConfig::read(Path::new(run))?;
    let file = SafetensorsFile::open(Path::new(sample))?;
    let folder = Folder::open(&config.model)?;
    let prior = PriorModel::open_network(&folder, Precision::Stored, &device)?;
    let blank = Weights::blank(&device);
    AnyPrior::from_folder(&folder, &blank)?;
    let targets = self_attention_targets(&blank.shapes());
    let mut values = Values::new();
    for name in file.names() {
        if let Some(trained) = name.strip_prefix("value.") {
            values.insert(trained.to_owned(), data(&file, name)?);
        }
    }
    let inputs = Inputs {
        x: tensor(&file, "sample", &device)?,
        t: tensor(&file, "timestep", &device)?,
        text: Text::Encoded(Conditioning {
            text: tensor(&file, "text", &device)?,
            pooled: Some(tensor(&file, "pooled", &device)?),
            time_ids: (file.has("time_ids"))
                .then(|| tensor(&file, "time_ids", &device))
                .transpose()?,
        }),
        c_lq: tensor(&file, "lq", &device)?,
        scale: Scale::All(1.0),
    };
    let target: Tensor<4> = tensor(&file, "target", &device)?;
    let w = Weights::tracked(values.clone(), &device);
    let taped = networks(&config, &prior, &targets, &w)?;
    let plain = networks(
        &config,
        &prior,
        &targets,
        &Weights::from_values(values, &device),
    )?;
    let (how, started) = (config.optimise.gradient, Instant::now());
    let (loss, ours) = kernels::with_products(config.optimise.precision.products(), || {
        gradients(&plain, &taped, &inputs, &w, how, |y| {
            (y - target).square().mean()
        })
    });
    let seconds = started.elapsed().as_secs_f64();
    let theirs = f64::from(data(&file, "loss")?.try_into_vec::<f32>()?[0]);
    let (gradient_error, worst, worst_name) = errors(&file, &ours)?;
    println!(
        "{}",
        json!({
            "loss": loss,
            "loss_error": (loss - theirs).abs() / theirs,
            "gradient_error": gradient_error,
            "worst_error": worst,
            "worst": worst_name,
            "tensors": ours.len(),
            "step_s": [seconds],
            "peak_bytes": peak_bytes(),
        })
    );
    Ok(())
}
