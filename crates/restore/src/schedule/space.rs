//! What a state is made of at a noise level.
//!
//! A state is `z = alpha z0 + beta n`. [`Space`] says what alpha and beta are at a level `sigma`:
//!
//! | space | alpha | beta | used by |
//! |---|---|---|---|
//! | `Sigma` | 1 | sigma | epsilon and v priors |
//! | `Vp` | 1 / sqrt(1 + sigma^2) | sigma alpha | DDIM and DPM-Solver on them |
//! | `Flow` | 1 - sigma | sigma | flow priors |
//!
//! Divided by alpha, every state is one of sigma space at the level `beta / alpha`: where a formula is
//! stated for one space only, the others use it that way.

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

    /// Noise relative to the signal, `beta / alpha`; infinite for pure noise in flow space.
    pub fn ratio(self, sigma: f64) -> f64 {
        match self {
            Self::Sigma | Self::Vp => sigma,
            Self::Flow => sigma / (1.0 - sigma),
        }
    }

    /// The level at which noise is `ratio` times the signal.
    pub fn sigma_from_ratio(self, ratio: f64) -> f64 {
        match self {
            Self::Sigma | Self::Vp => ratio,
            Self::Flow => ratio / (1.0 + ratio),
        }
    }

    /// `lambda = ln(alpha / beta)`, the clock of the exponential integrators; infinite at both ends.
    pub fn lambda(self, sigma: f64) -> f64 {
        -self.ratio(sigma).ln()
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
            for space in [Space::Sigma, Space::Vp, Space::Flow] {
                let back = space.sigma_from_ratio(space.ratio(sigma));
                assert!(sigma == 1.0 || (back - sigma).abs() < 1e-12, "{space:?}");
            }
            assert!((Space::Flow.alpha(sigma) + Space::Flow.beta(sigma) - 1.0).abs() < 1e-12);
        }
    }
}
