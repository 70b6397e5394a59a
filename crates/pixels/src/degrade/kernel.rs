//! Blur kernels: Gaussian, generalized Gaussian, plateau and sinc, normalised to sum 1.
//!
//! With offsets p = (x, y) from the centre, Sigma = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T and q = p^T
//! Sigma^-1 p: Gaussian e^{-q/2}, generalized e^{-q^beta/2}, plateau 1/(1 + q^beta);
//! sinc (circular low-pass) w J1(w r) / (2 pi r), w^2 / (4 pi) at the centre.
//! Source: BasicSR `degradations.py`; its zero padding to 21 taps changes no result and is left out.

use std::f64::consts::PI;

/// A square kernel of odd side.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Side.
    pub size: usize,
    /// Taps `[size, size]`, row-major, sum 1.
    pub taps: Vec<f32>,
}

/// The shape of a kernel and all its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// e^{-q/2}.
    Gaussian {
        /// Standard deviations along the rotated axes.
        sigma: [f64; 2],
        /// theta in radians.
        rotation: f64,
    },
    /// e^{-q^beta/2}.
    Generalized {
        /// Standard deviations along the rotated axes.
        sigma: [f64; 2],
        /// theta in radians.
        rotation: f64,
        /// 1 is the Gaussian; smaller has heavier tails.
        beta: f64,
    },
    /// 1/(1 + q^beta).
    Plateau {
        /// Scales along the rotated axes.
        sigma: [f64; 2],
        /// theta in radians.
        rotation: f64,
        /// Larger is flatter with steeper walls.
        beta: f64,
    },
    /// w J1(w r) / (2 pi r).
    Sinc {
        /// w in radians a pixel, at most pi.
        cutoff: f64,
    },
}

impl Kernel {
    /// The kernel of this shape on `size` x `size` taps.
    ///
    /// # Panics
    /// If `size` is even.
    pub fn new(size: usize, shape: Shape) -> Self {
        assert!(size % 2 == 1, "a kernel has a centre: got size {size}");
        let half = (size / 2) as f64;
        let offsets =
            (0..size * size).map(|i| ((i % size) as f64 - half, (i / size) as f64 - half));
        let taps: Vec<f64> = match shape {
            Shape::Gaussian { sigma, rotation } => offsets
                .map(|p| (-0.5 * form(p, sigma, rotation)).exp())
                .collect(),
            Shape::Generalized {
                sigma,
                rotation,
                beta,
            } => offsets
                .map(|p| (-0.5 * form(p, sigma, rotation).powf(beta)).exp())
                .collect(),
            Shape::Plateau {
                sigma,
                rotation,
                beta,
            } => offsets
                .map(|p| 1.0 / (1.0 + form(p, sigma, rotation).powf(beta)))
                .collect(),
            Shape::Sinc { cutoff } => offsets.map(|(x, y)| low_pass(x.hypot(y), cutoff)).collect(),
        };
        let sum: f64 = taps.iter().sum();
        Self {
            size,
            taps: taps.into_iter().map(|tap| (tap / sum) as f32).collect(),
        }
    }

    /// What it leaves of a wave of four pixels' length (half the highest frequency), averaged over the two axes; a
    /// Gaussian gives e^{-sigma^2 pi^2 / 8}: 0.73 for sigma 0.5, 0.29 for sigma 1.
    pub fn response(&self) -> f64 {
        let half = self.size / 2;
        let wave = |i: usize| [1.0, 0.0, -1.0, 0.0][i.abs_diff(half) % 4];
        let taps = self.taps.iter().enumerate();
        taps.map(|(i, &tap)| f64::from(tap) * 0.5 * (wave(i % self.size) + wave(i / self.size)))
            .sum()
    }
}

/// q = p^T Sigma^-1 p, by turning p back; a sigma of zero is a very small one, which leaves the centre alone.
fn form((x, y): (f64, f64), sigma: [f64; 2], rotation: f64) -> f64 {
    let (sin, cos) = rotation.sin_cos();
    let [sigma_x, sigma_y] = sigma.map(|s| s.max(1e-3));
    ((cos * x + sin * y) / sigma_x).powi(2) + ((cos * y - sin * x) / sigma_y).powi(2)
}

fn low_pass(r: f64, cutoff: f64) -> f64 {
    if r == 0.0 {
        cutoff * cutoff / (4.0 * PI)
    } else {
        cutoff * libm::j1(cutoff * r) / (2.0 * PI * r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beta_of_one_is_the_gaussian() {
        let (sigma, rotation) = ([2.0, 0.7], 0.6);
        let gaussian = Kernel::new(15, Shape::Gaussian { sigma, rotation });
        assert_eq!(
            Kernel::new(
                15,
                Shape::Generalized {
                    sigma,
                    rotation,
                    beta: 1.0
                }
            ),
            gaussian
        );
    }

    #[test]
    fn the_response_of_a_gaussian_has_its_closed_form() {
        for sigma in [0.6, 1.0, 1.7] {
            let response = Kernel::new(
                21,
                Shape::Gaussian {
                    sigma: [sigma; 2],
                    rotation: 0.0,
                },
            )
            .response();
            let closed = (-sigma * sigma * PI * PI / 8.0).exp();
            assert!(
                (response - closed).abs() < 2e-2,
                "{sigma}: {response}, {closed}"
            );
        }
        assert_eq!(
            Kernel::new(
                7,
                Shape::Gaussian {
                    sigma: [0.0; 2],
                    rotation: 0.0
                }
            )
            .response(),
            1.0
        );
    }

    #[test]
    fn a_turn_moves_the_long_axis() {
        let lying = Kernel::new(
            9,
            Shape::Gaussian {
                sigma: [3.0, 0.5],
                rotation: 0.0,
            },
        );
        let standing = Kernel::new(
            9,
            Shape::Gaussian {
                sigma: [3.0, 0.5],
                rotation: PI / 2.0,
            },
        );
        assert!(lying.taps[4 * 9 + 8] > 100.0 * lying.taps[8 * 9 + 4]);
        assert!((standing.taps[8 * 9 + 4] - lying.taps[4 * 9 + 8]).abs() < 1e-9);
    }
}
