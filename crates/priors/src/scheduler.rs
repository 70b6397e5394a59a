//! The scheduler's configuration, from `scheduler/scheduler_config.json`: which noise the prior was
//! trained with and what its output means. Samplers live elsewhere.

use std::path::Path;

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
    /// `i * (N / T) + offset`, never reaching the last training timestep.
    Leading,
    /// From the last training timestep downwards in equal steps.
    Trailing,
    /// Equally spaced with both ends.
    Linspace,
    /// `int(linspace(N - 1, 0, T, endpoint=False))`: sgm's legacy discretisation, which SUPIR uses. For
    /// discrete diffusion only.
    Legacy,
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

impl SchedulerConfig {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    /// A schedule that is not supported.
    pub fn from_json(value: &Value, origin: &Path) -> Result<Self, Error> {
        let number =
            |key: &str, default: f64| value.get(key).and_then(Value::as_f64).unwrap_or(default);
        let train_timesteps = number("num_train_timesteps", 1000.0) as usize;
        let class = value
            .get("_class_name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if class.starts_with("FlowMatch") {
            json::only(value, origin, "use_dynamic_shifting", &[json!(false)])?;
            let spacing = value
                .get("timestep_spacing")
                .cloned()
                .unwrap_or_else(|| json!("linspace"));
            let spacing: Spacing = json::config(&spacing, origin)?;
            return Ok(Self::Flow {
                train_timesteps,
                shift: number("shift", 1.0),
                spacing,
            });
        }
        json::only(value, origin, "beta_schedule", &[json!("scaled_linear")])?;
        json::only(value, origin, "trained_betas", &[Value::Null])?;
        json::only(value, origin, "rescale_betas_zero_snr", &[json!(false)])?;
        let of =
            |key: &str, default: &str| value.get(key).cloned().unwrap_or_else(|| json!(default));
        let prediction: Prediction = json::config(&of("prediction_type", "epsilon"), origin)?;
        let spacing: Spacing = json::config(&of("timestep_spacing", "leading"), origin)?;
        Ok(Self::Diffusion {
            train_timesteps,
            beta_start: number("beta_start", 0.000_85),
            beta_end: number("beta_end", 0.012),
            prediction,
            spacing,
            steps_offset: number("steps_offset", 0.0) as usize,
            end: match value.get("set_alpha_to_one") {
                Some(Value::Bool(false)) => End::FirstTimestep,
                _ => End::Clean,
            },
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
