//! Noise levels of training samples: where each stands between noise and data.
//!
//! ```text
//! x = data z0 + noise n
//! ```
//!
//! A restoration that starts from the noised low-quality latent visits states that the path from pure
//! noise never passes: they still carry the degradation. Where a start at noise level `s0` (noise over data)
//! moves straight to `z0`, the state at every level is the one above with
//!
//! ```text
//! n + (c_lq - z0) / s0    in place of n
//! ```

use priors::scheduler::SchedulerConfig;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use restore::schedule::alphas_cumprod;

use crate::config::{DenoiseLoss, Timesteps};

/// Where a sample stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Level {
    /// The state's coefficient of data.
    pub(super) data: f64,
    /// The state's coefficient of noise.
    pub(super) noise: f64,
    /// The model's timestep.
    pub(super) t: f64,
    /// How much of the degradation comes with the noise: `1 / s0`, or 0 on the path from pure noise.
    pub(super) carried: f64,
}

/// The levels of a scheduler, and how often each is drawn.
#[derive(Debug)]
pub(super) struct Levels {
    scheduler: SchedulerConfig,
    alphas: Vec<f64>,
    loss: DenoiseLoss,
}

impl Levels {
    pub(super) fn new(scheduler: &SchedulerConfig, loss: &DenoiseLoss) -> Self {
        Self {
            alphas: alphas_cumprod(scheduler),
            scheduler: scheduler.clone(),
            loss: loss.clone(),
        }
    }

    /// Whether some samples start from the noised low-quality latent.
    pub(super) fn starts_from_lq(&self) -> bool {
        self.loss.lq_start > 0.0
    }

    /// The level of the next sample.
    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> Level {
        // Without such starts nothing is drawn for them: the runs of older configurations stay what they were.
        if !self.starts_from_lq() || rng.random::<f64>() >= self.loss.lq_start {
            return self.at(self.shifted(self.share(rng)));
        }
        let [low, high] = self.loss.lq_start_strength;
        let strength = low + (high - low) * rng.random::<f64>();
        let start = self.at(strength);
        let way = match self.loss.lq_start_steps {
            0 => rng.random::<f64>(),
            steps => f64::from(rng.random_range(1..=steps)) / f64::from(steps),
        };
        Level {
            carried: start.data / start.noise,
            ..self.at(strength * way)
        }
    }

    /// Where on the path from data, 0, to noise, 1.
    fn share(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self.scheduler {
            SchedulerConfig::Flow { .. } => {
                let normal: f64 = rng.sample(StandardNormal);
                1.0 / (1.0 + (-(self.loss.sigma_mean + self.loss.sigma_std * normal)).exp())
            }
            SchedulerConfig::Diffusion { .. } => {
                let t = rng.random_range(0..self.alphas.len());
                (t as f64 + 0.5) / self.alphas.len() as f64
            }
        }
    }

    /// The level of a flow's training timestep at `share` of its scheduler, where these are drawn.
    fn shifted(&self, share: f64) -> f64 {
        match (&self.scheduler, self.loss.timesteps) {
            (
                SchedulerConfig::Flow {
                    train_timesteps,
                    shift,
                    ..
                },
                Timesteps::Scheduler,
            ) => {
                let n = *train_timesteps as f64;
                // diffusers counts timesteps from pure noise downwards.
                let s = 1.0 - (n * (1.0 - share)).floor() / n;
                shift * s / (1.0 + (shift - 1.0) * s)
            }
            _ => share,
        }
    }

    fn at(&self, share: f64) -> Level {
        match self.scheduler {
            SchedulerConfig::Flow {
                train_timesteps, ..
            } => Level {
                data: 1.0 - share,
                noise: share,
                t: share * train_timesteps as f64,
                carried: 0.0,
            },
            SchedulerConfig::Diffusion { .. } => {
                let last = self.alphas.len() - 1;
                let t = ((share * self.alphas.len() as f64) as usize).min(last);
                Level {
                    data: self.alphas[t].sqrt(),
                    noise: (1.0 - self.alphas[t]).sqrt(),
                    t: t as f64,
                    carried: 0.0,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pixels::random::stream;
    use priors::{
        scheduler::{End, Prediction, Spacing},
        weights::SafetensorsFile,
    };
    use std::path::Path;

    use super::*;

    const FLOW: SchedulerConfig = SchedulerConfig::Flow {
        train_timesteps: 1000,
        shift: 1.0,
        spacing: Spacing::Trailing,
    };

    fn diffusion() -> SchedulerConfig {
        SchedulerConfig::Diffusion {
            train_timesteps: 1000,
            beta_start: 0.000_85,
            beta_end: 0.012,
            prediction: Prediction::Epsilon,
            spacing: Spacing::Leading,
            steps_offset: 1,
            end: End::Clean,
        }
    }

    fn from_lq(strength: [f64; 2]) -> DenoiseLoss {
        DenoiseLoss {
            lq_start: 1.0,
            lq_start_strength: strength,
            ..DenoiseLoss::default()
        }
    }

    /// The state of one value, with data 0.3, low-quality 0.8 and noise -1.1.
    fn state(level: Level) -> f64 {
        level.data * 0.3 + level.noise * (-1.1 + (0.8 - 0.3) * level.carried)
    }

    #[test]
    fn the_start_is_the_noised_low_quality_value() {
        for scheduler in [FLOW, diffusion()] {
            let start = Levels::new(&scheduler, &DenoiseLoss::default()).at(0.4);
            let carried = start.data / start.noise;
            let expected = start.data * 0.8 - start.noise * 1.1;
            assert!((state(Level { carried, ..start }) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn between_start_and_data_the_way_is_straight() {
        let levels = Levels::new(&FLOW, &from_lq([0.5, 0.5]));
        let mut rng = stream(1, "test");
        // From 0.5 * 0.8 - 0.5 * 1.1 at sigma 0.5 to 0.3 at 0.
        let (start, data) = (-0.15, 0.3);
        for _ in 0..20 {
            let level = levels.draw(&mut rng);
            assert!(level.noise < 0.5);
            let expected = data + (start - data) * level.noise / 0.5;
            assert!((state(level) - expected).abs() < 1e-12, "{level:?}");
        }
    }

    #[test]
    fn levels_stay_below_the_largest_strength() {
        for scheduler in [FLOW, diffusion()] {
            let levels = Levels::new(&scheduler, &from_lq([0.1, 0.6]));
            let mut rng = stream(1, "test");
            let drawn: Vec<Level> = (0..200).map(|_| levels.draw(&mut rng)).collect();
            assert!(
                drawn
                    .iter()
                    .all(|level| level.t <= 600.0 && level.carried > 0.0)
            );
            assert!(drawn.iter().any(|level| level.t > 300.0));
        }
    }

    #[test]
    fn a_number_of_steps_leaves_the_levels_that_these_visit() {
        for (steps, visited) in [(1, vec![0.4]), (4, vec![0.1, 0.2, 0.3, 0.4])] {
            let levels = Levels::new(
                &FLOW,
                &DenoiseLoss {
                    lq_start_steps: steps,
                    ..from_lq([0.4, 0.4])
                },
            );
            let mut rng = stream(1, "test");
            let mut drawn: Vec<f64> = (0..100).map(|_| levels.draw(&mut rng).noise).collect();
            drawn.sort_by(f64::total_cmp);
            drawn.dedup();
            assert_eq!(drawn.len(), visited.len());
            for (level, visited) in drawn.iter().zip(visited) {
                assert!((level - visited).abs() < 1e-12, "{level}");
            }
        }
    }

    #[test]
    fn without_such_starts_the_draws_are_those_of_the_plain_path() {
        let levels = Levels::new(&FLOW, &DenoiseLoss::default());
        let (mut rng, mut plain) = (stream(1, "test"), stream(1, "test"));
        for _ in 0..5 {
            let level = levels.draw(&mut rng);
            let normal: f64 = plain.sample(StandardNormal);
            assert_eq!(level.noise, 1.0 / (1.0 + (-normal).exp()));
            assert_eq!(level.carried, 0.0);
        }
    }

    #[test]
    fn timesteps_of_the_scheduler_are_those_of_diffusers_script() {
        let golden = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/sd3_timesteps.safetensors"
        );
        let golden = SafetensorsFile::open(Path::new(golden)).expect("committed");
        let of = |name| -> Vec<f32> {
            let data = golden.data(name).expect("a tensor");
            data.try_into_vec().expect("f32")
        };
        let loss = DenoiseLoss {
            timesteps: Timesteps::Scheduler,
            ..DenoiseLoss::default()
        };
        let shifted = SchedulerConfig::Flow {
            train_timesteps: 1000,
            shift: 3.0,
            spacing: Spacing::Linspace,
        };
        let levels = Levels::new(&shifted, &loss);
        let wanted = of("sigma").into_iter().zip(of("timestep"));
        for (u, (sigma, t)) in of("u").into_iter().zip(wanted) {
            // Our u grows towards noise, theirs towards data.
            let level = levels.at(levels.shifted(1.0 - f64::from(u)));
            assert!((level.noise - f64::from(sigma)).abs() < 1e-6, "{level:?}");
            assert!((level.t - f64::from(t)).abs() < 1e-3, "{level:?}");
        }
        // The quantiles of what is drawn: 5, 50 and 95 %.
        let mut rng = stream(1, "test");
        let mut drawn: Vec<f64> = (0..20_000).map(|_| levels.draw(&mut rng).noise).collect();
        drawn.sort_by(f64::total_cmp);
        for (at, sigma) in [(1000, 0.37), (10_000, 0.75), (19_000, 0.94)] {
            assert!((drawn[at] - sigma).abs() < 0.01, "{}", drawn[at]);
        }
    }
}
