//! The Restoration Adapter for a U-Net prior (the paper, section 3.2 and figure 3, left).
//!
//! After a block with feature `x` and time embedding `emb`:
//!
//! ```text
//! lq' = AdapterBlock(lq)
//! h   = lq' + Linear(SiLU(emb)) + x
//! h   = h + AdapterBlock(h)          twice
//! x'  = x + ZeroLinear(h)
//! ```
//!
//! `lq` of the first adapter is the low-quality latent and of the others `lq'` of the one before,
//! resized (design D1: the latent at every site). The stream of `lq'` does not depend on the timestep:
//! [`UnetAdapter::lq_features`] makes it once for a picture and it serves every step.

use burn::tensor::{Tensor, module::avg_pool2d, ops::AvgPoolOptions};
use priors::{
    flow::Site,
    nn::{Bias, Linear},
    unet::UnetFlow,
    weights::{Init, Weights},
};

use super::{
    BlockKind, Scale, UnetAdapterConfig, acting,
    block::{Block, Input},
    config::sites_after,
};
use crate::Error;

/// One adapter.
#[derive(Clone, Debug)]
struct SiteAdapter {
    segment: usize,
    downscale: usize,
    time_emb_proj: Linear,
    blocks: [Block; 2],
    zero_linear: Linear,
}

/// How a site's `lq'` is made.
#[derive(Clone, Debug)]
enum LqBlock {
    Block(Box<Block>),
    Identity,
}

/// All adapters of a prior.
#[derive(Clone, Debug)]
pub struct UnetAdapter {
    config: UnetAdapterConfig,
    stem: Option<Block>,
    lq_blocks: Vec<LqBlock>,
    adapters: Vec<SiteAdapter>,
}

impl UnetAdapter {
    /// Builds the adapter from `w`.
    ///
    /// # Errors
    /// A configuration that does not fit the prior, missing or wrong tensors.
    pub fn new(config: UnetAdapterConfig, sites: &[Site], w: &Weights) -> Result<Self, Error> {
        config.check(sites)?;
        let sites = sites_after(&config.after, sites)?;
        let chained = config.block != BlockKind::D1;
        let c0 = sites.first().map_or(0, |site| site.channels);
        let stem = || {
            Block::of(
                &w.at("stem"),
                config.lq_channels,
                &[(config.lq_channels, c0, 3)],
                config.groups,
                Input::Latent,
            )
        };
        let stem = (config.block == BlockKind::D2 && c0 > 0)
            .then(stem)
            .transpose()?;
        let mut previous = if stem.is_some() {
            (c0, Input::Feature)
        } else {
            (config.lq_channels, Input::Latent)
        };
        let mut lq_blocks = Vec::new();
        let mut adapters = Vec::new();
        for (i, site) in sites.iter().enumerate() {
            let (c, groups, w) = (site.channels, config.groups, w.at(format!("adapters.{i}")));
            let (c_in, input) = previous;
            let lq = w.at("lq_block");
            lq_blocks.push(match config.block {
                BlockKind::D2 => LqBlock::Block(Box::new(Block::of(
                    &lq,
                    c_in,
                    &[(c_in, c, 1)],
                    groups,
                    input,
                )?)),
                BlockKind::D4 if c_in == c => LqBlock::Identity,
                kind => LqBlock::Block(Box::new(Block::new(&lq, kind, c_in, c, groups, input)?)),
            });
            if chained {
                previous = (c, Input::Feature);
            }
            let block = |j| {
                Block::new(
                    &w.at(format!("blocks.{j}")),
                    config.block,
                    c,
                    c,
                    groups,
                    Input::Feature,
                )
            };
            adapters.push(SiteAdapter {
                segment: site.segment,
                downscale: site.downscale,
                time_emb_proj: Linear::new(&w.at("time_emb_proj"), config.d_emb, c, Bias::With)?,
                blocks: [block(0)?, block(1)?],
                zero_linear: Linear::with_init(
                    &w.at("zero_linear"),
                    c,
                    c,
                    Bias::With,
                    Init::Zeros,
                )?,
            });
        }
        Ok(Self {
            config,
            stem,
            lq_blocks,
            adapters,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &UnetAdapterConfig {
        &self.config
    }

    /// The low-quality stream of `c_lq` `[b, c, h, w]`, one feature for each adapter.
    pub fn lq_features(&self, c_lq: &Tensor<4>) -> Vec<Tensor<4>> {
        let [_, _, h, w] = c_lq.dims();
        let start = match &self.stem {
            Some(stem) => stem.forward(c_lq.clone()),
            None => c_lq.clone(),
        };
        let mut previous = start;
        let mut features = Vec::new();
        for (adapter, block) in self.adapters.iter().zip(&self.lq_blocks) {
            let source = if self.config.block == BlockKind::D1 {
                c_lq.clone()
            } else {
                previous.clone()
            };
            let source = resize(source, h / adapter.downscale, w / adapter.downscale);
            previous = match block {
                LqBlock::Block(block) => block.forward(source),
                LqBlock::Identity => source,
            };
            features.push(previous.clone());
        }
        features
    }

    /// The flow that goes on after segment `i`: changed where an adapter stands, else as it came.
    pub fn after(&self, i: usize, flow: UnetFlow, lq: &[Tensor<4>], scale: &Scale) -> UnetFlow {
        let Some(at) = acting(&self.adapters, |adapter| adapter.segment, i, scale) else {
            return flow;
        };
        let term = self.adapters[at].term(&flow.sample, &flow.emb, lq[at].clone());
        UnetFlow {
            sample: kernels::add(flow.sample, scale.of(term)),
            ..flow
        }
    }
}

impl SiteAdapter {
    fn term(&self, x: &Tensor<4>, emb: &Tensor<2>, lq: Tensor<4>) -> Tensor<4> {
        let e = self.time_emb_proj.forward(kernels::silu(emb.clone()));
        let mut h_ = kernels::add(kernels::shift_channels(lq, e), x.clone());
        for block in &self.blocks {
            h_ = kernels::add(h_.clone(), block.forward(h_));
        }
        self.zero_linear.forward_channels(h_)
    }
}

/// Averages down or repeats up to `h` x `w`, by whole factors.
fn resize(x: Tensor<4>, h: usize, w: usize) -> Tensor<4> {
    let [_, _, h0, w0] = x.dims();
    if h0 == h && w0 == w {
        return x;
    }
    if h0 > h {
        assert!(
            h0.is_multiple_of(h) && w0.is_multiple_of(w),
            "{h0}x{w0} does not shrink to {h}x{w}"
        );
        let factor = [h0 / h, w0 / w];
        return avg_pool2d(x, AvgPoolOptions::new(factor).with_stride(factor));
    }
    assert!(
        h.is_multiple_of(h0) && w.is_multiple_of(w0),
        "{h0}x{w0} does not grow to {h}x{w}"
    );
    kernels::upsample_nearest(x, [h / h0, w / w0])
}
