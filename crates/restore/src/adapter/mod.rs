//! The Restoration Adapter (the paper, section 3.2): what stands between a prior's blocks and tells it what the
//! low-quality picture shows.
//!
//! One for each kind of prior; here is what they share: the low-quality features, which do not depend on the
//! timestep and are made once for a picture, how much of an adapter is added, and the walk.

mod about;
mod block;
mod config;
mod controlnet;
mod dit;
mod folder;
mod robust_encoder;
mod unet;

use std::path::Path;

use burn::tensor::Tensor;
use priors::{
    any::{AnyFlow, AnyPrior},
    flow::{Flow, FlowVisitor, Prior},
    nn::Tap,
    weights::Weights,
};
use serde_json::Value;

pub use about::{ABOUT_FILE, About, PriorId};
pub use config::{AdapterConfig, BlockKind, ControlNetConfig, DitAdapterConfig, UnetAdapterConfig};
pub use controlnet::{COPIED, ControlNet};
pub use dit::DitAdapter;
pub use folder::{AdapterFolder, LORA_FILE, open_adapter_lora};
pub use robust_encoder::{
    ENCODER_FOLDER, count_encoder, encoder_file, has_encoder, open_encoder, save_encoder,
};
pub use unet::UnetAdapter;

use crate::Error;

/// `lq'` for each adapter.
#[derive(Clone, Debug)]
pub enum LqFeatures {
    /// Features of a U-Net, `[b, c, h, w]` each.
    Maps(Vec<Tensor<4>>),
    /// Tokens of a transformer, `[b, n, d]` each.
    Tokens(Vec<Tensor<3>>),
}

impl LqFeatures {
    /// Of no adapter.
    pub fn none() -> Self {
        Self::Maps(vec![])
    }

    /// How many values they hold together.
    pub fn count(&self) -> usize {
        match self {
            Self::Maps(maps) => maps
                .iter()
                .map(|x| x.dims().iter().product::<usize>())
                .sum(),
            Self::Tokens(tokens) => tokens
                .iter()
                .map(|x| x.dims().iter().product::<usize>())
                .sum(),
        }
    }
}

impl Flow for LqFeatures {
    fn visit_state(&mut self, _visitor: &mut dyn FlowVisitor) {}

    fn visit_context(&mut self, visitor: &mut dyn FlowVisitor) {
        match self {
            Self::Maps(maps) => {
                for (i, x) in maps.iter_mut().enumerate() {
                    visitor.rank4(&format!("lq.{i}"), x);
                }
            }
            Self::Tokens(tokens) => {
                for (i, x) in tokens.iter_mut().enumerate() {
                    visitor.rank3(&format!("lq.{i}"), x);
                }
            }
        }
    }
}

/// How much of the adapter's term is added.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
pub enum Scale {
    /// The same for the whole batch; 0 leaves the bare prior, bit for bit.
    All(f64),
    /// One for each sample, `[b, 1, 1, 1]`.
    Each(Tensor<4>),
}

impl Scale {
    fn is_zero(&self) -> bool {
        matches!(self, Self::All(scale) if *scale == 0.0)
    }

    /// A term `[b, c, h, w]` at this scale.
    fn of(&self, term: Tensor<4>) -> Tensor<4> {
        match self {
            Self::All(scale) if *scale == 1.0 => term,
            Self::All(scale) => term * *scale,
            Self::Each(scale) => term * scale.clone(),
        }
    }

    /// A term `[b, n, d]` at this scale.
    fn of_tokens(&self, term: Tensor<3>) -> Tensor<3> {
        self.of(term.unsqueeze_dim::<4>(1)).squeeze_dim::<3>(1)
    }
}

/// Which of a prior's `adapters` changes the flow after segment `i` at this scale.
fn acting<T>(
    adapters: &[T],
    segment: impl Fn(&T) -> usize,
    i: usize,
    scale: &Scale,
) -> Option<usize> {
    if scale.is_zero() {
        return None;
    }
    adapters.iter().position(|adapter| segment(adapter) == i)
}

/// All adapters of a prior.
#[derive(Clone, Debug)]
pub enum RestorationAdapter {
    /// Of a U-Net.
    Unet(Box<UnetAdapter>),
    /// Of a transformer.
    Dit(DitAdapter),
    /// A ControlNet in a Restoration Adapter's place.
    ControlNet(Box<ControlNet>),
}

impl RestorationAdapter {
    /// Builds the adapter that `config.json` describes for `prior`.
    ///
    /// # Errors
    /// A configuration that is not an adapter's or does not fit the prior, missing or wrong tensors.
    pub fn from_json(
        value: &Value,
        origin: &Path,
        prior: &AnyPrior,
        w: &Weights,
    ) -> Result<Self, Error> {
        let config = serde_json::from_value(value.clone()).map_err(|why| {
            Error::Input(format!(
                "{}: is no adapter's config.json ({why}); give an adapter folder",
                origin.display()
            ))
        })?;
        Self::new(config, prior, w).map_err(|why| match why {
            Error::Input(what) => Error::Input(format!("{}: {what}", origin.display())),
            Error::Unsupported(what) => Error::Unsupported(format!("{}: {what}", origin.display())),
            other => other,
        })
    }

    /// Builds the adapter from `w`.
    ///
    /// # Errors
    /// A configuration that does not fit the prior, missing or wrong tensors.
    pub fn new(config: AdapterConfig, prior: &AnyPrior, w: &Weights) -> Result<Self, Error> {
        let misfit = |channels: usize, d_emb: usize| {
            let what = format!(
                "the adapter was made for a prior with {channels} latent channels and an embedding of {d_emb} and does not fit this one; use that prior"
            );
            ((channels, d_emb) != (prior.channels()[0], prior.d_emb()))
                .then_some(Error::Input(what))
        };
        match (config, prior) {
            (AdapterConfig::Unet(config), AnyPrior::Unet(unet)) => {
                if let Some(misfit) = misfit(config.lq_channels, config.d_emb) {
                    return Err(misfit);
                }
                Ok(Self::Unet(Box::new(UnetAdapter::new(
                    config,
                    unet.sites(),
                    w,
                )?)))
            }
            (AdapterConfig::Dit(config), AnyPrior::MmDit(mmdit)) => {
                Ok(Self::Dit(DitAdapter::new(config, mmdit.sites(), w)?))
            }
            (AdapterConfig::ControlNet(config), AnyPrior::Unet(unet)) => {
                match misfit(config.lq_channels, prior.d_emb()) {
                    Some(misfit) => Err(misfit),
                    None => Ok(Self::ControlNet(Box::new(ControlNet::new(
                        &config, unet, w,
                    )?))),
                }
            }
            (AdapterConfig::Unet(_) | AdapterConfig::ControlNet(_), AnyPrior::MmDit(_)) => Err(Error::Unsupported(
                "the adapter was made for a U-Net and the prior is a transformer; use the adapter's own prior".into(),
            )),
            (AdapterConfig::Dit(_), AnyPrior::Unet(_)) => Err(Error::Unsupported(
                "the adapter was made for a transformer and the prior is a U-Net; use the adapter's own prior".into(),
            )),
        }
    }

    /// The low-quality stream of `c_lq` `[b, c, h, w]`, one feature for each adapter.
    pub fn lq_features(&self, prior: &AnyPrior, c_lq: &Tensor<4>) -> LqFeatures {
        match (self, prior) {
            (Self::Unet(adapter), _) => LqFeatures::Maps(adapter.lq_features(c_lq)),
            (Self::ControlNet(net), _) => LqFeatures::Maps(net.lq_features(c_lq)),
            (Self::Dit(adapter), AnyPrior::MmDit(mmdit)) => {
                LqFeatures::Tokens(adapter.lq_features(mmdit, c_lq))
            }
            (Self::Dit(_), AnyPrior::Unet(_)) => panic!("a transformer's adapter on a U-Net"),
        }
    }

    /// The flow that goes on after segment `i`: changed where an adapter stands, else as it came.
    pub fn after(&self, i: usize, flow: AnyFlow, lq: &LqFeatures, scale: &Scale) -> AnyFlow {
        match (self, flow, lq) {
            (Self::Unet(adapter), AnyFlow::Unet(flow), LqFeatures::Maps(lq)) => {
                AnyFlow::Unet(adapter.after(i, flow, lq, scale))
            }
            (Self::ControlNet(net), AnyFlow::Unet(flow), LqFeatures::Maps(lq)) => {
                AnyFlow::Unet(net.after(i, flow, lq, scale))
            }
            (Self::Dit(adapter), AnyFlow::MmDit(flow), LqFeatures::Tokens(lq)) => {
                AnyFlow::MmDit(adapter.after(i, flow, lq, scale))
            }
            _ => panic!("an adapter, a flow and low-quality features of different priors"),
        }
    }

    /// Whether [`Self::after`] looks at skips that the segments before it only pass by.
    pub fn reads_skips(&self) -> bool {
        matches!(self, Self::ControlNet(_))
    }

    /// Walks `prior` with this adapter after its blocks.
    pub fn forward(
        &self,
        prior: &AnyPrior,
        mut flow: AnyFlow,
        lq: &LqFeatures,
        scale: &Scale,
        tap: &dyn Tap,
    ) -> Tensor<4> {
        for i in 0..prior.segments() {
            flow = prior.segment(i, flow, tap);
            flow = self.after(i, flow, lq, scale);
        }
        prior.leave(flow)
    }
}
