//! Parity of schedules and samplers with diffusers, whose schedulers walked a stated fake network
//! (`golden/{schedules,steps,solvers}.py`).

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use burn::tensor::{Device, Tensor};
use golden::{BLOCK, Golden, OP};
use priors::scheduler::{Prediction, SchedulerConfig, Spacing};
use restore::{
    denoiser::{Denoiser, network_input, x0_from_prediction},
    sampler::{
        Bh, Churn, Ddim, DpmSolver, Edm, Euler, EulerAncestral, Extrapolates, Heun, Order, Sampler,
        SamplerKind, UniPc,
    },
    schedule::{Family, Level, Schedule, Space, Trained, alphas_cumprod},
};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

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
            let schedule =
                Schedule::new(&euler, Space::Sigma, Family::OneStep, steps).expect("valid");
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
        let schedule = Schedule::new(&ddim, Space::Vp, Family::OneStep, 10).expect("valid");
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
    for spacing in ["leading", "trailing", "linspace"] {
        let also = [("timestep_spacing", Value::from(spacing))];
        let config = config("ddim", "DPMSolverMultistepScheduler", &also);
        for steps in [7, 10, 20, 100] {
            let schedule =
                Schedule::new(&config, Space::Sigma, Family::Multistep, steps).expect("valid");
            let at = |name: &str| format!("multistep.{spacing}.{steps}.{name}");
            close(&golden, &at("timesteps"), &times(&schedule), 0.0);
            close(&golden, &at("sigmas"), &sigmas(&schedule), F32_SIGMAS);
        }
    }
    for shift in [1, 3] {
        for steps in [10, 28] {
            let also = [("shift", Value::from(f64::from(shift)))];
            let flow = config("flow", "FlowMatchEulerDiscreteScheduler", &also);
            let schedule =
                Schedule::new(&flow, Space::Flow, Family::OneStep, steps).expect("valid");
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
    for steps in [30, 50, 100] {
        let legacy = config("euler", "EulerDiscreteScheduler", &[]).with_spacing(Spacing::Legacy);
        let schedule = Schedule::new(&legacy, Space::Sigma, Family::OneStep, steps).expect("valid");
        close(
            &golden,
            &format!("legacy.{steps}.timesteps"),
            &times(&schedule),
            0.0,
        );
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

/// A golden's run: what its sampler, prediction and schedule are.
struct Run<'a> {
    golden: &'a Golden,
    name: &'a str,
    prediction: Prediction,
    schedule: Schedule,
    /// What the golden's states are made of.
    space: Space,
}

impl Run<'_> {
    fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Walks the golden's steps and compares the state after each, before it is settled. What is drawn comes
    /// from the golden, where it has something for that step.
    fn walk(&self, mut sampler: impl Sampler) {
        let device = Device::flex();
        let tensor = |name: &str| self.golden.tensor::<4>(name, &device);
        let schedule = &self.schedule;
        let denoiser = Fake {
            bias: tensor("input.bias"),
            prediction: self.prediction,
            space: schedule.space,
        };
        let mut z = tensor("input.noise") * schedule.initial_beta;
        // Divided by alpha, states are the same in every space.
        let stored = |z: &Tensor<4>, i: usize| {
            let sigma = schedule.levels[i].sigma;
            match self.space == schedule.space {
                true => z.clone(),
                false => z.clone() * (self.space.alpha(sigma) / schedule.space.alpha(sigma)),
            }
        };
        let mut comparison = self.golden.compare();
        comparison.see(&self.at("start"), &stored(&z, 0), OP);
        for i in 0..schedule.steps() {
            let mut draw = || tensor(&format!("input.drawn_{}", i + 1));
            let mut step = sampler.step(&denoiser, z, schedule, i, &mut draw);
            let name = self.at(&format!("step_{}", i + 1));
            comparison.see(&name, &stored(&step.z, i + 1), BLOCK);
            if i + 1 < schedule.steps() {
                step = sampler.settle(&denoiser, step, schedule, i);
            }
            z = step.z;
        }
        comparison.finish(|name| !name.starts_with(&self.at("step")));
    }
}

/// A run on our own schedule, of a sampler of this family.
fn run_of<'a>(
    golden: &'a Golden,
    name: &'a str,
    config: &SchedulerConfig,
    space: Space,
    family: Family,
) -> Run<'a> {
    Run {
        golden,
        name,
        prediction: config.prediction(),
        schedule: Schedule::new(config, space, family, 6).expect("valid"),
        space,
    }
}

/// A run of a one-step sampler.
fn run<'a>(golden: &'a Golden, name: &'a str, config: &SchedulerConfig, space: Space) -> Run<'a> {
    run_of(golden, name, config, space, Family::OneStep)
}

/// A run of a multistep sampler as `restore` makes it, whose golden is in variance-preserving space.
fn multistep<'a>(
    golden: &'a Golden,
    name: &'a str,
    also: &[(&str, Value)],
    kind: SamplerKind,
) -> Run<'a> {
    let config = scheduler(golden, "DPMSolverMultistepScheduler", also);
    Run {
        space: Space::Vp,
        ..run_of(golden, name, &config, kind.space(), kind.family())
    }
}

/// A run at the golden's own levels: diffusers' multistep schedulers lay flow sigmas in two more ways, and end
/// where we do not.
fn at_its_levels<'a>(golden: &'a Golden, name: &'a str, prediction: Prediction) -> Run<'a> {
    let space = match prediction {
        Prediction::Flow => Space::Flow,
        _ => Space::Vp,
    };
    let sigmas = golden.values(&format!("{name}.sigmas"));
    let level = |&sigma: &f32| Level {
        sigma: f64::from(sigma),
        t: 0.0,
    };
    Run {
        golden,
        name,
        prediction,
        schedule: Schedule {
            space,
            levels: sigmas.iter().map(level).collect(),
            full_steps: sigmas.len() - 1,
            initial_beta: 1.0,
            trained: Trained::Continuous(1.0),
        },
        space,
    }
}

fn predicts(prediction: &str) -> [(&'static str, Value); 1] {
    [("prediction_type", prediction.into())]
}

#[test]
fn euler_and_ddim() {
    for prediction in ["epsilon", "v_prediction"] {
        let golden = Golden::open(FOLDER, "euler_steps");
        let config = scheduler(&golden, "EulerDiscreteScheduler", &predicts(prediction));
        run(&golden, prediction, &config, Space::Sigma).walk(Euler);
        let golden = Golden::open(FOLDER, "ddim_steps");
        let config = scheduler(&golden, "DDIMScheduler", &predicts(prediction));
        run(&golden, prediction, &config, Space::Vp).walk(Ddim { eta: 0.0 });
    }
    let golden = Golden::open(FOLDER, "flow_euler_steps");
    let config = scheduler(&golden, "FlowMatchEulerDiscreteScheduler", &[]);
    run(&golden, "shift_3", &config, Space::Flow).walk(Euler);
}

#[test]
fn heun() {
    let golden = Golden::open(FOLDER, "heun_steps");
    for prediction in ["epsilon", "v_prediction"] {
        let config = scheduler(&golden, "HeunDiscreteScheduler", &predicts(prediction));
        run(&golden, prediction, &config, Space::Sigma).walk(Heun);
    }
    let golden = Golden::open(FOLDER, "flow_heun_steps");
    let config = scheduler(&golden, "FlowMatchHeunDiscreteScheduler", &[]);
    run(&golden, "shift_3", &config, Space::Flow).walk(Heun);
}

#[test]
fn euler_ancestral() {
    let golden = Golden::open(FOLDER, "euler_ancestral_steps");
    for prediction in ["epsilon", "v_prediction"] {
        let class = "EulerAncestralDiscreteScheduler";
        let config = scheduler(&golden, class, &predicts(prediction));
        run(&golden, prediction, &config, Space::Sigma).walk(EulerAncestral);
    }
}

#[test]
fn edm_at_the_legacy_timesteps() {
    let golden = Golden::open(FOLDER, "edm_steps");
    let config = scheduler(&golden, "EulerDiscreteScheduler", &[]).with_spacing(Spacing::Legacy);
    let churn = Churn {
        s_churn: 2.0,
        ..Churn::default()
    };
    let limits = Churn {
        s_churn: 1.0,
        s_tmin: 0.5,
        s_tmax: 10.0,
        s_noise: 1.1,
    };
    for (name, churn) in [("churn_2", churn), ("limits", limits)] {
        let run = run(&golden, name, &config, Space::Sigma);
        let (sigmas, times): (Vec<f64>, Vec<f64>) =
            run.schedule.levels.iter().map(|l| (l.sigma, l.t)).unzip();
        close(&golden, &run.at("sigmas"), &sigmas, 1e-6);
        close(&golden, &run.at("timesteps"), &times[..6], 0.0);
        run.walk(Edm { churn });
    }
}

#[test]
fn dpm_solver_and_dpm_solver_plus_plus() {
    use {Extrapolates::*, Order::*};
    let golden = Golden::open(FOLDER, "dpm_steps");
    let (epsilon, v, flow) = (
        Prediction::Epsilon,
        Prediction::VPrediction,
        Prediction::Flow,
    );
    for (name, prediction, extrapolates, order) in [
        ("noise_1", epsilon, Noise, First),
        ("noise_2", epsilon, Noise, Second),
        ("noise_2_long", epsilon, Noise, Second),
        ("data_1", epsilon, Data, First),
        ("data_2", epsilon, Data, Second),
        ("data_2_v", v, Data, Second),
        ("data_2_long", epsilon, Data, Second),
        ("data_2_flow", flow, Data, Second),
    ] {
        at_its_levels(&golden, name, prediction).walk(DpmSolver::new(extrapolates, order));
    }
    // Where its end is ours too, our own schedule is the same.
    for (layout, ending) in LAYOUTS {
        for (name, end, kind, extrapolates) in [
            ("noise_2", false, SamplerKind::DpmSolver, Noise),
            ("data_2", true, SamplerKind::DpmSolverPlusPlus, Data),
        ] {
            let also = [
                ("set_alpha_to_one", Value::from(end)),
                ("timestep_spacing", Value::from(layout)),
            ];
            let run = format!("{name}{ending}");
            multistep(&golden, &run, &also, kind).walk(DpmSolver::new(extrapolates, Second));
        }
    }
}

/// Layouts of timesteps, and how the names of their runs end.
const LAYOUTS: [(&str, &str); 3] = [
    ("trailing", ""),
    ("leading", "_leading"),
    ("linspace", "_linspace"),
];

#[test]
fn unipc() {
    let golden = Golden::open(FOLDER, "unipc_steps");
    for (name, prediction, bh) in [
        ("bh2", Prediction::Epsilon, Bh::Bh2),
        ("bh1", Prediction::Epsilon, Bh::Bh1),
        ("bh2_v", Prediction::VPrediction, Bh::Bh2),
        ("bh2_flow", Prediction::Flow, Bh::Bh2),
    ] {
        at_its_levels(&golden, name, prediction).walk(UniPc::new(bh));
    }
    for (layout, ending) in LAYOUTS {
        let also = [("timestep_spacing", Value::from(layout))];
        let name = format!("bh2{ending}");
        multistep(&golden, &name, &also, SamplerKind::UniPc).walk(UniPc::new(Bh::Bh2));
    }
}
