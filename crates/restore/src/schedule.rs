//! Noise levels of a sampling run, in f64.
//!
//! A state is `z = alpha z0 + beta n`. [`Space`] says what alpha and beta are at a level `sigma`:
//!
//! | space | alpha | beta | used by |
//! |---|---|---|---|
//! | `Sigma` | 1 | sigma | Euler on epsilon and v priors |
//! | `Vp` | 1 / sqrt(1 + sigma^2) | sigma alpha | DDIM |
//! | `Flow` | 1 - sigma | sigma | flow priors |
//!
//! Sources: diffusers' `EulerDiscreteScheduler`, `DDIMScheduler`, `FlowMatchEulerDiscreteScheduler`.

use priors::scheduler::{End, SchedulerConfig, Spacing};

use crate::Error;

/// What a state is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// `z0 + sigma n`.
    Sigma,
    /// Unit variance.
    Vp,
    /// The straight line from data to noise.
    Flow,
}

impl Space {
    /// The signal's coefficient at `sigma`.
    pub fn alpha(self, sigma: f64) -> f64 {
        match self {
            Self::Sigma => 1.0,
            Self::Vp => 1.0 / (1.0 + sigma * sigma).sqrt(),
            Self::Flow => 1.0 - sigma,
        }
    }

    /// The noise's coefficient at `sigma`.
    pub fn beta(self, sigma: f64) -> f64 {
        match self {
            Self::Sigma | Self::Flow => sigma,
            Self::Vp => sigma * self.alpha(sigma),
        }
    }
}

/// One noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Noise relative to the signal; in flow space the position on the line.
    pub sigma: f64,
    /// The timestep the model is told.
    pub t: f64,
}

/// The levels of a run, noisiest first; the last is where it ends, usually `sigma` 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// What a state is made of.
    pub space: Space,
    /// One more than there are steps.
    pub levels: Vec<Level>,
    /// Steps of the full schedule, of which these are the last: what `T` means in the paper's eq. 2.
    pub full_steps: usize,
    /// The coefficient of pure noise, where the run starts from nothing else.
    pub initial_beta: f64,
}

/// `alpha-bar_t` of a discrete diffusion, for every training timestep.
pub fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f64> {
    let SchedulerConfig::Diffusion {
        train_timesteps,
        beta_start,
        beta_end,
        ..
    } = *config
    else {
        return vec![];
    };
    let (first, last) = (beta_start.sqrt(), beta_end.sqrt());
    let mut product = 1.0;
    (0..train_timesteps)
        .map(|i| {
            let at = i as f64 / (train_timesteps.max(2) - 1) as f64;
            let beta = (first + (last - first) * at).powi(2);
            product *= 1.0 - beta;
            product
        })
        .collect()
}

impl Schedule {
    /// `steps` levels of the prior's own schedule and the end, in its sampler's space.
    ///
    /// # Errors
    /// No steps, or more than there are training timesteps.
    pub fn new(config: &SchedulerConfig, space: Space, steps: usize) -> Result<Self, Error> {
        match *config {
            SchedulerConfig::Flow {
                train_timesteps,
                shift,
                spacing,
            } => {
                check(steps, train_timesteps)?;
                let n = train_timesteps as f64;
                let shifted = |sigma: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
                // diffusers keeps its smallest sigma already shifted and shifts it again (issue 13243).
                let least = shifted(1.0 / n);
                let level = |i: usize| {
                    let sigma = match spacing {
                        _ if i == steps => 0.0,
                        Spacing::Linspace => {
                            1.0 - (1.0 - least) * i as f64 / (steps.max(2) - 1) as f64
                        }
                        Spacing::Leading | Spacing::Trailing => 1.0 - i as f64 / steps as f64,
                    };
                    let sigma = shifted(sigma);
                    Level {
                        sigma,
                        t: sigma * n,
                    }
                };
                let levels = (0..=steps).map(level).collect();
                Ok(Self {
                    space: Space::Flow,
                    levels,
                    full_steps: steps,
                    initial_beta: 1.0,
                })
            }
            SchedulerConfig::Diffusion {
                train_timesteps,
                spacing,
                steps_offset,
                end,
                ..
            } => {
                check(steps, train_timesteps)?;
                let alphas = alphas_cumprod(config);
                let (n, last) = (train_timesteps as f64, (train_timesteps - 1) as f64);
                let timestep = |i: usize| match spacing {
                    Spacing::Leading => {
                        let ratio = train_timesteps / steps;
                        ((steps - 1 - i) * ratio + steps_offset) as f64
                    }
                    Spacing::Trailing => (n - i as f64 * n / steps as f64).round_ties_even() - 1.0,
                    Spacing::Linspace => last * (steps - 1 - i) as f64 / (steps.max(2) - 1) as f64,
                };
                let level = |i: usize| {
                    let t = timestep(i).clamp(0.0, last);
                    Level {
                        sigma: sigma_from_t(&alphas, t),
                        t,
                    }
                };
                let mut levels: Vec<Level> = (0..steps).map(level).collect();
                let sigma = match (space, end) {
                    (Space::Vp, End::FirstTimestep) => sigma_from_t(&alphas, 0.0),
                    _ => 0.0,
                };
                levels.push(Level { sigma, t: 0.0 });
                let first = levels[0].sigma;
                let initial_beta = match (space, spacing) {
                    (Space::Sigma, Spacing::Leading) => (first * first + 1.0).sqrt(),
                    (Space::Sigma, _) => first,
                    _ => 1.0,
                };
                Ok(Self {
                    space,
                    levels,
                    full_steps: steps,
                    initial_beta,
                })
            }
        }
    }

    /// The last `steps` steps of a longer schedule that begins at `strength` of the whole: from a
    /// noised low-quality latent.
    ///
    /// # Errors
    /// A strength outside `(0, 1]`, or no steps.
    pub fn from_strength(
        config: &SchedulerConfig,
        space: Space,
        steps: usize,
        strength: f64,
    ) -> Result<Self, Error> {
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::Input(format!(
                "strength {strength} is not between 0 and 1; choose 0.5 for a start"
            )));
        }
        let full = ((steps as f64 / strength).round() as usize).max(steps);
        let mut schedule = Self::new(config, space, full)?;
        schedule.levels.drain(..full - steps);
        Ok(schedule)
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.levels.len() - 1
    }
}

fn check(steps: usize, most: usize) -> Result<(), Error> {
    if steps == 0 || steps > most {
        return Err(Error::Input(format!(
            "{steps} steps are not possible with this prior; choose 1 to {most}"
        )));
    }
    Ok(())
}

/// `sqrt((1 - a) / a)` at a timestep that may lie between two training timesteps.
fn sigma_from_t(alphas: &[f64], t: f64) -> f64 {
    let sigma = |i: usize| ((1.0 - alphas[i]) / alphas[i]).sqrt();
    let low = t.floor() as usize;
    let part = t - t.floor();
    if part == 0.0 {
        sigma(low)
    } else {
        sigma(low) + (sigma(low + 1) - sigma(low)) * part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_space_has_its_mixture() {
        for sigma in [0.0, 0.3, 1.0] {
            let (a, b) = (Space::Vp.alpha(sigma), Space::Vp.beta(sigma));
            assert!((a * a + b * b - 1.0).abs() < 1e-12, "unit variance");
            assert!((b / a - sigma).abs() < 1e-12, "sigma is the ratio");
            assert!((Space::Flow.alpha(sigma) + Space::Flow.beta(sigma) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_strength_takes_the_tail_of_the_full_schedule() {
        let config = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 1.0,
            spacing: Spacing::Trailing,
        };
        let tail = Schedule::from_strength(&config, Space::Flow, 10, 0.5).expect("valid");
        assert_eq!((tail.steps(), tail.full_steps), (10, 20));
        assert!((tail.levels[0].sigma - 0.5).abs() < 1e-12);
        assert_eq!(tail.levels[10].sigma, 0.0);
        let whole = Schedule::new(&config, Space::Flow, 20).expect("valid");
        assert_eq!(tail.levels[..], whole.levels[10..]);
    }

    #[test]
    fn impossible_steps_are_refused() {
        let config = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 1.0,
            spacing: Spacing::Trailing,
        };
        assert!(Schedule::new(&config, Space::Flow, 0).is_err());
        assert!(Schedule::from_strength(&config, Space::Flow, 10, 0.0).is_err());
        assert!(Schedule::from_strength(&config, Space::Flow, 10, 1.5).is_err());
    }
}
