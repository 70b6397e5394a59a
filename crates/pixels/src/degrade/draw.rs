//! Drawing: numbers, events, choices, and the blur kernels of a [`KernelLaw`].
//!
//! Source of the kernels' laws: `realesrgan_dataset.py` and BasicSR's `random_mixed_kernels`.

use std::f64::consts::PI;

use rand::{Rng, RngExt};

use super::config::{KernelLaw, Range};
use super::drawn::Drawn;
use super::kernel::{Kernel, Shape};

impl Kernel {
    /// A kernel drawn from `law`, and what was drawn.
    pub fn draw(law: &KernelLaw, rng: &mut impl Rng) -> (Self, Drawn) {
        let (size, name, shape) = match law {
            KernelLaw::Gaussian { size, sigma } => {
                let sigma = uniform(*sigma, rng);
                (
                    *size,
                    "gaussian",
                    Shape::Gaussian {
                        sigma: [sigma; 2],
                        rotation: 0.0,
                    },
                )
            }
            KernelLaw::Sinc { size, cutoff } => (
                odd(*size, rng),
                "sinc",
                Shape::Sinc {
                    cutoff: uniform(*cutoff, rng),
                },
            ),
            KernelLaw::Mixed {
                size,
                sinc,
                weights,
                sigma,
                beta_generalized,
                beta_plateau,
            } => {
                let size = odd(*size, rng);
                if chance(*sinc, rng) {
                    let low = if size < 13 { PI / 3.0 } else { PI / 5.0 };
                    (
                        size,
                        "sinc",
                        Shape::Sinc {
                            cutoff: uniform([low, PI], rng),
                        },
                    )
                } else {
                    let (name, shape) =
                        mixed(weights, *sigma, *beta_generalized, *beta_plateau, rng);
                    (size, name, shape)
                }
            }
        };
        let kernel = Self::new(size, shape);
        let (sigma, rotation, beta, cutoff) = match shape {
            Shape::Gaussian { sigma, rotation } => (Some(sigma), Some(rotation), None, None),
            Shape::Generalized {
                sigma,
                rotation,
                beta,
            }
            | Shape::Plateau {
                sigma,
                rotation,
                beta,
            } => (Some(sigma), Some(rotation), Some(beta), None),
            Shape::Sinc { cutoff } => (None, None, None, Some(cutoff)),
        };
        let response = kernel.response();
        (
            kernel,
            Drawn::Blur {
                kernel: name.to_owned(),
                size,
                sigma,
                rotation,
                beta,
                cutoff,
                response,
            },
        )
    }
}

fn mixed(
    weights: &[f64; 6],
    sigma: Range,
    beta_generalized: Range,
    beta_plateau: Range,
    rng: &mut impl Rng,
) -> (&'static str, Shape) {
    let which = weighted(weights, rng);
    let sigma_x = uniform(sigma, rng);
    let (sigma, rotation) = if which.is_multiple_of(2) {
        ([sigma_x; 2], 0.0)
    } else {
        ([sigma_x, uniform(sigma, rng)], uniform([-PI, PI], rng))
    };
    let beta = |range: Range, rng: &mut _| {
        if chance(0.5, rng) {
            uniform([range[0], 1.0], rng)
        } else {
            uniform([1.0, range[1]], rng)
        }
    };
    match which {
        0 => ("iso", Shape::Gaussian { sigma, rotation }),
        1 => ("aniso", Shape::Gaussian { sigma, rotation }),
        2 => (
            "generalized_iso",
            Shape::Generalized {
                sigma,
                rotation,
                beta: beta(beta_generalized, rng),
            },
        ),
        3 => (
            "generalized_aniso",
            Shape::Generalized {
                sigma,
                rotation,
                beta: beta(beta_generalized, rng),
            },
        ),
        4 => (
            "plateau_iso",
            Shape::Plateau {
                sigma,
                rotation,
                beta: beta(beta_plateau, rng),
            },
        ),
        _ => (
            "plateau_aniso",
            Shape::Plateau {
                sigma,
                rotation,
                beta: beta(beta_plateau, rng),
            },
        ),
    }
}

/// U(low, high).
pub(super) fn uniform(range: Range, rng: &mut impl Rng) -> f64 {
    range[0] + (range[1] - range[0]) * rng.random::<f64>()
}

/// Whether an event of this probability happens.
pub(super) fn chance(probability: f64, rng: &mut impl Rng) -> bool {
    rng.random::<f64>() < probability
}

/// An index, with these weights.
pub(super) fn weighted(weights: &[f64], rng: &mut impl Rng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        if left < *weight {
            return i;
        }
        left -= weight;
    }
    weights.len() - 1
}

fn odd(range: [usize; 2], rng: &mut impl Rng) -> usize {
    let sizes = (range[1].max(range[0]) - range[0]) / 2 + 1;
    (range[0] + 2 * rng.random_range(0..sizes)) | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::degrade::{Degradation, Step};
    use crate::random::stream;

    #[test]
    fn kernels_sum_to_one_and_are_symmetric_about_the_centre() {
        let mut rng = stream(1, "kernels");
        for name in ["realesrgan", "mild", "mixture", "light"] {
            let preset = Degradation::preset(name).expect("known");
            let Step::Blur { kernel: law, .. } = &preset.steps[0] else {
                panic!("{name} starts with a blur")
            };
            for _ in 0..300 {
                let (kernel, drawn) = Kernel::draw(law, &mut rng);
                let sum: f64 = kernel.taps.iter().map(|&tap| f64::from(tap)).sum();
                assert!((sum - 1.0).abs() < 1e-6, "{drawn:?}: {sum}");
                let worst = kernel
                    .taps
                    .iter()
                    .zip(kernel.taps.iter().rev())
                    .map(|(a, b)| (a - b).abs());
                assert!(worst.fold(0.0, f32::max) < 1e-6, "{drawn:?}");
            }
        }
    }

    #[test]
    fn weights_are_frequencies() {
        let mut rng = stream(2, "weights");
        let mut seen = [0; 3];
        for _ in 0..10_000 {
            seen[weighted(&[0.2, 0.7, 0.1], &mut rng)] += 1;
        }
        for (count, expected) in seen.iter().zip([2000, 7000, 1000]) {
            assert!(i32::abs(count - expected) < 200, "{seen:?}");
        }
    }
}
