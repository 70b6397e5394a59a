//! Noise levels of a sampling run, in f64.
//!
//! Sources: diffusers' `EulerDiscreteScheduler`, `DDIMScheduler`, `DPMSolverMultistepScheduler`,
//! `FlowMatchEulerDiscreteScheduler`; sgm's `LegacyDDPMDiscretization`.

mod space;
mod timesteps;

pub use space::Space;
pub use timesteps::Family;

use priors::scheduler::{End, SchedulerConfig, Spacing};

use crate::Error;

/// One noise level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Noise relative to the signal; in flow space the position on the line.
    pub sigma: f64,
    /// The timestep the model is told.
    pub t: f64,
}

/// The levels a prior was trained at.
#[derive(Clone, Debug, PartialEq)]
pub enum Trained {
    /// `sigma` of every training timestep, cleanest first.
    Discrete(Vec<f64>),
    /// Every level; `t` is this many times `sigma`.
    Continuous(f64),
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
    /// What levels there are beside these.
    pub trained: Trained,
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
    /// `steps` levels of the prior's own schedule and the end, in the space of a sampler of this family.
    ///
    /// # Errors
    /// No steps, or more than there are training timesteps; a layout that this kind of schedule has not.
    pub fn new(
        config: &SchedulerConfig,
        space: Space,
        family: Family,
        steps: usize,
    ) -> Result<Self, Error> {
        match *config {
            SchedulerConfig::Flow {
                train_timesteps,
                shift,
                spacing,
            } => {
                check(steps, train_timesteps)?;
                if matches!(spacing, Spacing::Legacy | Spacing::Leading) {
                    let what = format!(
                        "the {} layout is one of discrete timesteps, which a flow prior has not; choose linspace or trailing",
                        spacing.name()
                    );
                    return Err(Error::Unsupported(what));
                }
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
                        _ => 1.0 - i as f64 / steps as f64,
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
                    trained: Trained::Continuous(n),
                })
            }
            SchedulerConfig::Diffusion {
                train_timesteps,
                spacing,
                steps_offset,
                end,
                ..
            } => {
                check(steps, family.most_steps(spacing, train_timesteps))?;
                let alphas = alphas_cumprod(config);
                let level = |t: f64| Level {
                    sigma: sigma_from_t(&alphas, t),
                    t,
                };
                let times = family.timesteps(spacing, train_timesteps, steps_offset, steps);
                let mut levels: Vec<Level> = times.into_iter().map(level).collect();
                let sigma = match (space, end) {
                    (Space::Vp, End::FirstTimestep) => sigma_from_t(&alphas, 0.0),
                    _ => 0.0,
                };
                levels.push(Level { sigma, t: 0.0 });
                let first = levels[0].sigma;
                // Multistep schedulers begin with pure noise of unit variance, `x / alpha` in sigma space.
                let unit_variance = family == Family::Multistep
                    || matches!(spacing, Spacing::Leading | Spacing::Legacy);
                let initial_beta = match space {
                    Space::Sigma if unit_variance => (first * first + 1.0).sqrt(),
                    Space::Sigma => first,
                    _ => 1.0,
                };
                Ok(Self {
                    space,
                    levels,
                    full_steps: steps,
                    initial_beta,
                    trained: Trained::Discrete(
                        alphas.iter().copied().map(sigma_from_alpha).collect(),
                    ),
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
        family: Family,
        steps: usize,
        strength: f64,
    ) -> Result<Self, Error> {
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::Input(format!(
                "strength {strength} is not between 0 and 1; choose 0.5 for a start"
            )));
        }
        let full = ((steps as f64 / strength).round() as usize).max(steps);
        let mut schedule = Self::new(config, space, family, full).map_err(|why| match why {
            Error::Input(why) if full > steps => Error::Input(format!(
                "{steps} steps at strength {strength} are the last of {full}: {why}; or raise the strength"
            )),
            other => other,
        })?;
        schedule.levels.drain(..full - steps);
        Ok(schedule)
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.levels.len() - 1
    }

    /// `lambda` at the end of step `i` less that at its beginning; infinite where either is.
    pub(crate) fn lambda_step(&self, i: usize) -> f64 {
        let lambda = |i: usize| self.space.lambda(self.levels[i].sigma);
        lambda(i + 1) - lambda(i)
    }

    /// The trained level nearest to `sigma`.
    pub fn nearest(&self, sigma: f64) -> Level {
        match &self.trained {
            Trained::Continuous(scale) => Level {
                sigma,
                t: scale * sigma,
            },
            Trained::Discrete(sigmas) => {
                let above = sigmas.partition_point(|&s| s < sigma).min(sigmas.len() - 1);
                let below = above.saturating_sub(1);
                let nearer = (sigmas[above] - sigma).abs() <= (sigma - sigmas[below]).abs();
                let t = if nearer { above } else { below };
                Level {
                    sigma: sigmas[t],
                    t: t as f64,
                }
            }
        }
    }

    /// How far a run is at `sigma`: 0 at the first step's level, 1 at the last step's, linear in steps.
    pub fn part(&self, sigma: f64) -> f64 {
        let last = self.steps() - 1;
        let Some(next) = self.levels[..=last].iter().position(|l| l.sigma <= sigma) else {
            return 1.0;
        };
        if next == 0 {
            return 0.0;
        }
        let (above, below) = (self.levels[next - 1].sigma, self.levels[next].sigma);
        (next as f64 - (sigma - below) / (above - below)) / last as f64
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

/// `sqrt((1 - a) / a)`.
fn sigma_from_alpha(alpha: f64) -> f64 {
    ((1.0 - alpha) / alpha).sqrt()
}

/// The same at a timestep that may lie between two training timesteps.
fn sigma_from_t(alphas: &[f64], t: f64) -> f64 {
    let sigma = |i: usize| sigma_from_alpha(alphas[i]);
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
    fn a_strength_takes_the_tail_of_the_full_schedule() {
        let config = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 1.0,
            spacing: Spacing::Trailing,
        };
        let tail =
            Schedule::from_strength(&config, Space::Flow, Family::OneStep, 10, 0.5).expect("valid");
        assert_eq!((tail.steps(), tail.full_steps), (10, 20));
        assert!((tail.levels[0].sigma - 0.5).abs() < 1e-12);
        assert_eq!(tail.levels[10].sigma, 0.0);
        let whole = Schedule::new(&config, Space::Flow, Family::OneStep, 20).expect("valid");
        assert_eq!(tail.levels[..], whole.levels[10..]);
    }

    fn diffusion(spacing: Spacing) -> SchedulerConfig {
        SchedulerConfig::Diffusion {
            train_timesteps: 1000,
            beta_start: 0.000_85,
            beta_end: 0.012,
            prediction: priors::scheduler::Prediction::Epsilon,
            spacing,
            steps_offset: 1,
            end: End::Clean,
        }
    }

    #[test]
    fn the_legacy_layout_and_its_nearest_levels() {
        let schedule = Schedule::new(
            &diffusion(Spacing::Legacy),
            Space::Sigma,
            Family::OneStep,
            100,
        )
        .expect("valid");
        let times: Vec<f64> = schedule.levels.iter().map(|level| level.t).collect();
        assert_eq!(times[..4], [999.0, 989.0, 979.0, 969.0]);
        assert_eq!(times[98..], [19.0, 9.0, 0.0]);
        for level in &schedule.levels[..100] {
            assert_eq!(schedule.nearest(level.sigma), *level);
        }
        let Trained::Discrete(sigmas) = &schedule.trained else {
            panic!("discrete");
        };
        let between = |part: f64| sigmas[500] + part * (sigmas[501] - sigmas[500]);
        assert_eq!(schedule.nearest(between(0.4)).t, 500.0);
        assert_eq!(schedule.nearest(between(0.6)).t, 501.0);
        assert_eq!(schedule.nearest(1e3).t, 999.0);
        assert_eq!(schedule.nearest(0.0).t, 0.0);
        let flow = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 3.0,
            spacing: Spacing::Legacy,
        };
        for layout in [Spacing::Legacy, Spacing::Leading] {
            let flow = flow.clone().with_spacing(layout);
            let why = Schedule::new(&flow, Space::Flow, Family::OneStep, 100).expect_err("refused");
            let name = format!("the {} layout", layout.name());
            assert!(why.to_string().contains(&name), "{why}");
        }
    }

    #[test]
    fn a_run_is_counted_in_steps() {
        let schedule = Schedule::new(
            &diffusion(Spacing::Trailing),
            Space::Sigma,
            Family::OneStep,
            5,
        )
        .expect("valid");
        for (i, level) in schedule.levels[..5].iter().enumerate() {
            assert!((schedule.part(level.sigma) - i as f64 / 4.0).abs() < 1e-12);
        }
        let middle = 0.5 * (schedule.levels[1].sigma + schedule.levels[2].sigma);
        assert!((schedule.part(middle) - 1.5 / 4.0).abs() < 1e-12);
        assert_eq!((schedule.part(1e3), schedule.part(0.0)), (0.0, 1.0));
        let one = Schedule::new(
            &diffusion(Spacing::Trailing),
            Space::Sigma,
            Family::OneStep,
            1,
        )
        .expect("valid");
        assert_eq!(one.part(one.levels[0].sigma), 0.0);
    }

    #[test]
    fn impossible_steps_are_refused() {
        let config = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 1.0,
            spacing: Spacing::Trailing,
        };
        assert!(Schedule::new(&config, Space::Flow, Family::OneStep, 0).is_err());
        assert!(Schedule::from_strength(&config, Space::Flow, Family::OneStep, 10, 0.0).is_err());
        assert!(Schedule::from_strength(&config, Space::Flow, Family::OneStep, 10, 1.5).is_err());
    }
}
