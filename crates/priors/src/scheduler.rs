//! The scheduler's configuration, from `scheduler/scheduler_config.json`: which noise the prior was
//! trained with and what its output means. Samplers live elsewhere.

use std::{fmt::Display, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, json};

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise of a variance-preserving mixture.
    Epsilon,
    /// `alpha eps - beta x0`.
    VPrediction,
    /// `eps - x0` on the straight line from data to noise.
    Flow,
}

/// How inference timesteps are laid out over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// `i * (N / T) + offset`, never reaching the last training timestep; for discrete diffusion only.
    Leading,
    /// From the last training timestep downwards in equal steps.
    Trailing,
    /// Equally spaced with both ends.
    Linspace,
    /// `int(linspace(N - 1, 0, T, endpoint=False))`: sgm's legacy discretisation, which SUPIR uses. For
    /// discrete diffusion only.
    Legacy,
}

impl Spacing {
    /// The word for it in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Trailing => "trailing",
            Self::Linspace => "linspace",
            Self::Legacy => "legacy",
        }
    }
}

/// Where DDIM's last step ends (`set_alpha_to_one`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the clean latent.
    Clean,
    /// At the first training timestep's noise.
    FirstTimestep,
}

/// The noise schedule a prior was trained with.
#[derive(Clone, Debug, PartialEq)]
pub enum SchedulerConfig {
    /// Discrete diffusion: `beta_t` from `beta_start` to `beta_end`, linear in the square root.
    Diffusion {
        /// Training timesteps.
        train_timesteps: usize,
        /// First beta.
        beta_start: f64,
        /// Last beta.
        beta_end: f64,
        /// Epsilon or v.
        prediction: Prediction,
        /// Layout of inference timesteps.
        spacing: Spacing,
        /// Added to leading timesteps.
        steps_offset: usize,
        /// Where DDIM's last step ends.
        end: End,
    },
    /// Flow matching.
    Flow {
        /// Training timesteps: the model's timestep is this times sigma.
        train_timesteps: usize,
        /// `sigma -> shift sigma / (1 + (shift - 1) sigma)`.
        shift: f64,
        /// `Linspace` is diffusers' layout, which ends with a tiny step; `Trailing` has equal steps
        /// (our own key `timestep_spacing`, as Flux's pipeline lays its sigmas).
        spacing: Spacing,
    },
}

/// The most training timesteps; known priors have 1,000.
const MOST_STEPS: usize = 100_000;

/// diffusers' schedulers of discrete diffusion: they walk the same noise levels, each by its own rule.
const DIFFUSION: [&str; 18] = [
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
];

/// diffusers' schedulers of flow matching.
const FLOW: [&str; 3] = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
];

/// Keys that change what the levels are or what a step does, and the values that are what we do. An empty list: false.
/// What only one of diffusers' own samplers looks at (`solver_order`, `eta`, `skip_prk_steps`, `lower_order_final` and the like) is
/// passed over, and so is how it lays out its steps (`use_karras_sigmas`, `use_exponential_sigmas`, `use_beta_sigmas`, `use_lu_lambdas`):
/// the sampler and its steps are chosen by whoever restores.
const WALKS: [(&str, &[&str]); 7] = [
    ("clip_sample", &[]),
    ("thresholding", &[]),
    ("stochastic_sampling", &[]),
    ("timestep_type", &["discrete"]),
    ("interpolation_type", &["linear"]),
    ("final_sigmas_type", &["zero"]),
    (
        "variance_type",
        &[
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
        ],
    ),
];

/// The error of a value that is of the wrong type or out of range.
fn bad(origin: &Path, key: &str, got: &Value, wanted: &str) -> Error {
    let got = json::short(got);
    let what =
        format!("\"{key}\": {got} should be {wanted}; take the file from the model's own folder");
    Error::input(origin, what)
}

/// What `read` makes of a key, within a range, both ends included.
fn within<T: PartialOrd + Display>(
    value: &Value,
    origin: &Path,
    key: &str,
    default: T,
    (least, most): (T, T),
    (kind, read): (&str, impl Fn(&Value) -> Option<T>),
) -> Result<T, Error> {
    let Some(got) = value.get(key) else {
        return Ok(default);
    };
    let within = read(got).filter(|x| (&least..=&most).contains(&x));
    within.ok_or_else(|| bad(origin, key, got, &format!("{kind} of {least} to {most}")))
}

/// A number within a range.
fn number(
    value: &Value,
    origin: &Path,
    key: &str,
    default: f64,
    range: (f64, f64),
) -> Result<f64, Error> {
    within(
        value,
        origin,
        key,
        default,
        range,
        ("a number", Value::as_f64),
    )
}

/// A whole number within a range.
fn whole(
    value: &Value,
    origin: &Path,
    key: &str,
    default: usize,
    range: (usize, usize),
) -> Result<usize, Error> {
    let read = |got: &Value| usize::try_from(got.as_u64()?).ok();
    within(value, origin, key, default, range, ("a whole number", read))
}

/// Refuses a key of [`WALKS`] that says something else than what we do.
fn walk(value: &Value, origin: &Path, key: &str, allowed: &[&str]) -> Result<(), Error> {
    let got = match value.get(key) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Bool(false)) if allowed.is_empty() => return Ok(()),
        Some(Value::String(word)) if allowed.contains(&word.as_str()) => return Ok(()),
        Some(got) => got,
    };
    let got = json::short(got);
    let what = format!(
        "\"{key}\": {got} is not supported; set it to {} in this file",
        allowed
            .first()
            .map_or("false".to_owned(), |word| format!("\"{word}\""))
    );
    Err(Error::unsupported(origin, what))
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    /// A schedule that is not supported, or a value of the wrong type or out of range.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        let class = value
            .get("_class_name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let flow = FLOW.contains(&class);
        if !flow && !DIFFUSION.contains(&class) {
            let class: String = class.chars().take(40).collect();
            let what = format!(
                "\"_class_name\": {class:?} is no noise schedule that reclair knows; use a prior of SDXL or SD3"
            );
            return Err(Error::unsupported(origin, what));
        }
        for (key, allowed) in WALKS {
            walk(value, origin, key, allowed)?;
        }
        let train_timesteps = whole(value, origin, "num_train_timesteps", 1000, (1, MOST_STEPS))?;
        let of =
            |key: &str, default: &str| value.get(key).cloned().unwrap_or_else(|| json!(default));
        if flow {
            json::only(value, origin, "use_dynamic_shifting", &[json!(false)])?;
            json::only(value, origin, "shift_terminal", &[Value::Null])?;
            json::only(value, origin, "invert_sigmas", &[json!(false)])?;
            let layouts = ["linspace", "trailing"].map(Value::from);
            json::only(value, origin, "timestep_spacing", &layouts)?;
            return Ok(Self::Flow {
                train_timesteps,
                shift: number(value, origin, "shift", 1.0, (1e-3, 1e3))?,
                spacing: json::config(&of("timestep_spacing", "linspace"), origin)?,
            });
        }
        json::only(value, origin, "beta_schedule", &[json!("scaled_linear")])?;
        json::only(value, origin, "trained_betas", &[Value::Null])?;
        json::only(value, origin, "rescale_betas_zero_snr", &[json!(false)])?;
        json::only(value, origin, "use_flow_sigmas", &[json!(false)])?;
        let predictions = [json!("epsilon"), json!("v_prediction")];
        json::only(value, origin, "prediction_type", &predictions)?;
        let beta = |key, default| number(value, origin, key, default, (1e-8, 1.0 - 1e-8));
        let (beta_start, beta_end) = (beta("beta_start", 0.000_85)?, beta("beta_end", 0.012)?);
        // The last mixture must still hold some of the picture: sigma stays below 10,000.
        let (first, last) = (beta_start.sqrt(), beta_end.sqrt());
        let left = |i: usize| {
            let at = i as f64 / (train_timesteps.max(2) - 1) as f64;
            (-(first + (last - first) * at).powi(2)).ln_1p()
        };
        if (0..train_timesteps).map(left).sum::<f64>() < 1e-8_f64.ln() {
            let what = format!(
                "{train_timesteps} steps of beta {beta_start} to {beta_end} leave nothing of the picture; take the file from the model's own folder"
            );
            return Err(Error::input(origin, what));
        }
        let layouts = ["leading", "trailing", "linspace", "legacy"].map(Value::from);
        json::only(value, origin, "timestep_spacing", &layouts)?;
        let end = match value.get("set_alpha_to_one") {
            Some(Value::Bool(false)) => End::FirstTimestep,
            None | Some(Value::Bool(true)) => End::Clean,
            Some(other) => return Err(bad(origin, "set_alpha_to_one", other, "true or false")),
        };
        Ok(Self::Diffusion {
            train_timesteps,
            beta_start,
            beta_end,
            prediction: json::config(&of("prediction_type", "epsilon"), origin)?,
            spacing: json::config(&of("timestep_spacing", "leading"), origin)?,
            steps_offset: whole(value, origin, "steps_offset", 0, (0, train_timesteps))?,
            end,
        })
    }

    /// The same schedule with another layout of inference timesteps.
    #[must_use]
    pub fn with_spacing(mut self, layout: Spacing) -> Self {
        match &mut self {
            Self::Diffusion { spacing, .. } | Self::Flow { spacing, .. } => *spacing = layout,
        }
        self
    }

    /// What the network's output means.
    pub fn prediction(&self) -> Prediction {
        match self {
            Self::Diffusion { prediction, .. } => *prediction,
            Self::Flow { .. } => Prediction::Flow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value) -> Result<SchedulerConfig, Error> {
        SchedulerConfig::from_json(value, Path::new("scheduler_config.json"))
    }

    #[test]
    fn real_schedulers_are_read() {
        let mut sdxl: Value =
            serde_json::from_str(include_str!("known/sdxl/scheduler.json")).expect("JSON");
        let first = read(&sdxl).expect("SDXL's");
        for class in DIFFUSION {
            sdxl["_class_name"] = class.into();
            assert_eq!(read(&sdxl).expect(class), first);
        }
        // As DPM-Solver's is saved.
        let more = json!({
            "solver_order": 2, "algorithm_type": "dpmsolver++", "lambda_min_clipped": "-Infinity", "variance_type": null,
            "final_sigmas_type": "zero", "euler_at_final": true, "use_lu_lambdas": null, "sigma_min": null,
            "rescale_betas_zero_snr": false, "dynamic_thresholding_ratio": 0.995, "_diffusers_version": "0.29.0",
        });
        for (key, value) in more.as_object().expect("an object") {
            sdxl[key] = value.clone();
        }
        assert_eq!(read(&sdxl).expect("DPM-Solver's"), first);
        sdxl["prediction_type"] = "v_prediction".into();
        let v = read(&sdxl).expect("a v-prediction one");
        assert_eq!(v.prediction(), Prediction::VPrediction);
        let sd3 = json!({
            "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
            "invert_sigmas": false, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000,
            "shift": 3.0, "shift_terminal": null, "stochastic_sampling": false, "time_shift_type": "exponential",
            "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
            "use_karras_sigmas": false,
        });
        let wanted = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 3.0,
            spacing: Spacing::Linspace,
        };
        assert_eq!(read(&sd3).expect("SD3's"), wanted);
    }
}
