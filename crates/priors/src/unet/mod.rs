//! The SDXL-shaped U-Net (`UNet2DConditionModel`) as a sequence of segments.
//!
//! A segment is one ResNet, one transformer layer, one down- or one upsampler. The first transformer
//! layer after a ResNet also holds the norm and projection into tokens, the last one the projection
//! out and the residual. Skips are collected and consumed inside segments, so they carry the bare
//! prior's features: an adapter that stands after a block changes what enters the next one, not the
//! skips (the paper's words; `design/house.md`).
//!
//! Source: Podell et al., SDXL (2307.01952); tensor names and arithmetic of diffusers.

mod build;
mod config;
mod encoder;

use std::{ops::Range, path::Path};

use burn::tensor::Tensor;
use serde_json::Value;

pub use config::UnetConfig;
pub use encoder::UnetEncoder;

use self::build::Builder;
use crate::{
    Error,
    flow::{Conditioning, Flow, FlowVisitor, Prior, Site},
    nn::{Conv2d, GroupNorm, Linear, Resnet, Tap, TimestepEmbedding, TransformerLayer, sinusoid},
    weights::Weights,
};

/// What travels through the U-Net.
#[derive(Clone, Debug)]
pub struct UnetFlow {
    /// The feature, `[b, c, h, w]`; inside a transformer, its residual.
    pub sample: Tensor<4>,
    /// Tokens `[b, h w, c]` inside a transformer.
    pub tokens: Option<Tensor<3>>,
    /// Features for the way up, the most recent last.
    pub skips: Vec<Tensor<4>>,
    /// Time embedding with SDXL's added part, `[b, d_emb]`.
    pub emb: Tensor<2>,
    /// Text tokens, `[b, n, d]`.
    pub text: Tensor<3>,
}

impl Flow for UnetFlow {
    fn visit_state(&mut self, visitor: &mut dyn FlowVisitor) {
        visitor.rank4("sample", &mut self.sample);
        if let Some(tokens) = &mut self.tokens {
            visitor.rank3("tokens", tokens);
        }
        for (i, skip) in self.skips.iter_mut().enumerate() {
            visitor.rank4(&format!("skips.{i}"), skip);
        }
    }

    fn visit_context(&mut self, visitor: &mut dyn FlowVisitor) {
        visitor.rank2("emb", &mut self.emb);
        visitor.rank3("text", &mut self.text);
    }
}

/// Whether a segment's output is kept for the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    Keep,
    Pass,
}

#[derive(Clone, Debug)]
enum Body {
    Resnet(Resnet),
    /// A ResNet on the way up: the latest skip is concatenated first.
    UpResnet(Resnet),
    Transformer {
        enter: Option<(GroupNorm, Linear)>,
        layer: Box<TransformerLayer>,
        leave: Option<Linear>,
    },
    Down(Conv2d),
    Up(Conv2d),
}

#[derive(Clone, Debug)]
struct Segment {
    name: String,
    body: Body,
    skip: Skip,
}

impl Segment {
    fn forward(&self, flow: UnetFlow, tap: &dyn Tap) -> UnetFlow {
        let UnetFlow {
            mut sample,
            mut tokens,
            mut skips,
            emb,
            text,
        } = flow;
        match &self.body {
            Body::Resnet(resnet) => sample = resnet.forward(sample, Some(&emb)),
            Body::UpResnet(resnet) => {
                let skip = skips.pop().expect("as many skips as ResNets on the way up");
                sample = resnet.forward(kernels::cat(sample, skip), Some(&emb));
            }
            Body::Transformer {
                enter,
                layer,
                leave,
            } => {
                let [b, c, h, w] = sample.dims();
                if let Some((norm, proj_in)) = enter {
                    let flat = norm
                        .forward(sample.clone())
                        .reshape([b, c, h * w])
                        .swap_dims(1, 2); // [b, n, c]
                    tokens = Some(proj_in.forward(flat));
                }
                let x = layer.forward(tokens.take().expect("inside a transformer"), &text, tap);
                match leave {
                    Some(proj_out) => {
                        let y = proj_out.forward(x).swap_dims(1, 2).reshape([b, c, h, w]);
                        sample = sample + y;
                    }
                    None => tokens = Some(x),
                }
            }
            Body::Down(conv) => sample = conv.forward(sample),
            Body::Up(conv) => sample = conv.forward(kernels::upsample_nearest2x(sample)),
        }
        if self.skip == Skip::Keep {
            skips.push(sample.clone());
        }
        UnetFlow {
            sample,
            tokens,
            skips,
            emb,
            text,
        }
    }
}

/// The U-Net.
#[derive(Clone, Debug)]
pub struct Unet {
    config: UnetConfig,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    conv_in: Conv2d,
    segments: Vec<Segment>,
    sites: Vec<Site>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Builds the network that `config.json` describes from `w`.
    ///
    /// # Errors
    /// An unsupported configuration, a missing tensor or one of another shape.
    pub fn from_json(value: &Value, origin: &Path, w: &Weights) -> Result<Self, Error> {
        Self::new(UnetConfig::from_json(value, origin)?, w)
    }

    /// Builds the network from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: UnetConfig, w: &Weights) -> Result<Self, Error> {
        let c0 = config.block_out_channels[0];
        let d_emb = config.d_emb();
        let add = |d| TimestepEmbedding::new(&w.at("add_embedding"), d, d_emb);
        let (segments, sites) = Builder::new(&config, w).build()?;
        Ok(Self {
            time_embedding: TimestepEmbedding::new(&w.at("time_embedding"), c0, d_emb)?,
            add_embedding: config
                .projection_class_embeddings_input_dim
                .map(add)
                .transpose()?,
            conv_in: Conv2d::new(&w.at("conv_in"), config.in_channels, c0, 3)?,
            segments,
            sites,
            conv_norm_out: GroupNorm::new(
                &w.at("conv_norm_out"),
                config.norm_num_groups,
                c0,
                config.norm_eps,
            )?,
            conv_out: Conv2d::new(&w.at("conv_out"), c0, config.out_channels, 3)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The time embedding, with SDXL's added part, `[b, d_emb]`.
    fn embed(&self, t: Tensor<1>, conditioning: &Conditioning) -> Tensor<2> {
        let emb = self
            .time_embedding
            .forward(sinusoid(t, self.config.block_out_channels[0]));
        let Some(embedding) = &self.add_embedding else {
            return emb;
        };
        let (Some(pooled), Some(time_ids)) = (&conditioning.pooled, &conditioning.time_ids) else {
            panic!("this U-Net wants pooled text and sizes");
        };
        let [b, six] = time_ids.dims();
        let d = self
            .config
            .addition_time_embed_dim
            .expect("checked with projection_class_embeddings_input_dim");
        let sizes = sinusoid(time_ids.clone().reshape([b * six]), d).reshape([b, six * d]);
        emb + embedding.forward(Tensor::cat(vec![pooled.clone(), sizes], 1))
    }
}

impl Prior for Unet {
    type Flow = UnetFlow;

    fn enter(&self, x: Tensor<4>, t: Tensor<1>, conditioning: &Conditioning) -> UnetFlow {
        let emb = self.embed(t, conditioning);
        let sample = self.conv_in.forward(x);
        let skips = vec![sample.clone()];
        UnetFlow {
            sample,
            tokens: None,
            skips,
            emb,
            text: conditioning.text.clone(),
        }
    }

    fn segments(&self) -> usize {
        self.segments.len()
    }

    fn segment_name(&self, i: usize) -> &str {
        &self.segments[i].name
    }

    fn segment(&self, i: usize, flow: UnetFlow, tap: &dyn Tap) -> UnetFlow {
        self.segments[i].forward(flow, tap)
    }

    fn leave(&self, flow: UnetFlow) -> Tensor<4> {
        self.conv_out.forward(self.conv_norm_out.silu(flow.sample))
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn downscale(&self) -> usize {
        1 << (self.config.block_out_channels.len() - 1)
    }

    fn set_aside(&self, segments: Range<usize>, mut flow: UnetFlow) -> (UnetFlow, UnetFlow) {
        let (mut height, mut lowest) = (0_isize, 0_isize);
        for segment in &self.segments[segments] {
            height -= isize::from(matches!(segment.body, Body::UpResnet(_)));
            lowest = lowest.min(height);
            height += isize::from(segment.skip == Skip::Keep);
        }
        let top = flow
            .skips
            .split_off(flow.skips.len() - lowest.unsigned_abs());
        (
            UnetFlow {
                skips: top,
                ..flow.clone()
            },
            flow,
        )
    }

    fn put_back(&self, aside: UnetFlow, mut flow: UnetFlow) -> UnetFlow {
        let mut skips = aside.skips;
        skips.append(&mut flow.skips);
        UnetFlow { skips, ..flow }
    }
}
