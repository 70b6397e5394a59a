//! `AutoencoderKL`: pictures to latents and back, as two sequences of segments.
//!
//! Encoder and decoder are plain chains of features `[b, c, h, w]`; the mid block attends with one
//! head over all positions. With `patch_size` above 1 squares of pixels are folded into channels around both. A latent is `(mean - shift) * scale` of the posterior.
//!
//! Source: Rombach et al., latent diffusion (2112.10752); tensor names and arithmetic of diffusers.

mod config;
mod pooled;

use std::{ops::Range, path::Path};

use burn::tensor::Tensor;
use kernels::Padding;
use serde_json::Value;

pub use config::VaeConfig;
pub use pooled::{Plan, Stage};

use crate::{
    Error,
    nn::{Attention, Bias, Conv2d, GroupNorm, Resnet, ResnetConfig},
    weights::Weights,
};

#[derive(Clone, Debug)]
enum Body {
    Conv(Conv2d),
    Resnet(Box<Resnet>),
    Attention(Box<(GroupNorm, Attention)>),
    Down(Conv2d),
    Up(Conv2d),
    Out(Box<(GroupNorm, Conv2d)>),
}

#[derive(Clone, Debug)]
struct Segment {
    name: String,
    body: Body,
}

impl Segment {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.body {
            Body::Conv(conv) | Body::Down(conv) => conv.forward(x),
            Body::Resnet(resnet) => resnet.forward(x, None),
            Body::Attention(parts) => {
                let (norm, attention) = &**parts;
                let [b, c, h, w] = x.dims();
                let tokens = norm
                    .forward(x.clone())
                    .reshape([b, c, h * w])
                    .swap_dims(1, 2); // [b, n, c]
                x + attention
                    .to_itself(tokens)
                    .swap_dims(1, 2)
                    .reshape([b, c, h, w])
            }
            Body::Up(conv) => conv.forward(kernels::upsample_nearest2x(x)),
            Body::Out(parts) => parts.1.forward(parts.0.silu(x)),
        }
    }
}

/// One half of the autoencoder as the chain of segments that it is.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(&'a [Segment]);

impl Chain<'_> {
    /// Segments.
    pub fn segments(&self) -> usize {
        self.0.len()
    }

    /// The feature behind the segments of `range` from the one before them, `[b, c, h, w]` each.
    pub fn forward(&self, range: Range<usize>, x: Tensor<4>) -> Tensor<4> {
        walk(&self.0[range], x, &mut |_, _| ())
    }
}

/// The Gaussian posterior of a picture.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// `[b, c, h / f, w / f]`.
    pub mean: Tensor<4>,
    /// Log variance, clamped to `[-30, 20]`, the same shape.
    pub logvar: Tensor<4>,
}

/// The autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Vec<Segment>,
    decoder: Vec<Segment>,
}

impl AutoencoderKl {
    /// Builds the network that `config.json` describes from `w`.
    ///
    /// # Errors
    /// An unsupported configuration, a missing tensor or one of another shape.
    pub fn from_json(value: &Value, origin: &Path, w: &Weights) -> Result<Self, Error> {
        Self::new(VaeConfig::from_json(value, origin)?, w)
    }

    /// Builds the network from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: VaeConfig, w: &Weights) -> Result<Self, Error> {
        let encoder = Builder {
            config: &config,
            w,
            segments: vec![],
        }
        .encoder()?;
        let decoder = Builder {
            config: &config,
            w,
            segments: vec![],
        }
        .decoder()?;
        Ok(Self {
            config,
            encoder,
            decoder,
        })
    }

    /// The same autoencoder with another encoder, `encoder.*` of `w`; the rest is shared, the 1x1 convolution
    /// that ends the encoder too.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn with_encoder(&self, w: &Weights) -> Result<Self, Error> {
        let mut builder = Builder {
            config: &self.config,
            w,
            segments: vec![],
        };
        builder.encoder_body()?;
        let mut encoder = builder.segments;
        let quant = self.encoder.iter().filter(|segment| segment.name == QUANT);
        encoder.extend(quant.cloned());
        Ok(Self {
            encoder,
            ..self.clone()
        })
    }

    /// The configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// How many pixels one latent position spans on each side.
    pub fn downscale(&self) -> usize {
        self.config.patch_size << (self.config.block_out_channels.len() - 1)
    }

    /// The posterior of `image` `[b, 3, h, w]` in `[-1, 1]`.
    pub fn encode(&self, image: Tensor<4>) -> Posterior {
        self.encode_seen(image, &mut |_, _| ())
    }

    /// As [`AutoencoderKl::encode`], showing each segment's name and output to `see`.
    pub fn encode_seen(
        &self,
        image: Tensor<4>,
        see: &mut dyn FnMut(&str, &Tensor<4>),
    ) -> Posterior {
        self.posterior(walk(&self.encoder, self.folded(image), see))
    }

    /// From a [folded](Self::folded) picture to its [moments](Self::posterior).
    pub fn encoder(&self) -> Chain<'_> {
        Chain(&self.encoder)
    }

    /// From an [unscaled](Self::unscaled) latent to a picture, [still folded](Self::unfolded).
    pub fn decoder(&self) -> Chain<'_> {
        Chain(&self.decoder)
    }

    /// What enters the encoder for a picture `[b, 3, h, w]`: `[b, 3 p p, h / p, w / p]` with `patch_size` p.
    pub fn folded(&self, image: Tensor<4>) -> Tensor<4> {
        fold(image, self.config.patch_size)
    }

    /// The inverse of [`AutoencoderKl::folded`].
    pub fn unfolded(&self, x: Tensor<4>) -> Tensor<4> {
        unfold(x, self.config.patch_size)
    }

    /// The posterior that the encoder's last feature `[b, 2 c, h, w]` tells.
    pub fn posterior(&self, moments: Tensor<4>) -> Posterior {
        let c = self.config.latent_channels;
        let mean = moments.clone().narrow(1, 0, c);
        let logvar = moments.narrow(1, c, c).clamp(-30.0, 20.0);
        Posterior { mean, logvar }
    }

    /// The picture `[b, 3, h, w]` in about `[-1, 1]` of an unscaled latent.
    pub fn decode(&self, z: Tensor<4>) -> Tensor<4> {
        self.decode_seen(z, &mut |_, _| ())
    }

    /// As [`AutoencoderKl::decode`], showing each segment's name and output to `see`.
    pub fn decode_seen(&self, z: Tensor<4>, see: &mut dyn FnMut(&str, &Tensor<4>)) -> Tensor<4> {
        self.unfolded(walk(&self.decoder, z, see))
    }

    /// The scaled latent the prior works on, from the posterior's mean.
    pub fn latent_from_image(&self, image: Tensor<4>) -> Tensor<4> {
        self.latent_from_mean(self.encode(image).mean)
    }

    /// The picture of a scaled latent.
    pub fn image_from_latent(&self, latent: Tensor<4>) -> Tensor<4> {
        self.decode(self.unscaled(latent))
    }

    /// As [`AutoencoderKl::latent_from_image`], by [`AutoencoderKl::encode_pooled`].
    pub fn latent_from_image_pooled(
        &self,
        image: Tensor<4>,
        tile_px: usize,
        budget: usize,
    ) -> Tensor<4> {
        self.latent_from_mean(self.encode_pooled(image, tile_px, budget).mean)
    }

    /// As [`AutoencoderKl::image_from_latent`], by [`AutoencoderKl::decode_pooled`].
    pub fn image_from_latent_pooled(
        &self,
        latent: Tensor<4>,
        tile_px: usize,
        budget: usize,
    ) -> Tensor<4> {
        self.decode_pooled(self.unscaled(latent), tile_px, budget)
    }

    /// The scaled latent of a posterior's mean.
    pub fn latent_from_mean(&self, mean: Tensor<4>) -> Tensor<4> {
        (mean - self.config.shift_factor) * self.config.scaling_factor
    }

    /// The inverse of [`AutoencoderKl::latent_from_mean`].
    pub fn unscaled(&self, latent: Tensor<4>) -> Tensor<4> {
        latent / self.config.scaling_factor + self.config.shift_factor
    }
}

fn walk(segments: &[Segment], x: Tensor<4>, see: &mut dyn FnMut(&str, &Tensor<4>)) -> Tensor<4> {
    segments.iter().fold(x, |x, segment| {
        let y = segment.forward(x);
        see(&segment.name, &y);
        y
    })
}

/// `[b, c, h p, w p]` to `[b, c p p, h, w]`, channel `(c p + y) p + x` from row `y` and column `x` of each
/// square (PyTorch's `pixel_unshuffle`).
fn fold(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [b, c, h, w] = x.dims();
    x.reshape([b, c, h / p, p, w / p, p])
        .permute([0, 1, 3, 5, 2, 4])
        .reshape([b, c * p * p, h / p, w / p])
}

/// The inverse of [`fold`] (PyTorch's `pixel_shuffle`).
fn unfold(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [b, c, h, w] = x.dims();
    x.reshape([b, c / (p * p), p, p, h, w])
        .permute([0, 1, 4, 2, 5, 3])
        .reshape([b, c / (p * p), h * p, w * p])
}

struct Builder<'a> {
    config: &'a VaeConfig,
    w: &'a Weights,
    segments: Vec<Segment>,
}

/// The 1x1 convolution that ends the encoder.
const QUANT: &str = "quant_conv";

impl Builder<'_> {
    fn encoder(mut self) -> Result<Vec<Segment>, Error> {
        self.encoder_body()?;
        if self.config.use_quant_conv {
            let latent = 2 * self.config.latent_channels;
            self.conv(QUANT, latent, latent, 1)?;
        }
        Ok(self.segments)
    }

    /// `encoder.*`.
    fn encoder_body(&mut self) -> Result<(), Error> {
        let channels = self.config.block_out_channels.clone();
        let latent = 2 * self.config.latent_channels;
        let mut c = channels[0];
        self.conv("encoder.conv_in", self.config.in_channels, c, 3)?;
        for (i, &out) in channels.iter().enumerate() {
            for j in 0..self.config.layers_per_block {
                self.resnet(format!("encoder.down_blocks.{i}.resnets.{j}"), c, out)?;
                c = out;
            }
            if i + 1 < channels.len() {
                let path = format!("encoder.down_blocks.{i}.downsamplers.0");
                let padding = Padding {
                    top: 0,
                    left: 0,
                    bottom: 1,
                    right: 1,
                };
                let conv = Conv2d::down(&self.w.at(format!("{path}.conv")), c, padding)?;
                self.push(path, Body::Down(conv));
            }
        }
        self.mid("encoder", c)?;
        self.out("encoder", c, latent)
    }

    fn decoder(mut self) -> Result<Vec<Segment>, Error> {
        let channels = self.config.block_out_channels.clone();
        let latent = self.config.latent_channels;
        if self.config.use_post_quant_conv {
            self.conv("post_quant_conv", latent, latent, 1)?;
        }
        let mut c = channels[channels.len() - 1];
        self.conv("decoder.conv_in", latent, c, 3)?;
        self.mid("decoder", c)?;
        for (i, &out) in channels.iter().rev().enumerate() {
            for j in 0..=self.config.layers_per_block {
                self.resnet(format!("decoder.up_blocks.{i}.resnets.{j}"), c, out)?;
                c = out;
            }
            if i + 1 < channels.len() {
                let path = format!("decoder.up_blocks.{i}.upsamplers.0");
                let conv = Conv2d::new(&self.w.at(format!("{path}.conv")), c, c, 3)?;
                self.push(path, Body::Up(conv));
            }
        }
        self.out("decoder", c, self.config.out_channels)?;
        Ok(self.segments)
    }

    fn push(&mut self, name: String, body: Body) {
        self.segments.push(Segment { name, body });
    }

    fn conv(&mut self, path: &str, c_in: usize, c_out: usize, kernel: usize) -> Result<(), Error> {
        let conv = Conv2d::new(&self.w.at(path), c_in, c_out, kernel)?;
        self.push(path.to_owned(), Body::Conv(conv));
        Ok(())
    }

    fn resnet(&mut self, path: String, c_in: usize, c_out: usize) -> Result<(), Error> {
        let config = ResnetConfig {
            c_in,
            c_out,
            d_emb: None,
            groups: self.config.norm_num_groups,
            eps: 1e-6,
        };
        let resnet = Resnet::new(&self.w.at(&path), config)?;
        self.push(path, Body::Resnet(Box::new(resnet)));
        Ok(())
    }

    fn mid(&mut self, side: &str, c: usize) -> Result<(), Error> {
        self.resnet(format!("{side}.mid_block.resnets.0"), c, c)?;
        if self.config.mid_block_add_attention {
            let path = format!("{side}.mid_block.attentions.0");
            let w = self.w.at(&path);
            let norm = GroupNorm::new(&w.at("group_norm"), self.config.norm_num_groups, c, 1e-6)?;
            self.push(
                path,
                Body::Attention(Box::new((norm, Attention::new(&w, c, c, 1, Bias::With)?))),
            );
        }
        self.resnet(format!("{side}.mid_block.resnets.1"), c, c)
    }

    fn out(&mut self, side: &str, c: usize, c_out: usize) -> Result<(), Error> {
        let norm = GroupNorm::new(
            &self.w.at(format!("{side}.conv_norm_out")),
            self.config.norm_num_groups,
            c,
            1e-6,
        )?;
        let path = format!("{side}.conv_out");
        let conv = Conv2d::new(&self.w.at(&path), c, c_out, 3)?;
        self.push(path, Body::Out(Box::new((norm, conv))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int, Tensor};

    use super::{fold, unfold};

    #[test]
    fn folding_is_pixel_unshuffle_and_unfolding_undoes_it() {
        let x = Tensor::<1, Int>::arange(0..2 * 3 * 4 * 6, &Device::flex()).float();
        let x = x.reshape([2, 3, 4, 6]);
        let y = fold(x.clone(), 2);
        assert_eq!(y.dims(), [2, 12, 2, 3]);
        // Channel 1 * 4 + 1 * 2 + 0 holds channel 1, odd rows, even columns.
        let got = y
            .clone()
            .slice([1..2, 6..7, 1..2, 2..3])
            .into_scalar::<f32>();
        let want = x
            .clone()
            .slice([1..2, 1..2, 3..4, 4..5])
            .into_scalar::<f32>();
        assert_eq!(got.to_bits(), want.to_bits());
        assert_eq!(unfold(y, 2).into_data(), x.into_data());
    }
}
