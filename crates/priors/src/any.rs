//! The enum of priors that stands at the front door: whoever walks it need not know which network it is.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::{
    Error,
    flow::{Conditioning, Flow, FlowVisitor, Prior, Site},
    folder::Folder,
    mmdit::{MmDit, MmDitFlow},
    nn::Tap,
    unet::{Unet, UnetFlow},
    weights::Weights,
};

/// Which network a prior is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `UNet2DConditionModel`.
    Unet,
    /// `SD3Transformer2DModel`.
    MmDit,
}

impl Architecture {
    /// The network's folder in diffusers' layout, which is also the prefix of its LoRA's names.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::MmDit => "transformer",
        }
    }

    /// The network that a model's folder holds.
    pub fn of(folder: &Folder) -> Self {
        if folder.network() == Self::MmDit.folder() {
            Self::MmDit
        } else {
            Self::Unet
        }
    }
}

/// A prior of any kind.
#[derive(Clone, Debug)]
pub enum AnyPrior {
    /// The SDXL-shaped U-Net.
    Unet(Box<Unet>),
    /// SD3's transformer.
    MmDit(Box<MmDit>),
}

/// What travels through a prior of any kind.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
pub enum AnyFlow {
    /// Through the U-Net.
    Unet(UnetFlow),
    /// Through the transformer.
    MmDit(MmDitFlow),
}

impl AnyFlow {
    /// Features that wait for the way up.
    pub fn skips(&self) -> usize {
        match self {
            Self::Unet(flow) => flow.skips.len(),
            Self::MmDit(_) => 0,
        }
    }

    fn unet(self) -> UnetFlow {
        match self {
            Self::Unet(flow) => flow,
            Self::MmDit(_) => panic!("a transformer's flow in a U-Net"),
        }
    }

    fn mmdit(self) -> MmDitFlow {
        match self {
            Self::MmDit(flow) => flow,
            Self::Unet(_) => panic!("a U-Net's flow in a transformer"),
        }
    }
}

impl Flow for AnyFlow {
    fn visit_state(&mut self, visitor: &mut dyn FlowVisitor) {
        match self {
            Self::Unet(flow) => flow.visit_state(visitor),
            Self::MmDit(flow) => flow.visit_state(visitor),
        }
    }

    fn visit_context(&mut self, visitor: &mut dyn FlowVisitor) {
        match self {
            Self::Unet(flow) => flow.visit_context(visitor),
            Self::MmDit(flow) => flow.visit_context(visitor),
        }
    }
}

impl AnyPrior {
    /// Builds the network that the folder's configuration describes from `w`.
    ///
    /// # Errors
    /// A missing or unsupported configuration, a missing tensor or one of another shape.
    pub fn from_folder(folder: &Folder, w: &Weights) -> Result<Self, Error> {
        let kind = Architecture::of(folder);
        let file = format!("{}/config.json", kind.folder());
        let (json, path) = (folder.json(&file)?, folder.path(&file));
        Ok(match kind {
            Architecture::Unet => Self::Unet(Box::new(Unet::from_json(&json, &path, w)?)),
            Architecture::MmDit => Self::MmDit(Box::new(MmDit::from_json(&json, &path, w)?)),
        })
    }

    /// The same network over other tensors.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn rebuilt(&self, w: &Weights) -> Result<Self, Error> {
        Ok(match self {
            Self::Unet(unet) => Self::Unet(Box::new(Unet::new(unet.config().clone(), w)?)),
            Self::MmDit(mmdit) => Self::MmDit(Box::new(MmDit::new(mmdit.config().clone(), w)?)),
        })
    }

    /// Which network it is.
    pub fn kind(&self) -> Architecture {
        match self {
            Self::Unet(_) => Architecture::Unet,
            Self::MmDit(_) => Architecture::MmDit,
        }
    }

    /// Channels of the latent that enters and of the prediction.
    pub fn channels(&self) -> [usize; 2] {
        match self {
            Self::Unet(unet) => [unet.config().in_channels, unet.config().out_channels],
            Self::MmDit(mmdit) => [mmdit.config().in_channels, mmdit.config().out_channels()],
        }
    }

    /// Width of the time embedding.
    pub fn d_emb(&self) -> usize {
        match self {
            Self::Unet(unet) => unet.config().d_emb(),
            Self::MmDit(mmdit) => mmdit.config().width(),
        }
    }
}

impl Prior for AnyPrior {
    type Flow = AnyFlow;

    fn enter(&self, x: Tensor<4>, t: Tensor<1>, conditioning: &Conditioning) -> AnyFlow {
        match self {
            Self::Unet(unet) => AnyFlow::Unet(unet.enter(x, t, conditioning)),
            Self::MmDit(mmdit) => AnyFlow::MmDit(mmdit.enter(x, t, conditioning)),
        }
    }

    fn segments(&self) -> usize {
        match self {
            Self::Unet(unet) => unet.segments(),
            Self::MmDit(mmdit) => mmdit.segments(),
        }
    }

    fn segment_name(&self, i: usize) -> &str {
        match self {
            Self::Unet(unet) => unet.segment_name(i),
            Self::MmDit(mmdit) => mmdit.segment_name(i),
        }
    }

    fn segment(&self, i: usize, flow: AnyFlow, tap: &dyn Tap) -> AnyFlow {
        match self {
            Self::Unet(unet) => AnyFlow::Unet(unet.segment(i, flow.unet(), tap)),
            Self::MmDit(mmdit) => AnyFlow::MmDit(mmdit.segment(i, flow.mmdit(), tap)),
        }
    }

    fn leave(&self, flow: AnyFlow) -> Tensor<4> {
        match self {
            Self::Unet(unet) => unet.leave(flow.unet()),
            Self::MmDit(mmdit) => mmdit.leave(flow.mmdit()),
        }
    }

    fn sites(&self) -> &[Site] {
        match self {
            Self::Unet(unet) => unet.sites(),
            Self::MmDit(mmdit) => mmdit.sites(),
        }
    }

    fn downscale(&self) -> usize {
        match self {
            Self::Unet(unet) => unet.downscale(),
            Self::MmDit(mmdit) => mmdit.downscale(),
        }
    }

    fn largest(&self) -> Option<usize> {
        match self {
            Self::Unet(unet) => unet.largest(),
            Self::MmDit(mmdit) => mmdit.largest(),
        }
    }

    fn set_aside(&self, segments: Range<usize>, flow: AnyFlow) -> (AnyFlow, AnyFlow) {
        match self {
            Self::Unet(unet) => {
                let (needed, aside) = unet.set_aside(segments, flow.unet());
                (AnyFlow::Unet(needed), AnyFlow::Unet(aside))
            }
            Self::MmDit(mmdit) => {
                let (needed, aside) = mmdit.set_aside(segments, flow.mmdit());
                (AnyFlow::MmDit(needed), AnyFlow::MmDit(aside))
            }
        }
    }

    fn put_back(&self, aside: AnyFlow, flow: AnyFlow) -> AnyFlow {
        match self {
            Self::Unet(unet) => AnyFlow::Unet(unet.put_back(aside.unet(), flow.unet())),
            Self::MmDit(mmdit) => AnyFlow::MmDit(mmdit.put_back(aside.mmdit(), flow.mmdit())),
        }
    }
}
