//! Linear maps and the tap through which a low-rank term enters.

use burn::tensor::{DType, Tensor};
use kernels::LowRank;

use crate::{
    Error,
    weights::{Init, Weights},
};

/// Whether a layer adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It does.
    With,
    /// It does not.
    Without,
}

/// `y = x WT + b`, with `W` `[d_out, d_in]`.
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    /// The type that the weight is stored in.
    pub(crate) fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Takes `weight` `[d_out, d_in]` and, if wanted, `bias` `[d_out]` from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, d_in: usize, d_out: usize, bias: Bias) -> Result<Self, Error> {
        Self::with_init(w, d_in, d_out, bias, Init::fan_in(d_in))
    }

    /// As [`Linear::new`], starting from `init` when the weights are fresh.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn with_init(
        w: &Weights,
        d_in: usize,
        d_out: usize,
        bias: Bias,
        init: Init,
    ) -> Result<Self, Error> {
        let weight = w.tensor("weight", [d_out, d_in], init)?;
        let bias = match bias {
            Bias::With => Some(w.tensor("bias", [d_out], init)?),
            Bias::Without => None,
        };
        Ok(Self {
            name: w.name(""),
            weight,
            bias,
        })
    }

    /// Maps the last axis of `x` `[.., d_in]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        kernels::linear(x, self.weight.clone(), self.bias.clone())
    }

    /// Maps the channels of `x` `[b, d_in, h, w]`, pixel by pixel.
    pub fn forward_channels(&self, x: Tensor<4>) -> Tensor<4> {
        let [d_out, d_in] = self.weight.dims();
        let weight = self.weight.clone().reshape([d_out, d_in, 1, 1]);
        kernels::conv2d(x, weight, self.bias.clone(), 1, kernels::Padding::same(0))
    }

    /// Maps tokens `[b, n, d_in]` and shows the projection to `tap`.
    pub fn tapped(&self, x: Tensor<3>, tap: &dyn Tap) -> Tensor<3> {
        match tap.update(self.name.trim_end_matches('.')) {
            None => self.forward(x),
            Some(update) => {
                let (weight, bias) = (self.weight.clone(), self.bias.clone());
                kernels::linear_low_rank(x, weight, bias, update)
            }
        }
    }
}

/// Sees named projections and may add to their weights. [`Bare`] adds nothing.
pub trait Tap {
    /// The update of the weight of projection `name`.
    fn update(&self, name: &str) -> Option<LowRank>;
}

/// The empty tap: the bare prior.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

impl Tap for Bare {
    fn update(&self, _name: &str) -> Option<LowRank> {
        None
    }
}
