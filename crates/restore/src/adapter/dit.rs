//! The Restoration Adapter for a transformer prior (the paper, section 3.2 and figure 3, right).
//!
//! After a block with image tokens `x` and the embedding `emb` of time and pooled text:
//!
//! ```text
//! lq' = Block(lq)                      Block(x) = Linear(SiLU(LayerNorm(x)))
//! h   = lq' + Linear(SiLU(emb)) + x
//! h   = h + Block(h)                   twice
//! x'  = x + ZeroLinear(h)
//! ```
//!
//! `lq` of the first adapter is the prior's own patch embedding of the low-quality latent, without positions (the
//! image tokens have them), and of the others `lq'` of the one before. The layer norm has no weights: five
//! linear maps a site and LoRA of rank 32 are the paper's 80 M for SD3 (80,262,144). Text tokens stay as they are.

use burn::tensor::Tensor;
use priors::{
    flow::Site,
    mmdit::{MmDit, MmDitFlow},
    nn::{Bias, Linear},
    weights::{Init, Weights},
};

use super::{DitAdapterConfig, Scale, acting, config::sites_after};
use crate::Error;

/// Epsilon of the layer norms, the prior's own.
const EPS: f64 = 1e-6;

/// `Linear(SiLU(LayerNorm(x)))`.
#[derive(Clone, Debug)]
struct Block {
    linear: Linear,
}

impl Block {
    fn new(w: &Weights, d: usize) -> Result<Self, Error> {
        let linear = Linear::new(&w.at("linear"), d, d, Bias::With)?;
        Ok(Self { linear })
    }

    /// Applies the block to `x` `[b, n, d]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let normal = kernels::layer_norm(x, None, None, EPS);
        self.linear.forward(kernels::silu(normal))
    }
}

/// One adapter.
#[derive(Clone, Debug)]
struct SiteAdapter {
    segment: usize,
    lq_block: Block,
    time_emb_proj: Linear,
    blocks: [Block; 2],
    zero_linear: Linear,
}

/// All adapters of a transformer.
#[derive(Clone, Debug)]
pub struct DitAdapter {
    config: DitAdapterConfig,
    adapters: Vec<SiteAdapter>,
}

impl DitAdapter {
    /// Builds the adapter from `w`.
    ///
    /// # Errors
    /// A configuration that does not fit the prior, missing or wrong tensors.
    pub fn new(config: DitAdapterConfig, sites: &[Site], w: &Weights) -> Result<Self, Error> {
        let d = config.width;
        let adapter = |(i, site): (usize, &Site)| {
            let w = w.at(format!("adapters.{i}"));
            let block = |j| Block::new(&w.at(format!("blocks.{j}")), d);
            let zero = w.at("zero_linear");
            Ok(SiteAdapter {
                segment: site.segment,
                lq_block: Block::new(&w.at("lq_block"), d)?,
                time_emb_proj: Linear::new(&w.at("time_emb_proj"), d, d, Bias::With)?,
                blocks: [block(0)?, block(1)?],
                zero_linear: Linear::with_init(&zero, d, d, Bias::With, Init::Zeros)?,
            })
        };
        let sites = sites_after(&config.after, sites)?;
        if let Some(site) = sites.iter().find(|site| site.channels != d) {
            return Err(Error::Input(format!(
                "the adapter's width is {d} and the prior's {}; use the adapter's own prior",
                site.channels
            )));
        }
        let adapters = sites.into_iter().enumerate().map(adapter);
        Ok(Self {
            adapters: adapters.collect::<Result<_, Error>>()?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &DitAdapterConfig {
        &self.config
    }

    /// The low-quality stream of `c_lq` `[b, c, h, w]`, `[b, n, d]` for each adapter.
    pub fn lq_features(&self, prior: &MmDit, c_lq: &Tensor<4>) -> Vec<Tensor<3>> {
        let mut tokens = prior.patch_tokens(c_lq.clone());
        let mut next = |adapter: &SiteAdapter| {
            tokens = adapter.lq_block.forward(tokens.clone());
            tokens.clone()
        };
        self.adapters.iter().map(&mut next).collect()
    }

    /// The flow that goes on after segment `i`: changed where an adapter stands, else as it came.
    pub fn after(&self, i: usize, flow: MmDitFlow, lq: &[Tensor<3>], scale: &Scale) -> MmDitFlow {
        let Some(at) = acting(&self.adapters, |adapter| adapter.segment, i, scale) else {
            return flow;
        };
        let term = self.adapters[at].term(&flow.image, &flow.emb, lq[at].clone());
        MmDitFlow {
            image: kernels::add(flow.image, scale.of_tokens(term)),
            ..flow
        }
    }
}

impl SiteAdapter {
    fn term(&self, x: &Tensor<3>, emb: &Tensor<2>, lq: Tensor<3>) -> Tensor<3> {
        let e = self.time_emb_proj.forward(kernels::silu(emb.clone()));
        let mut h_ = kernels::add(lq + e.unsqueeze_dim::<3>(1), x.clone());
        for block in &self.blocks {
            h_ = kernels::add(h_.clone(), block.forward(h_));
        }
        self.zero_linear.forward(h_)
    }
}
