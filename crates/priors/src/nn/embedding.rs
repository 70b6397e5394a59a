//! A table of vectors, looked up by number.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};

use crate::{
    Error,
    weights::{Init, Weights},
};

/// A table `[rows, d]`; what is taken from it is f32, whatever it is stored in.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor<2>,
}

impl Embedding {
    /// Takes `weight` `[rows, d]` from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, rows: usize, d: usize) -> Result<Self, Error> {
        let weight = w.tensor("weight", [rows, d], Init::Normal(0.02))?;
        Ok(Self { weight })
    }

    /// The rows of these numbers, `[numbers, d]`.
    pub fn rows(&self, numbers: Vec<i32>) -> Tensor<2> {
        let n = numbers.len();
        let device = self.weight.device();
        let at = Tensor::<1, Int>::from_data(TensorData::new(numbers, [n]), (&device, DType::I32));
        self.weight.clone().select(0, at).cast(FloatDType::F32)
    }

    /// The rows of a batch of token ids, all of one length, `[b, n, d]`.
    pub fn forward(&self, ids: &[Vec<u32>]) -> Tensor<3> {
        let [b, n] = [ids.len(), ids.first().map_or(0, Vec::len)];
        let d = self.weight.dims()[1];
        self.rows(ids.iter().flatten().map(|&id| id as i32).collect())
            .reshape([b, n, d])
    }

    /// The first `n` rows, `[n, d]`.
    pub fn first(&self, n: usize) -> Tensor<2> {
        self.weight.clone().narrow(0, 0, n).cast(FloatDType::F32)
    }
}
