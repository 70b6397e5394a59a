//! A Restoration Adapter's configuration, `restoration_adapter/config.json`.

use priors::{any::Architecture, flow::Site};
use serde::{Deserialize, Serialize};

use crate::Error;

/// What an Adapter Block holds. The paper does not say; its parameter count fits a few designs.
///
/// With `c` the width of the site, each gives SDXL's six adapters and LoRA together the total in
/// parentheses (the paper: 157 M).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    /// `Conv1x1(SiLU(Conv3x3(SiLU(GN x))))`; every site sees the raw low-quality latent (156,933,120).
    D1,
    /// As D1, but the low-quality stream is chained by `Conv1x1(SiLU(GN lq))` after a 3x3 stem (156,139,520).
    D2,
    /// Half-width bottleneck `GN, SiLU, 3x3, SiLU, 3x3, SiLU, 1x1` for all three blocks, chained (157,904,640).
    D3,
    /// `Conv3x3(SiLU(GN x))`; the low-quality stream is convolved only where the width changes (155,812,800).
    D4,
}

/// A Restoration Adapter, by the kind of prior it was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "_class_name")]
pub enum AdapterConfig {
    /// For a U-Net.
    #[serde(rename = "UnetRestorationAdapter")]
    Unet(UnetAdapterConfig),
    /// For a transformer.
    #[serde(rename = "DitRestorationAdapter")]
    Dit(DitAdapterConfig),
    /// No Restoration Adapter but a ControlNet for a U-Net, to compare with.
    #[serde(rename = "UnetControlNet")]
    ControlNet(ControlNetConfig),
}

impl AdapterConfig {
    /// Which network it was made for.
    pub fn kind(&self) -> Architecture {
        match self {
            Self::Unet(_) | Self::ControlNet(_) => Architecture::Unet,
            Self::Dit(_) => Architecture::MmDit,
        }
    }
}

/// A U-Net's Restoration Adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetAdapterConfig {
    /// The block design.
    pub block: BlockKind,
    /// The blocks of the prior after which an adapter stands.
    pub after: Vec<usize>,
    /// Channels of the low-quality latent.
    pub lq_channels: usize,
    /// Width of the prior's time embedding.
    pub d_emb: usize,
    /// Groups of the group norms.
    pub groups: usize,
}

/// A U-Net's ControlNet; its size is the prior's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNetConfig {
    /// Channels of the low-quality latent.
    pub lq_channels: usize,
}

/// A transformer's Restoration Adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitAdapterConfig {
    /// The blocks of the prior after which an adapter stands; the paper's are every fourth of SD3's.
    pub after: Vec<usize>,
    /// Width of the prior's tokens and of its time embedding.
    pub width: usize,
}

impl UnetAdapterConfig {
    /// # Errors
    /// Widths of the prior that the groups do not divide.
    pub(super) fn check(&self, sites: &[Site]) -> Result<(), Error> {
        let divided = |site: &Site| {
            self.groups > 0
                && site.channels.is_multiple_of(self.groups)
                && site.channels.is_multiple_of(2)
        };
        if self.lq_channels == 0 || self.d_emb == 0 || !sites.iter().all(divided) {
            return Err(Error::Input(format!(
                "the adapter's {} groups do not divide the prior's widths, or a width is 0; correct its config.json",
                self.groups
            )));
        }
        Ok(())
    }
}

/// The prior's sites after these blocks, in order.
///
/// # Errors
/// A block the prior does not have, or out of order.
pub(super) fn sites_after<'a>(after: &[usize], sites: &'a [Site]) -> Result<Vec<&'a Site>, Error> {
    let ordered = after.windows(2).all(|pair| pair[0] < pair[1]);
    let found: Option<Vec<&Site>> = after
        .iter()
        .map(|&block| sites.iter().find(|site| site.block == block))
        .collect();
    match found {
        Some(found) if ordered => Ok(found),
        _ => Err(Error::Unsupported(format!(
            "an adapter after blocks {after:?} does not fit a prior of {} blocks; use the adapter's own prior",
            sites.len()
        ))),
    }
}
