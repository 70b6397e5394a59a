//! Initial values, drawn from a seed and the tensor's name.

use burn::tensor::TensorData;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use sha2::{Digest, Sha256};

/// How a tensor starts before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `[-bound, bound]`.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
}

impl Init {
    /// PyTorch's default for linear and convolution weights and biases, `U(+-1/sqrt(fan_in))`.
    pub fn fan_in(fan_in: usize) -> Self {
        Self::Uniform(1.0 / (fan_in.max(1) as f64).sqrt())
    }

    pub(super) fn data(self, seed: u64, name: &str, shape: &[usize]) -> TensorData {
        let n = shape.iter().product::<usize>();
        let mut rng = stream(seed, name);
        let values: Vec<f32> = match self {
            Self::Zeros => vec![0.0; n],
            Self::Ones => vec![1.0; n],
            Self::Uniform(bound) => (0..n)
                .map(|_| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32)
                .collect(),
            Self::Normal(std) => (0..n)
                .map(|_| (rng.sample::<f64, _>(StandardNormal) * std) as f32)
                .collect(),
        };
        TensorData::new(values, shape.to_vec())
    }
}

/// The random stream of `name` under `seed`: ChaCha8 keyed with SHA-256 of both.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}
