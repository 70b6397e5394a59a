//! Gaussian data, for which the ODE and the SDE have closed solutions: the laws of the samplers.
//!
//! For data `N(0, s^2)` the denoiser is `D(z) = z alpha s^2 / (alpha^2 s^2 + beta^2)`, the ODE keeps
//! `z / sqrt(alpha^2 s^2 + beta^2)` constant, and the SDE keeps that spread.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Sampler, sample};
use crate::{
    denoiser::Denoiser,
    schedule::{Level, Schedule, Space, Trained},
};

const S: f64 = 0.7;

struct Gaussian(Space);

impl Gaussian {
    fn spread(&self, sigma: f64) -> f64 {
        (self.0.alpha(sigma).powi(2) * S * S + self.0.beta(sigma).powi(2)).sqrt()
    }
}

impl Denoiser for Gaussian {
    fn space(&self) -> Space {
        self.0
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let (a, b) = (self.0.alpha(level.sigma), self.0.beta(level.sigma));
        z * (a * S * S / (a * a * S * S + b * b))
    }
}

/// Equal steps from 0.9 to 0.1: no sampler's last step is shortened by the end of the line.
fn schedule(space: Space, steps: usize) -> Schedule {
    let level = |i: usize| Level {
        sigma: 0.9 - 0.8 * i as f64 / steps as f64,
        t: 0.0,
    };
    Schedule {
        space,
        levels: (0..=steps).map(level).collect(),
        full_steps: steps,
        initial_beta: 1.0,
        trained: Trained::Continuous(1.0),
    }
}

fn line(values: Vec<f64>) -> Tensor<4> {
    let shape = [1, 1, 1, values.len()];
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Device::flex(), DType::F64),
    )
}

/// How the result depends on the start and on each draw: the sampler is linear here, so every element of
/// the state follows one of them.
fn responses(sampler: &mut dyn Sampler, space: Space, steps: usize) -> Vec<f64> {
    let unit = |at: usize| line((0..=steps).map(|j| f64::from(u8::from(j == at))).collect());
    let mut drawn = 0;
    let z = sample(
        sampler,
        &Gaussian(space),
        &schedule(space, steps),
        None,
        unit(0),
        &mut || {
            drawn += 1;
            unit(drawn)
        },
        &mut |_| (),
    );
    z.into_data().try_into_vec().expect("f64")
}

fn log_ratio(error: impl Fn(usize) -> f64) -> f64 {
    (error(256) / error(512)).log2()
}

/// The order of a sampler that draws nothing: of its error when the step is halved.
pub(super) fn order(sampler: &dyn Fn() -> Box<dyn Sampler>, space: Space) -> f64 {
    let exact = Gaussian(space).spread(0.1) / Gaussian(space).spread(0.9);
    log_ratio(|steps| (responses(sampler().as_mut(), space, steps)[0] - exact).abs())
}

/// The weak order of a sampler that draws: of the error of the result's spread.
pub(super) fn weak_order(sampler: &dyn Fn() -> Box<dyn Sampler>, space: Space) -> f64 {
    let gaussian = Gaussian(space);
    log_ratio(|steps| {
        let responses = responses(sampler().as_mut(), space, steps);
        assert!(
            responses[1..].iter().any(|&r| r != 0.0),
            "nothing was drawn"
        );
        let start = responses[0] * gaussian.spread(0.9);
        let drawn: f64 = responses[1..].iter().map(|r| r * r).sum();
        ((start * start + drawn).sqrt() - gaussian.spread(0.1)).abs()
    })
}
