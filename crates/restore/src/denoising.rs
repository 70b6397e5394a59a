//! The network as a denoiser: one tile with its low-quality features, and a whole picture of tiles.

use std::cell::RefCell;

use burn::tensor::Tensor;
use priors::{
    any::AnyPrior,
    flow::{Conditioning, Prior},
    model::PriorModel,
    nn::{Bare, Tap},
    scheduler::Prediction,
};

use crate::{
    adapter::{AdapterFolder, LqFeatures, RestorationAdapter, Scale},
    denoiser::{Denoiser, network_input, x0_from_prediction},
    lora::Lora,
    schedule::{Level, Space},
    tiled::{Blend, Tile, Tiling, cut, device_tensor, host},
};

/// Low-quality features of tiles are kept between steps up to this many values.
const FEATURE_BUDGET: usize = 128 << 20;

/// One network call: prior, adapter and LoRA as a denoiser.
#[derive(Clone, Debug)]
pub struct Denoising<'a> {
    /// The prior.
    pub prior: &'a AnyPrior,
    /// The Restoration Adapter with its low-quality features.
    pub adapter: Option<(&'a RestorationAdapter, &'a LqFeatures)>,
    /// LoRA.
    pub lora: Option<&'a Lora>,
    /// The text, for one picture.
    pub conditioning: Conditioning,
    /// What the network's output means.
    pub prediction: Prediction,
    /// What a state is made of.
    pub space: Space,
    /// Weight of the adapter's term.
    pub scale: f64,
}

impl Denoiser for Denoising<'_> {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let tap: &dyn Tap = match self.lora {
            Some(lora) => lora,
            None => &Bare,
        };
        let input = network_input(z, self.space, level.sigma);
        let t = Tensor::full(
            [input.dims()[0]],
            level.t as f32,
            (&input.device(), input.dtype()),
        );
        let output = match self.adapter {
            Some((adapter, lq)) => {
                let flow = self.prior.enter(input.clone(), t, &self.conditioning);
                adapter.forward(self.prior, flow, lq, &Scale::All(self.scale), tap)
            }
            None => self
                .prior
                .forward(input.clone(), t, &self.conditioning, tap),
        };
        x0_from_prediction(self.prediction, input, output, level.sigma)
    }
}

/// The low-quality features of a picture's tiles, which serve every step, with the prompt and without.
pub(crate) struct TiledLq<'a> {
    prior: &'a AnyPrior,
    adapter: Option<&'a RestorationAdapter>,
    c_lq: &'a Tensor<4>,
    tiles: Vec<Tile>,
    kept: Vec<RefCell<Option<LqFeatures>>>,
}

impl<'a> TiledLq<'a> {
    /// Nothing is made yet.
    pub(crate) fn new(
        prior: &'a AnyPrior,
        adapter: Option<&'a RestorationAdapter>,
        c_lq: &'a Tensor<4>,
        tiling: Tiling,
    ) -> Self {
        let tiles = tiling.tiles();
        let kept = tiles.iter().map(|_| RefCell::default()).collect();
        Self {
            prior,
            adapter,
            c_lq,
            tiles,
            kept,
        }
    }

    /// Whether the features of all tiles, as large as these, are kept between steps.
    pub(crate) fn keeps(&self, features: &LqFeatures) -> bool {
        features.count() * self.tiles.len() <= FEATURE_BUDGET
    }

    /// The features of tile `i`: made once where all tiles' fit the budget; none without an adapter.
    pub(crate) fn of(&self, i: usize) -> Option<LqFeatures> {
        let adapter = self.adapter?;
        if let Some(features) = &*self.kept[i].borrow() {
            return Some(features.clone());
        }
        let features = adapter.lq_features(self.prior, &cut(self.c_lq, self.tiles[i]));
        if self.keeps(&features) {
            *self.kept[i].borrow_mut() = Some(features.clone());
        }
        Some(features)
    }
}

/// The denoiser of a whole picture: tiles blended on the denoiser's output.
pub(crate) struct TiledDenoiser<'a> {
    /// The prior.
    pub(crate) prior: &'a PriorModel,
    /// The adapter's folder.
    pub(crate) adapter: Option<&'a AdapterFolder>,
    /// What it is told.
    pub(crate) conditioning: Conditioning,
    /// What a state is made of.
    pub(crate) space: Space,
    /// Weight of the adapter's term.
    pub(crate) scale: f64,
    /// How the latent is cut.
    pub(crate) tiling: Tiling,
    /// The tiles' low-quality features.
    pub(crate) lq: &'a TiledLq<'a>,
}

impl TiledDenoiser<'_> {
    /// `D(z, level)` of tile `i`.
    pub(crate) fn one(&self, i: usize, z: Tensor<4>, level: Level) -> Tensor<4> {
        let features = self.lq.of(i);
        let denoising = Denoising {
            prior: &self.prior.network,
            adapter: (self.adapter)
                .map(|adapter| &adapter.adapter)
                .zip(features.as_ref()),
            lora: self.adapter.and_then(|adapter| adapter.lora.as_ref()),
            conditioning: self.conditioning.clone(),
            prediction: self.prior.scheduler.prediction(),
            space: self.space,
            scale: self.scale,
        };
        denoising.denoise(z, level)
    }
}

impl Denoiser for TiledDenoiser<'_> {
    fn space(&self) -> Space {
        self.space
    }

    fn denoise(&self, z: Tensor<4>, level: Level) -> Tensor<4> {
        let tiles = self.tiling.tiles();
        if tiles.len() == 1 {
            return self.one(0, z, level);
        }
        let [_, c, h, w] = z.dims();
        let mut blend = Blend::new(self.tiling, c);
        for (i, &tile) in tiles.iter().enumerate() {
            blend.add(tile, &host(self.one(i, cut(&z, tile), level)));
        }
        device_tensor(blend.finish(), [c, h, w], &z.device())
    }
}
