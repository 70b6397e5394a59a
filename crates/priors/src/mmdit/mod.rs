//! SD3's transformer (`SD3Transformer2DModel`) as a sequence of segments: one block each.
//!
//! Squares of the latent become tokens with positions from a stored table, cropped in its middle. Image and text
//! tokens are two streams with weights of their own that attend to each other; time and pooled text modulate
//! every norm. The same code is SD3-medium, SD3.5-medium (norms of queries and keys, a second attention in some
//! blocks) and SD3.5-large.
//!
//! Source: Esser et al., Stable Diffusion 3 (2403.03206); tensor names and arithmetic of diffusers.

mod attention;
mod block;
mod config;
mod patches;

use std::{ops::Range, path::Path};

use burn::tensor::Tensor;
use serde_json::Value;

pub use config::MmDitConfig;

use crate::{
    Error,
    flow::{Conditioning, Flow, FlowVisitor, Prior, Site},
    nn::{Bias, Linear, Tap, TimestepEmbedding, sinusoid},
    weights::Weights,
};
use block::{Block, Modulation};
use patches::Patches;

/// Width of the timestep's sinusoid.
const TIME_WIDTH: usize = 256;

/// What travels through the transformer.
#[derive(Clone, Debug)]
pub struct MmDitFlow {
    /// Image tokens, `[b, n, d]`, row by row.
    pub image: Tensor<3>,
    /// Text tokens, `[b, m, d]`.
    pub text: Tensor<3>,
    /// Embedding of time and pooled text, `[b, d]`.
    pub emb: Tensor<2>,
    /// Rows and columns of image tokens.
    pub grid: [usize; 2],
}

impl Flow for MmDitFlow {
    fn visit_state(&mut self, visitor: &mut dyn FlowVisitor) {
        visitor.rank3("image", &mut self.image);
        visitor.rank3("text", &mut self.text);
    }

    fn visit_context(&mut self, visitor: &mut dyn FlowVisitor) {
        visitor.rank2("emb", &mut self.emb);
    }
}

/// The transformer.
#[derive(Clone, Debug)]
pub struct MmDit {
    config: MmDitConfig,
    patches: Patches,
    timestep_embedder: TimestepEmbedding,
    text_embedder: TimestepEmbedding,
    context_embedder: Linear,
    blocks: Vec<Block>,
    sites: Vec<Site>,
    norm_out: Modulation<2>,
    proj_out: Linear,
}

impl MmDit {
    /// Builds the network that `config.json` describes from `w`.
    ///
    /// # Errors
    /// An unsupported configuration, a missing tensor or one of another shape.
    pub fn from_json(value: &Value, origin: &Path, w: &Weights) -> Result<Self, Error> {
        Self::new(MmDitConfig::from_json(value, origin)?, w)
    }

    /// Builds the network from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: MmDitConfig, w: &Weights) -> Result<Self, Error> {
        let d = config.width();
        let embedder =
            |name: &str, d_in| TimestepEmbedding::new(&w.at("time_text_embed").at(name), d_in, d);
        let name = |i| format!("transformer_blocks.{i}");
        let site = |i| Site {
            block: i,
            segment: i,
            name: name(i),
            channels: d,
            downscale: config.patch_size,
        };
        let out = config.patch_size.pow(2) * config.out_channels();
        Ok(Self {
            patches: Patches::new(&w.at("pos_embed"), &config)?,
            timestep_embedder: embedder("timestep_embedder", TIME_WIDTH)?,
            text_embedder: embedder("text_embedder", config.pooled_projection_dim)?,
            context_embedder: Linear::new(
                &w.at("context_embedder"),
                config.joint_attention_dim,
                d,
                Bias::With,
            )?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(&w.at(name(i)), &config, i))
                .collect::<Result<_, _>>()?,
            sites: (0..config.num_layers).map(site).collect(),
            norm_out: Modulation::new(&w.at("norm_out"), d)?,
            proj_out: Linear::new(&w.at("proj_out"), d, out, Bias::With)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &MmDitConfig {
        &self.config
    }

    /// The patch embedding of a latent `[b, c, h, w]` without positions, `[b, n, d]`.
    pub fn patch_tokens(&self, latent: Tensor<4>) -> Tensor<3> {
        self.patches.tokens(latent).0
    }

    /// The embedding of time `[b]` and pooled text `[b, d]`.
    fn embed(&self, t: Tensor<1>, pooled: &Tensor<2>) -> Tensor<2> {
        let time = self.timestep_embedder.forward(sinusoid(t, TIME_WIDTH));
        time + self.text_embedder.forward(pooled.clone())
    }
}

impl Prior for MmDit {
    type Flow = MmDitFlow;

    fn enter(&self, x: Tensor<4>, t: Tensor<1>, conditioning: &Conditioning) -> MmDitFlow {
        let pooled = conditioning.pooled.as_ref();
        let (tokens, grid) = self.patches.tokens(x);
        MmDitFlow {
            image: tokens + self.patches.positions(grid),
            text: self.context_embedder.forward(conditioning.text.clone()),
            emb: self.embed(t, pooled.expect("this transformer wants pooled text")),
            grid,
        }
    }

    fn segments(&self) -> usize {
        self.blocks.len()
    }

    fn segment_name(&self, i: usize) -> &str {
        &self.sites[i].name
    }

    fn segment(&self, i: usize, flow: MmDitFlow, tap: &dyn Tap) -> MmDitFlow {
        let (image, text) = self.blocks[i].forward(flow.image, flow.text, &flow.emb, tap);
        MmDitFlow {
            image,
            text,
            ..flow
        }
    }

    fn leave(&self, flow: MmDitFlow) -> Tensor<4> {
        let [scale, shift] = self.norm_out.of(&flow.emb);
        let tokens = self.proj_out.forward(block::norm(flow.image, scale, shift));
        patches::unpatchify(tokens, flow.grid, self.config.patch_size)
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn downscale(&self) -> usize {
        self.config.patch_size
    }

    fn largest(&self) -> Option<usize> {
        Some(self.config.pos_embed_max_size * self.config.patch_size)
    }

    fn set_aside(&self, _segments: Range<usize>, flow: MmDitFlow) -> (MmDitFlow, MmDitFlow) {
        (flow.clone(), flow)
    }

    fn put_back(&self, _aside: MmDitFlow, flow: MmDitFlow) -> MmDitFlow {
        flow
    }
}
