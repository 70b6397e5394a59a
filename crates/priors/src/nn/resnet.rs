//! The residual block of the U-Net and of the autoencoder.
//!
//! `conv2(silu(norm2(conv1(silu(norm1 x)) + W silu(emb)))) + shortcut(x)`; the autoencoder has no `emb`.

use burn::tensor::Tensor;
use kernels::Padding;

use super::{Bias, Conv2d, GroupNorm, Linear};
use crate::{
    Error,
    weights::{Init, Weights},
};

/// Sizes of a [`Resnet`].
#[derive(Clone, Copy, Debug)]
pub struct ResnetConfig {
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Width of the time embedding, none in the autoencoder.
    pub d_emb: Option<usize>,
    /// Groups of the norms.
    pub groups: usize,
    /// Epsilon of the norms.
    pub eps: f64,
}

/// A residual block.
#[derive(Clone, Debug)]
pub struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    /// Takes its tensors from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(w: &Weights, config: ResnetConfig) -> Result<Self, Error> {
        let ResnetConfig {
            c_in,
            c_out,
            d_emb,
            groups,
            eps,
        } = config;
        let project = |d| Linear::new(&w.at("time_emb_proj"), d, c_out, Bias::With);
        let shortcut = || Conv2d::new(&w.at("conv_shortcut"), c_in, c_out, 1);
        Ok(Self {
            norm1: GroupNorm::new(&w.at("norm1"), groups, c_in, eps)?,
            conv1: Conv2d::new(&w.at("conv1"), c_in, c_out, 3)?,
            time_emb_proj: d_emb.map(project).transpose()?,
            norm2: GroupNorm::new(&w.at("norm2"), groups, c_out, eps)?,
            // Fresh blocks start as their shortcut, which trains faster (ADM, EDM).
            conv2: Conv2d::with(
                &w.at("conv2"),
                c_out,
                c_out,
                3,
                1,
                Padding::same(1),
                Init::Zeros,
            )?,
            conv_shortcut: (c_in != c_out).then(shortcut).transpose()?,
        })
    }

    /// Its norms and convolutions in order, and the shortcut's convolution.
    pub(crate) fn parts(&self) -> ([&GroupNorm; 2], [&Conv2d; 2], Option<&Conv2d>) {
        (
            [&self.norm1, &self.norm2],
            [&self.conv1, &self.conv2],
            self.conv_shortcut.as_ref(),
        )
    }

    /// Applies the block to `x` `[b, c_in, h, w]` with `emb` `[b, d_emb]`.
    pub fn forward(&self, x: Tensor<4>, emb: Option<&Tensor<2>>) -> Tensor<4> {
        let mut h = self.conv1.forward(self.norm1.silu(x.clone()));
        if let (Some(project), Some(emb)) = (&self.time_emb_proj, emb) {
            let shift = project.forward(kernels::silu(emb.clone()));
            h = kernels::shift_channels(h, shift);
        }
        let h = self.conv2.forward(self.norm2.silu(h));
        let x = match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        kernels::add(x, h)
    }
}
