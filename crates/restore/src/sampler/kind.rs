//! The samplers by name.

use priors::scheduler::{SchedulerConfig, Spacing};
use serde::Serialize;

use super::{
    Bh, Churn, Ddim, DpmSolver, Edm, Euler, EulerAncestral, Extrapolates, Heun, Order, Sampler,
    UniPc,
};
use crate::{
    Error,
    schedule::{Family, Space},
};

/// The samplers there are. On a flow prior each works in flow space.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// First order, deterministic.
    Euler,
    /// Euler with as much noise as DDPM.
    EulerAncestral,
    /// EDM's stochastic sampler, on discrete diffusion at SUPIR's timesteps.
    Edm(Churn),
    /// Second order, two network calls a step.
    Heun,
    /// DDIM without noise. On a flow prior it is Euler.
    Ddim,
    /// Second order by the step before, noise prediction.
    DpmSolver,
    /// DPM-Solver++(2M): second order by the step before, data prediction.
    DpmSolverPlusPlus,
    /// Second order with a corrector, `B(h) = e^-h - 1`.
    UniPc,
    /// UniPC with `B(h) = -h`; not for flow priors.
    UniPcBh1,
}

impl SamplerKind {
    /// The space it works in for epsilon and v priors. Two end where the prior's training ended, at its first
    /// timestep, if the prior's configuration says so.
    pub fn space(self) -> Space {
        match self {
            Self::Ddim | Self::DpmSolver => Space::Vp,
            _ => Space::Sigma,
        }
    }

    /// How diffusers' scheduler of the same name lays out timesteps.
    pub fn family(self) -> Family {
        match self {
            Self::DpmSolver | Self::DpmSolverPlusPlus | Self::UniPc | Self::UniPcBh1 => {
                Family::Multistep
            }
            _ => Family::OneStep,
        }
    }

    /// The layout of timesteps that belongs to it, where that is not the prior's own.
    pub fn spacing(self, config: &SchedulerConfig) -> Option<Spacing> {
        match (self, config) {
            (Self::Edm(_), SchedulerConfig::Diffusion { .. }) => Some(Spacing::Legacy),
            _ => None,
        }
    }

    /// The sampler itself, at the start of a run.
    ///
    /// # Errors
    /// One that has no meaning for this prior.
    pub fn sampler(self, config: &SchedulerConfig) -> Result<Box<dyn Sampler>, Error> {
        let dpm = |extrapolates| Box::new(DpmSolver::new(extrapolates, Order::Second));
        Ok(match self {
            Self::Euler => Box::new(Euler),
            Self::EulerAncestral => Box::new(EulerAncestral),
            Self::Edm(churn) => Box::new(Edm { churn }),
            Self::Heun => Box::new(Heun),
            Self::Ddim => Box::new(Ddim { eta: 0.0 }),
            Self::DpmSolver => dpm(Extrapolates::Noise),
            Self::DpmSolverPlusPlus => dpm(Extrapolates::Data),
            Self::UniPc => Box::new(UniPc::new(Bh::Bh2)),
            Self::UniPcBh1 if matches!(config, SchedulerConfig::Flow { .. }) => {
                let what = "unipc-bh1 cannot start from a flow prior's pure noise, whose step is infinite in its clock; use unipc";
                return Err(Error::Unsupported(what.into()));
            }
            Self::UniPcBh1 => Box::new(UniPc::new(Bh::Bh1)),
        })
    }
}
