//! ControlNet for a U-Net prior (Zhang et al., 2302.05543): what the paper's adapter is compared with.
//!
//! A trained copy of the prior's way down and middle runs beside the prior; its features reach the prior through
//! convolutions that start at zero. With the prior's first feature `x` and its embeddings of time and text:
//!
//! ```text
//! s_0 .. s_n, m = Copy(x + ZeroConv3x3(c_lq), emb, text)
//! skip_i        = skip_i + ZeroConv1x1_i(s_i)
//! middle        = middle + ZeroConv1x1(m)
//! ```
//!
//! Names are those of diffusers' `ControlNetModel`. Unlike there the first convolution and the time embedding are the
//! prior's own, frozen (so the paper's count of 839 M comes out, `reclair info --prior sdxl`), and the hint is one
//! convolution of the low-quality latent, which is as large as the prior's input. The copy sees the noisy state and
//! the timestep, so it runs at every step; only the hint is made once for a picture.

use burn::tensor::Tensor;
use kernels::Padding;
use priors::{
    nn::{Bare, Conv2d},
    unet::{Unet, UnetEncoder, UnetFlow},
    weights::{Init, Weights},
};

use super::{ControlNetConfig, Scale};
use crate::Error;

/// What a fresh ControlNet copies of the prior's `unet/`.
pub const COPIED: [&str; 2] = ["down_blocks.", "mid_block."];

/// A ControlNet.
#[derive(Clone, Debug)]
pub struct ControlNet {
    hint: Conv2d,
    copy: UnetEncoder,
    skips: Vec<Conv2d>,
    middle: Conv2d,
}

impl ControlNet {
    /// Builds the network from `w`, for `unet`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: &ControlNetConfig, unet: &Unet, w: &Weights) -> Result<Self, Error> {
        let copy = UnetEncoder::new(unet.config(), w)?;
        let zero = |name: &str, c_in, c_out, kernel| {
            let padding = Padding::same(kernel / 2);
            Conv2d::with(&w.at(name), c_in, c_out, kernel, 1, padding, Init::Zeros)
        };
        let skips = copy.skips().iter().enumerate();
        Ok(Self {
            hint: zero(
                "controlnet_cond_embedding",
                config.lq_channels,
                copy.skips()[0],
                3,
            )?,
            skips: skips
                .map(|(i, &c)| zero(&format!("controlnet_down_blocks.{i}"), c, c, 1))
                .collect::<Result<_, _>>()?,
            middle: zero("controlnet_mid_block", copy.channels(), copy.channels(), 1)?,
            copy,
        })
    }

    /// The hint of `c_lq` `[b, c, h, w]`, for the copy's first feature.
    pub fn lq_features(&self, c_lq: &Tensor<4>) -> Vec<Tensor<4>> {
        vec![self.hint.forward(c_lq.clone())]
    }

    /// The flow that goes on after segment `i`: changed at the end of the prior's middle, else as it came.
    pub fn after(&self, i: usize, flow: UnetFlow, lq: &[Tensor<4>], scale: &Scale) -> UnetFlow {
        if scale.is_zero() || i + 1 != self.copy.segments() {
            return flow;
        }
        // The first skip is the prior's first feature.
        let entering = kernels::add(flow.skips[0].clone(), lq[0].clone());
        let control = UnetFlow {
            sample: entering.clone(),
            tokens: None,
            skips: vec![entering],
            ..flow.clone()
        };
        let control = self.copy.forward(control, &Bare);
        let zipped = flow.skips.into_iter().zip(control.skips).zip(&self.skips);
        let skips = zipped
            .map(|((skip, x), zero)| kernels::add(skip, scale.of(zero.forward(x))))
            .collect();
        let middle = scale.of(self.middle.forward(control.sample));
        UnetFlow {
            sample: kernels::add(flow.sample, middle),
            skips,
            ..flow
        }
    }
}
