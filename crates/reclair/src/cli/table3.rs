//! The paper's Table 3: how many parameters a prior, its adapter, its LoRA and a ControlNet have. Counted from
//! configurations alone, by the shapes that the networks ask for.

use std::collections::BTreeMap;

use burn::tensor::Device;
use priors::{
    any::{AnyPrior, Architecture},
    flow::Prior,
    folder::Folder,
    kind::Kind,
    known::{self, Trim},
    weights::Weights,
};
use restore::{
    adapter::{AdapterConfig, BlockKind, DitAdapterConfig, RestorationAdapter, UnetAdapterConfig},
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde::Serialize;

/// A prior whose configuration is in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Model(Kind);

impl Model {
    /// The model of this name on the command line.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(Self(match name {
            "sdxl" => Kind::SdxlBase,
            "sd3" => Kind::Sd3Medium,
            "sd3.5-medium" => Kind::Sd35Medium,
            "sd3.5-large" => Kind::Sd35Large,
            _ => return None,
        }))
    }

    /// Its configurations, as a folder without weights.
    pub(super) fn folder(self) -> Folder {
        known::configs(self.0).expect("every model of `named` is known")
    }
}

/// The row of a prior.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// The frozen network; a transformer's stored table of positions is no parameter.
    pub(super) base: usize,
    /// The Restoration Adapter.
    pub(super) adapter: usize,
    /// LoRA on the self-attention.
    pub(super) lora: usize,
    /// Adapter and LoRA: what is trained.
    pub(super) total: usize,
    /// ControlNets for the same prior, where the paper compares with one.
    pub(super) controlnet: Option<ControlNets>,
}

/// Two ways to count a ControlNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ControlNets {
    /// A trimmed copy that has the paper's count.
    pub(super) paper: usize,
    /// diffusers' own class.
    pub(super) diffusers: usize,
}

/// A network as far as it can be known without weights.
pub(super) struct Counted {
    /// The network over tensors that hold nothing.
    pub(super) network: AnyPrior,
    /// Names and shapes of its tensors.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
}

impl Counted {
    /// Reads `unet/config.json` or `transformer/config.json`.
    pub(super) fn open(folder: &Folder) -> anyhow::Result<Self> {
        let w = Weights::blank(&Device::flex());
        let network = AnyPrior::from_folder(folder, &w)?;
        Ok(Self {
            network,
            shapes: w.shapes(),
        })
    }

    /// Parameters; a transformer's table of positions is fixed and counts as none.
    pub(super) fn count(&self) -> usize {
        let parameters = self
            .shapes
            .iter()
            .filter(|(name, _)| *name != "pos_embed.pos_embed");
        parameters
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// The adapter of a folder.
    pub(super) fn adapter_of(&self, adapter: &Folder) -> anyhow::Result<usize> {
        let file = "restoration_adapter/config.json";
        let w = Weights::blank(&Device::flex());
        let (json, path) = (adapter.json(file)?, adapter.path(file));
        RestorationAdapter::from_json(&json, &path, &self.network, &w)?;
        Ok(w.count())
    }

    /// The paper's adapter: after every block of a U-Net but the last, block design D3, or after every fourth block of a
    /// transformer.
    fn papers_adapter(&self) -> anyhow::Result<usize> {
        let w = Weights::blank(&Device::flex());
        let sites = self.network.sites().len();
        let config = match self.network.kind() {
            Architecture::Unet => AdapterConfig::Unet(UnetAdapterConfig {
                block: BlockKind::D3,
                after: (0..sites.saturating_sub(1)).collect(),
                lq_channels: self.network.channels()[0],
                d_emb: self.network.d_emb(),
                groups: 32,
            }),
            Architecture::MmDit => AdapterConfig::Dit(DitAdapterConfig {
                after: (3..sites).step_by(4).collect(),
                width: self.network.d_emb(),
            }),
        };
        RestorationAdapter::new(config, &self.network, &w)?;
        Ok(w.count())
    }

    /// LoRA of this rank on the self-attention.
    pub(super) fn lora(&self, rank: usize) -> anyhow::Result<usize> {
        let w = Weights::blank(&Device::flex());
        let config = LoraConfig {
            rank,
            alpha: rank as f64,
        };
        Lora::new(&config, &self_attention_targets(&self.shapes), &w)?;
        Ok(w.count())
    }

    /// The row of `model`.
    pub(super) fn row(&self, model: Model, rank: usize) -> anyhow::Result<Row> {
        let (adapter, lora) = (self.papers_adapter()?, self.lora(rank)?);
        let copy = Trim::Copy {
            layers: vec![2, 2, 1],
            depths: vec![0, 1, 10],
        };
        let controlnet = match (model.0, &self.network) {
            (Kind::SdxlBase, _) => Some(ControlNets {
                paper: known::controlnet_of_unet(&self.shapes, &copy),
                diffusers: known::controlnet_of_unet(&self.shapes, &Trim::Stock),
            }),
            (Kind::Sd3Medium, AnyPrior::MmDit(mmdit)) => Some(ControlNets {
                paper: known::controlnet_of_transformer(mmdit.config(), 6, &copy)?,
                diffusers: known::controlnet_of_transformer(mmdit.config(), 6, &Trim::Stock)?,
            }),
            _ => None,
        };
        Ok(Row {
            base: self.count(),
            adapter,
            lora,
            total: adapter + lora,
            controlnet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        let model = Model::named(name).expect("known");
        let counted = Counted::open(&model.folder()).expect("its configurations are supported");
        counted.row(model, 32).expect("counts")
    }

    #[test]
    fn sdxl_is_the_papers_row() {
        let row = row("sdxl");
        assert_eq!(row.base, 2_567_463_684);
        assert_eq!((row.lora, row.total), (21_299_200, 157_904_640));
        let controlnet = row.controlnet.expect("compared");
        assert_eq!(controlnet.paper, 839_002_880);
        assert_eq!(controlnet.diffusers, 1_251_014_160);
    }

    #[test]
    fn sd3_is_the_papers_row() {
        let row = row("sd3");
        assert_eq!(row.base, 2_028_328_000);
        assert_eq!((row.adapter, row.lora), (70_824_960, 9_437_184));
        assert_eq!(row.total, 80_262_144);
        let controlnet = row.controlnet.expect("compared");
        assert_eq!(controlnet.paper, 503_987_712);
        assert_eq!(controlnet.diffusers, 538_805_760);
    }

    #[test]
    fn the_other_transformers_have_their_published_sizes() {
        assert_eq!(row("sd3.5-medium").base, 2_243_171_520);
        assert_eq!(row("sd3.5-large").base, 8_056_627_520);
    }
}
