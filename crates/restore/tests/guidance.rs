//! Laws that hold for every sampler: restoration guidance between its steps, the same run in another space,
//! the same bytes from the same seed, guidance of text that changes over the steps.

use std::cell::{Cell, RefCell};

use burn::tensor::{DType, Device, Tensor, TensorData};
use pixels::random::stream;
use priors::scheduler::{End, Prediction, SchedulerConfig, Spacing};
use rand::RngExt;
use rand_distr::StandardNormal;
use restore::{
    denoiser::{CfgScale, Denoiser, Guided},
    rss::{Rss, RssMode},
    sampler::{Churn, Sampler, SamplerKind, Step, sample},
    schedule::{Family, Level, Schedule, Space},
};

const SAMPLERS: [SamplerKind; 9] = [
    SamplerKind::Euler,
    SamplerKind::EulerAncestral,
    SamplerKind::Edm(Churn {
        s_churn: 5.0,
        s_tmin: 0.0,
        s_tmax: f64::INFINITY,
        s_noise: 1.003,
    }),
    SamplerKind::Heun,
    SamplerKind::Ddim,
    SamplerKind::DpmSolver,
    SamplerKind::DpmSolverPlusPlus,
    SamplerKind::UniPc,
    SamplerKind::UniPcBh1,
];

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

fn flow() -> SchedulerConfig {
    SchedulerConfig::Flow {
        train_timesteps: 1000,
        shift: 3.0,
        spacing: Spacing::Linspace,
    }
}

/// Every sampler on both kinds of prior, where it has a meaning.
fn each(mut check: impl FnMut(SamplerKind, &SchedulerConfig, Box<dyn Sampler>)) {
    let mut refused = vec![];
    for config in [diffusion(), flow()] {
        for kind in SAMPLERS {
            match kind.sampler(&config) {
                Ok(sampler) => check(kind, &config, sampler),
                Err(why) => refused.push((kind, why.to_string())),
            }
        }
    }
    let [(SamplerKind::UniPcBh1, why)] = &refused[..] else {
        panic!("{refused:?}");
    };
    assert!(why.contains("use unipc"), "{why}");
}

fn schedule(kind: SamplerKind, config: &SchedulerConfig, steps: usize) -> Schedule {
    let config = match kind.spacing(config) {
        Some(spacing) => config.clone().with_spacing(spacing),
        None => config.clone(),
    };
    Schedule::new(&config, kind.space(), kind.family(), steps).expect("valid")
}

fn noise(rng: &mut impl rand::Rng) -> Tensor<4> {
    let values: Vec<f64> = (0..48).map(|_| rng.sample(StandardNormal)).collect();
    let data = TensorData::new(values, [1, 3, 4, 4]);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

fn values(x: &Tensor<4>) -> Vec<f64> {
    x.to_data().try_into_vec().expect("f64")
}

fn distance(a: &Tensor<4>, b: &Tensor<4>) -> f64 {
    let squares = values(a)
        .into_iter()
        .zip(values(b))
        .map(|(a, b)| (a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

/// `D = tanh(x) / 2` of the state in sigma space: what a smooth denoiser might be, the same in every space.
struct Smooth(Space);

impl Denoiser for Smooth {
    fn space(&self) -> Space {
        self.0
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let (alpha, beta) = (self.0.alpha(level.sigma), self.0.beta(level.sigma));
        (z / (alpha * alpha + beta * beta).sqrt()).tanh() * 0.5
    }
}

/// The denoiser of Gaussian data of variance 1, whose ODE keeps all that a state holds.
struct Gaussian(Space);

impl Denoiser for Gaussian {
    fn space(&self) -> Space {
        self.0
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let (alpha, beta) = (self.0.alpha(level.sigma), self.0.beta(level.sigma));
        z * (alpha / (alpha * alpha + beta * beta))
    }
}

/// A denoiser that always sees the same picture.
struct Fixed(Space, Tensor<4>);

impl Denoiser for Fixed {
    fn space(&self) -> Space {
        self.0
    }

    fn denoise(&self, _: Tensor<4>, _: Level) -> Tensor<4> {
        self.1.clone()
    }
}

/// A sampler that shows the states it gives, settled, as guidance finds them.
struct Shown<'a> {
    sampler: Box<dyn Sampler>,
    states: &'a RefCell<Vec<Step>>,
}

impl Sampler for Shown<'_> {
    fn step(
        &mut self,
        denoiser: &dyn Denoiser,
        z: Tensor<4>,
        schedule: &Schedule,
        i: usize,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Step {
        self.sampler.step(denoiser, z, schedule, i, noise)
    }

    fn settle(
        &mut self,
        denoiser: &dyn Denoiser,
        step: Step,
        schedule: &Schedule,
        i: usize,
    ) -> Step {
        let step = self.sampler.settle(denoiser, step, schedule, i);
        self.states.borrow_mut().push(step.clone());
        step
    }
}

/// The states after each step of a run, guided, and before guidance.
fn walk(
    sampler: Box<dyn Sampler>,
    denoiser: &dyn Denoiser,
    schedule: &Schedule,
    rss: Option<(&Rss, &Tensor<4>)>,
    seed: u64,
) -> (Vec<Tensor<4>>, Vec<Step>) {
    let states = RefCell::new(vec![]);
    let mut shown = Shown {
        sampler,
        states: &states,
    };
    let mut rng = stream(seed, "noise");
    let start = noise(&mut rng) * schedule.initial_beta;
    let mut guided = vec![];
    sample(
        &mut shown,
        denoiser,
        schedule,
        rss,
        start,
        &mut || noise(&mut rng),
        &mut |progress| guided.push(progress.z.clone()),
    );
    (guided, states.into_inner())
}

const PULL: Rss = Rss {
    weight: 0.05,
    threshold: 0.3,
    mode: None,
};

#[test]
fn the_distance_shrinks_by_the_pull_between_all_steps() {
    let c_lq = noise(&mut stream(1, "c_lq")) * 0.3;
    each(|kind, config, sampler| {
        let schedule = schedule(kind, config, 12);
        let denoiser = Smooth(schedule.space);
        let (guided, settled) = walk(sampler, &denoiser, &schedule, Some((&PULL, &c_lq)), 0);
        let mut pulled = 0;
        for (i, step) in settled.iter().enumerate() {
            let pull = PULL.pull(11 - i, 12);
            pulled += usize::from(pull > 0.0);
            let alpha = match PULL.mode_in(schedule.space) {
                RssMode::Scaled => schedule.space.alpha(schedule.levels[i + 1].sigma),
                _ => 1.0,
            };
            let target = c_lq.clone() * alpha;
            let (before, after) = (distance(&step.z, &target), distance(&guided[i], &target));
            assert!(
                (after - (1.0 - pull) * before).abs() < 1e-9 * before,
                "{kind:?} {:?} step {i}: {after} of {before}",
                schedule.space
            );
        }
        assert_eq!((settled.len(), pulled), (11, 8), "{kind:?}");
    });
}

/// Where the denoiser sees the same whatever the state is, a state moves on by `z - alpha D -> beta'/beta (z -
/// alpha D)`, and so does what a pull has changed in it; an ancestral step takes a part of it along, and DPM-Solver
/// extrapolates the noise, which a pull changes. A sampler that corrects its state from an older one must not undo
/// the pull.
#[test]
fn a_pull_survives_the_next_step() {
    let mut rng = stream(1, "pictures");
    let (c_lq, seen) = (noise(&mut rng) * 0.3, noise(&mut rng) * 0.3);
    each(|kind, config, sampler| {
        let schedule = schedule(kind, config, 8);
        let denoiser = Fixed(schedule.space, seen.clone());
        let (free, _) = walk(
            kind.sampler(config).expect("as before"),
            &denoiser,
            &schedule,
            None,
            0,
        );
        let (guided, settled) = walk(sampler, &denoiser, &schedule, Some((&PULL, &c_lq)), 0);
        let changed = guided[0].clone() - free[0].clone();
        let kept = settled[1].z.clone() - free[1].clone();
        let (a, b) = (schedule.levels[1].sigma, schedule.levels[2].sigma);
        let space = schedule.space;
        let ratio = match kind {
            SamplerKind::EulerAncestral => {
                space.alpha(b) / space.alpha(a) * (space.ratio(b) / space.ratio(a)).powi(2)
            }
            SamplerKind::Edm(churn) => {
                let churned =
                    space.ratio(a) * (1.0 + (churn.s_churn / 8.0).min(2.0_f64.sqrt() - 1.0));
                space.beta(b) / (space.alpha(a) * churned)
            }
            SamplerKind::DpmSolver => {
                let lambda = |i: usize| space.lambda(schedule.levels[i].sigma);
                let part = 0.5 * (lambda(2) - lambda(1)) / (lambda(1) - lambda(0));
                let noise = space.beta(b) - space.alpha(b) * space.ratio(a);
                (space.beta(b) + noise * part) / space.beta(a)
            }
            _ => space.beta(b) / space.beta(a),
        };
        let norm = distance(&kept, &kept.zeros_like());
        assert!(norm > 1e-3, "{kind:?}: the pull did nothing");
        let off = distance(&kept, &(changed * ratio));
        assert!(off < 1e-9 * norm, "{kind:?} {space:?}: {off} of {norm}");
    });
}

#[test]
fn guidance_ends_nearer_to_the_low_quality_latent() {
    let c_lq = noise(&mut stream(1, "c_lq")) * 0.3;
    let strong = Rss {
        weight: 0.1,
        threshold: 0.0,
        mode: None,
    };
    each(|kind, config, sampler| {
        let schedule = schedule(kind, config, 20);
        let denoiser = Gaussian(schedule.space);
        let (free, _) = walk(
            kind.sampler(config).expect("as before"),
            &denoiser,
            &schedule,
            None,
            0,
        );
        let (guided, _) = walk(sampler, &denoiser, &schedule, Some((&strong, &c_lq)), 0);
        let (free, guided) = (distance(&free[19], &c_lq), distance(&guided[19], &c_lq));
        assert!(
            guided < 0.7 * free,
            "{kind:?} {:?}: {guided} of {free}",
            schedule.space
        );
    });
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    each(|kind, config, sampler| {
        let schedule = schedule(kind, config, 6);
        let denoiser = Smooth(schedule.space);
        let run = |sampler, seed| values(&walk(sampler, &denoiser, &schedule, None, seed).0[5]);
        let again = || kind.sampler(config).expect("as before");
        let first = run(sampler, 0);
        assert!(first.iter().all(|v| v.is_finite()), "{kind:?}: {first:?}");
        assert_eq!(first, run(again(), 0), "{kind:?}");
        assert_ne!(first, run(again(), 1), "{kind:?}");
    });
}

/// A sampler's second run is its first one again: nothing of a run stays in it.
#[test]
fn a_sampler_forgets_its_last_run() {
    each(|kind, config, mut sampler| {
        let schedule = schedule(kind, config, 6);
        let mut run = || {
            let mut rng = stream(0, "noise");
            let start = noise(&mut rng) * schedule.initial_beta;
            let denoiser = Smooth(schedule.space);
            let mut draw = || noise(&mut rng);
            let z = sample(
                sampler.as_mut(),
                &denoiser,
                &schedule,
                None,
                start,
                &mut draw,
                &mut |_| (),
            );
            values(&z)
        };
        assert_eq!(run(), run(), "{kind:?}");
    });
}

/// `z / alpha` at the level `beta / alpha` is a state of sigma space; all but Heun, which takes the mean of two
/// slopes in its own space, go the same way in each.
#[test]
fn a_run_is_the_same_in_every_space() {
    let ratios = [14.0, 6.0, 2.5, 1.2, 0.5, 0.2, 0.0];
    for kind in SAMPLERS {
        let run = |space: Space| {
            let level = |ratio: &f64| Level {
                sigma: space.sigma_from_ratio(*ratio),
                t: 0.0,
            };
            let mut schedule = Schedule::new(&flow(), space, Family::OneStep, 6).expect("valid");
            schedule.space = space;
            schedule.levels = ratios.iter().map(level).collect();
            schedule.initial_beta = space.beta(schedule.levels[0].sigma);
            let sampler = kind.sampler(&diffusion()).expect("valid");
            let z = walk(sampler, &Smooth(space), &schedule, None, 0).0;
            z.last().expect("six steps").clone()
        };
        let sigma = run(Space::Sigma);
        let norm = distance(&sigma, &sigma.zeros_like());
        for space in [Space::Vp, Space::Flow] {
            if kind == SamplerKind::Heun && space == Space::Flow {
                continue;
            }
            let off = distance(&run(space), &sigma);
            assert!(off < 1e-9 * norm, "{kind:?} {space:?}: {off} of {norm}");
        }
    }
}

#[test]
fn text_guidance_changes_from_the_first_step_to_the_last() {
    struct Counted<'a>(Fixed, &'a Cell<usize>);
    impl Denoiser for Counted<'_> {
        fn space(&self) -> Space {
            self.0.space()
        }
        fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
            self.1.set(self.1.get() + 1);
            self.0.denoise(z, level)
        }
    }
    let schedule = schedule(SamplerKind::Euler, &diffusion(), 5);
    let ones = Tensor::<4>::ones([1, 1, 1, 1], (&Device::flex(), DType::F64));
    let asked = Cell::new(0);
    let scales = |cfg_scale| {
        let guided = Guided {
            text: Fixed(Space::Sigma, ones.clone()),
            null: Counted(Fixed(Space::Sigma, ones.zeros_like()), &asked),
            cfg_scale,
            schedule: &schedule,
        };
        let steps = schedule.levels[..5].iter();
        steps
            .map(|&level| values(&guided.denoise(ones.clone(), level))[0])
            .collect::<Vec<_>>()
    };
    let got = scales(CfgScale::Linear {
        first: 7.0,
        last: 1.0,
    });
    for (got, wanted) in got.iter().zip([7.0, 5.5, 4.0, 2.5, 1.0]) {
        assert!((got - wanted).abs() < 1e-12, "{got} instead of {wanted}");
    }
    assert_eq!(asked.get(), 4, "at scale 1 the null denoiser is not asked");
    assert_eq!(scales(CfgScale::Constant(7.5)), [7.5; 5]);
}
