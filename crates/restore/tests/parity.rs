//! Parity with PEFT's LoRA inside diffusers' U-Net. The goldens were computed in f64 (`golden/lora.py`).

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use golden::{BLOCK, Golden, MODEL, OP, formula_values};
use priors::{
    flow::{Conditioning, Prior},
    nn::{Bare, Tap},
    scheduler::{Prediction, SchedulerConfig},
    unet::Unet,
    weights::{Values, Weights},
};
use restore::{
    denoiser::{Denoiser, network_input, x0_from_prediction},
    lora::{Lora, LoraConfig, Target, self_attention_targets},
    sampler::{SamplerKind, sample},
    schedule::{Level, Schedule, Space, alphas_cumprod},
};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden() -> Golden {
    Golden::open(FOLDER, "lora_unet_tiny")
}

fn unet(golden: &Golden, weights: &Weights) -> Unet {
    Unet::from_json(&golden.config(), golden.path(), weights)
        .expect("the golden's config is supported")
}

fn targets(values: &Values) -> Vec<Target> {
    let shapes: BTreeMap<String, Vec<usize>> = values
        .iter()
        .map(|(name, v)| (name.clone(), v.shape().to_vec()))
        .collect();
    self_attention_targets(&shapes)
}

/// LoRA's matrices by the formula under the names of the file, which begin with `unet`.
fn lora(alpha: f64, targets: &[Target], device: &Device) -> Lora {
    Lora::new(
        &LoraConfig { rank: 4, alpha },
        targets,
        &Weights::formula(device).at("unet"),
    )
    .expect("formula")
}

fn run(golden: &Golden, unet: &Unet, tap: &dyn Tap, device: &Device) -> Tensor<4> {
    let conditioning = Conditioning {
        text: golden.tensor("input.text", device),
        pooled: Some(golden.tensor("input.pooled", device)),
        time_ids: Some(golden.tensor("input.time_ids", device)),
    };
    unet.forward(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning,
        tap,
    )
}

#[test]
fn a_lora_through_the_tap_and_in_the_weights() {
    let golden = golden();
    let device = Device::flex();
    let mut values = formula_values(&device, |w| drop(unet(&golden, w)));
    let targets = targets(&values);
    let bare = unet(&golden, &Weights::from_values(values.clone(), &device));
    let full = lora(4.0, &targets, &device);
    let half = full.clone().with_strength(0.5);
    let mut comparison = golden.compare();
    comparison.see("output.bare", &run(&golden, &bare, &Bare, &device), MODEL);
    comparison.see(
        "output.adapted",
        &run(&golden, &bare, &full, &device),
        MODEL,
    );
    comparison.see(
        "output.scale_0.5",
        &run(&golden, &bare, &half, &device),
        MODEL,
    );
    comparison.see(
        "output.alpha_2",
        &run(&golden, &bare, &lora(2.0, &targets, &device), &device),
        MODEL,
    );
    for (name, delta) in full.deltas() {
        let weight = values
            .get_mut(&format!("{name}.weight"))
            .expect("a target's weight");
        let sum = Tensor::<2>::from_data(weight.clone(), &device) + delta;
        *weight = sum.into_data();
    }
    let fused = unet(&golden, &Weights::from_values(values, &device));
    comparison.see("output.fused", &run(&golden, &fused, &Bare, &device), MODEL);
    comparison.finish(|_| false);
}

#[test]
fn names_and_shapes_of_the_file_that_diffusers_writes() {
    let golden = golden();
    let device = Device::flex();
    let targets = targets(&formula_values(&device, |w| drop(unet(&golden, w))));
    let weights = Weights::blank(&device);
    Lora::new(
        &LoraConfig {
            rank: 4,
            alpha: 4.0,
        },
        &targets,
        &weights.at("unet"),
    )
    .expect("blank");
    let text = std::fs::read(format!("{FOLDER}/lora_unet_tiny.json")).expect("the list of keys");
    let listed: Value = serde_json::from_slice(&text).expect("JSON");
    let peft: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(listed["peft"].clone()).expect("keys and shapes");
    assert_eq!(weights.shapes(), peft);
}

/// The scheduler that a golden's config describes, with its class name and other keys added.
fn scheduler(golden: &Golden, class: &str, also: &[(&str, Value)]) -> SchedulerConfig {
    let mut config = golden.config();
    config["_class_name"] = class.into();
    for (key, value) in also {
        config[*key] = value.clone();
    }
    SchedulerConfig::from_json(&config, golden.path()).expect("a supported schedule")
}

/// Compares host numbers with a stored tensor, relative.
fn close(golden: &Golden, name: &str, got: &[f64], rtol: f64) {
    let wanted: Vec<f64> = golden
        .data(name)
        .convert::<f64>()
        .try_into_vec()
        .expect("converted to f64");
    assert_eq!(got.len(), wanted.len(), "length of {name}");
    for (i, (x, y)) in got.iter().zip(&wanted).enumerate() {
        let bound = rtol * y.abs().max(1e-6);
        assert!((x - y).abs() <= bound, "{name}[{i}]: {x} instead of {y}");
    }
}

/// diffusers makes its sigmas from a product in f32: `1 - alpha` loses digits where the noise is small.
const F32_SIGMAS: f64 = 1e-5;

#[test]
fn schedules_are_those_of_diffusers() {
    let golden = Golden::open(FOLDER, "schedules");
    let config = |key: &str, class: &str, also: &[(&str, Value)]| {
        let mut config = golden.config()[key].clone();
        config["_class_name"] = class.into();
        for (key, value) in also {
            config[*key] = value.clone();
        }
        SchedulerConfig::from_json(&config, golden.path()).expect("a supported schedule")
    };
    let sigmas = |s: &Schedule| s.levels.iter().map(|l| l.sigma).collect::<Vec<_>>();
    let times = |s: &Schedule| {
        s.levels[..s.steps()]
            .iter()
            .map(|l| l.t)
            .collect::<Vec<_>>()
    };
    for spacing in ["leading", "trailing"] {
        let also = [("timestep_spacing", Value::from(spacing))];
        for steps in [10, 20, 100] {
            let euler = config("euler", "EulerDiscreteScheduler", &also);
            let schedule = Schedule::new(&euler, Space::Sigma, steps).expect("valid");
            let at = |name: &str| format!("euler.{spacing}.{steps}.{name}");
            close(&golden, &at("sigmas"), &sigmas(&schedule), F32_SIGMAS);
            close(&golden, &at("timesteps"), &times(&schedule), 1e-7);
            close(
                &golden,
                &at("init_noise_sigma"),
                &[schedule.initial_beta],
                F32_SIGMAS,
            );
        }
        let ddim = config("ddim", "DDIMScheduler", &also);
        let schedule = Schedule::new(&ddim, Space::Vp, 10).expect("valid");
        let alphas: Vec<f64> = sigmas(&schedule)
            .iter()
            .map(|&sigma| Space::Vp.alpha(sigma).powi(2))
            .collect();
        close(
            &golden,
            &format!("ddim.{spacing}.10.timesteps"),
            &times(&schedule),
            0.0,
        );
        close(
            &golden,
            &format!("ddim.{spacing}.10.alphas"),
            &alphas[..10],
            F32_SIGMAS,
        );
        close(
            &golden,
            &format!("ddim.{spacing}.10.alphas_prev"),
            &alphas[1..],
            F32_SIGMAS,
        );
    }
    for shift in [1, 3] {
        for steps in [10, 28] {
            let also = [("shift", Value::from(f64::from(shift)))];
            let flow = config("flow", "FlowMatchEulerDiscreteScheduler", &also);
            let schedule = Schedule::new(&flow, Space::Flow, steps).expect("valid");
            close(
                &golden,
                &format!("flow.{shift}.{steps}.sigmas"),
                &sigmas(&schedule),
                1e-6,
            );
            close(
                &golden,
                &format!("flow.{shift}.{steps}.timesteps"),
                &times(&schedule),
                1e-6,
            );
        }
    }
    let all = alphas_cumprod(&config("euler", "EulerDiscreteScheduler", &[]));
    let at: Vec<f64> = golden
        .integers("alphas_cumprod.index")
        .iter()
        .map(|&i| all[i as usize])
        .collect();
    close(&golden, "f64.alphas_cumprod", &at, 1e-12);
}

/// The goldens' stated fake network as a denoiser.
struct Fake {
    bias: Tensor<4>,
    prediction: Prediction,
    space: Space,
}

impl Denoiser for Fake {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let input = network_input(z, self.space, level.sigma);
        let output = (input.clone() * 0.5).tanh() * 0.7 + self.bias.clone() * 0.3;
        x0_from_prediction(self.prediction, input, output, level.sigma)
    }
}

/// Walks a golden's six steps and compares the state after each.
fn steps(golden: &Golden, run: &str, config: &SchedulerConfig, kind: SamplerKind, space: Space) {
    let device = Device::flex();
    let schedule = Schedule::new(config, space, 6).expect("valid");
    let denoiser = Fake {
        bias: golden.tensor("input.bias", &device),
        prediction: config.prediction(),
        space: schedule.space,
    };
    let start = golden.tensor::<4>("input.noise", &device) * schedule.initial_beta;
    let mut comparison = golden.compare();
    comparison.see(&format!("{run}.start"), &start, OP);
    let mut sampler = kind.sampler();
    let mut seen = vec![];
    sample(
        sampler.as_mut(),
        &denoiser,
        &schedule,
        None,
        start,
        &mut || unreachable!("draws nothing"),
        &mut |progress| seen.push(progress.z.clone()),
    );
    for (i, z) in seen.iter().enumerate() {
        comparison.see(&format!("{run}.step_{}", i + 1), z, BLOCK);
    }
    comparison.finish(|name| !name.starts_with(&format!("{run}.step")));
}

#[test]
fn steps_are_those_of_diffusers() {
    for prediction in ["epsilon", "v_prediction"] {
        let also = [("prediction_type", Value::from(prediction))];
        let golden = Golden::open(FOLDER, "euler_steps");
        let config = scheduler(&golden, "EulerDiscreteScheduler", &also);
        steps(
            &golden,
            prediction,
            &config,
            SamplerKind::Euler,
            Space::Sigma,
        );
        let golden = Golden::open(FOLDER, "ddim_steps");
        let config = scheduler(&golden, "DDIMScheduler", &also);
        steps(&golden, prediction, &config, SamplerKind::Ddim, Space::Vp);
    }
    let golden = Golden::open(FOLDER, "flow_euler_steps");
    let config = scheduler(&golden, "FlowMatchEulerDiscreteScheduler", &[]);
    steps(&golden, "shift_3", &config, SamplerKind::Euler, Space::Flow);
}
