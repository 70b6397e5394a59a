//! The Restoration Adapter's configuration, `restoration_adapter/config.json`.

use priors::flow::Site;
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

/// A U-Net Restoration Adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Always `UnetRestorationAdapter`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
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

/// The class name that [`AdapterConfig`] carries.
pub const CLASS_NAME: &str = "UnetRestorationAdapter";

impl AdapterConfig {
    /// The prior's sites that this adapter takes, in order.
    ///
    /// # Errors
    /// A block the prior does not have, or out of order; widths that the groups do not divide.
    pub fn sites<'a>(&self, sites: &'a [Site]) -> Result<Vec<&'a Site>, Error> {
        let divided = |site: &&Site| {
            self.groups > 0
                && site.channels.is_multiple_of(self.groups)
                && site.channels.is_multiple_of(2)
        };
        if self.lq_channels == 0 || self.d_emb == 0 || !sites.iter().all(|site| divided(&site)) {
            return Err(Error::Input(format!(
                "the adapter's {} groups do not divide the prior's widths, or a width is 0; correct its config.json",
                self.groups
            )));
        }
        let ordered = self.after.windows(2).all(|pair| pair[0] < pair[1]);
        let found: Option<Vec<&Site>> = self
            .after
            .iter()
            .map(|&block| sites.iter().find(|site| site.block == block))
            .collect();
        match found {
            Some(found) if ordered && self.class_name == CLASS_NAME => Ok(found),
            _ => Err(Error::Unsupported(format!(
                "an adapter {} after blocks {:?} does not fit a prior of {} blocks; use the adapter's own prior",
                self.class_name,
                self.after,
                sites.len()
            ))),
        }
    }
}
