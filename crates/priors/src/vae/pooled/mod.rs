//! The autoencoder over tiles, equal to the autoencoder over the whole picture to rounding.
//!
//! What makes the usual tiles differ is that a group norm sees a tile where it should see the picture. Here its mean and
//! variance are pooled over all tiles: `M2 = sum M2_i + sum n_i (mean_i - mean)^2` (Chan et al. 1983), so the spread between tiles
//! counts, which an average of variances leaves out. Convolutions get the neighbourhood they reach (`halo`), and the one
//! attention of the mid block is done whole, at the latent's resolution.
//!
//! The network is a chain of steps. Between some of them, always before a norm, the whole feature is kept ([`plan`] says where), and the
//! tiles run from one kept feature to the next, adding to the next norm's statistics as they go. A norm between two kept features costs
//! a run of its own up to it, which keeps nothing but its sums: time for memory. Keeping every feature on disk instead
//! would move tens of gigabytes for a large picture; keeping the features of all tiles, as tilevae does, is the memory of the whole.
//!
//! Tiles and kept features together may take more memory than the whole at once; a [`Plan`] tells both.
//!
//! Source: tiled VAE of pkuliyi2015's multidiffusion-upscaler (as in SUPIR) for the idea of pausing at norms.

mod moments;
mod plan;
mod step;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

pub use plan::{Plan, Stage};

use self::{
    moments::Moments,
    plan::Rect,
    step::{Chain, State, Step},
};
use super::{AutoencoderKl, Posterior, fold, unfold};

impl AutoencoderKl {
    /// As [`AutoencoderKl::encode`] for one picture `[1, 3, h, w]`, in tiles of about `tile_px` pixels a side; kept features take up to
    /// about `budget` bytes, and more only where nothing else is possible.
    pub fn encode_pooled(&self, image: Tensor<4>, tile_px: usize, budget: usize) -> Posterior {
        let x = fold(image, self.config.patch_size);
        self.posterior(run(
            &Chain::of(&self.encoder),
            x,
            self.tile(tile_px),
            budget,
        ))
    }

    /// As [`AutoencoderKl::decode`] for one latent `[1, c, h, w]`, in tiles.
    pub fn decode_pooled(&self, z: Tensor<4>, tile_px: usize, budget: usize) -> Tensor<4> {
        let x = run(&Chain::of(&self.decoder), z, self.tile(tile_px), budget);
        unfold(x, self.config.patch_size)
    }

    /// How a picture of `height` x `width` pixels would be encoded and decoded.
    pub fn pooled_plans(
        &self,
        [height, width]: [usize; 2],
        tile_px: usize,
        budget: usize,
    ) -> [Plan; 2] {
        let (p, f) = (self.config.patch_size, self.downscale());
        let pixels = [self.config.in_channels, height / p, width / p];
        let latent = [self.config.latent_channels, height / f, width / f];
        let tile = self.tile(tile_px);
        [
            Chain::of(&self.encoder).plan(pixels, tile, budget),
            Chain::of(&self.decoder).plan(latent, tile, budget),
        ]
    }

    /// Side of a tile where the chain is finest.
    fn tile(&self, tile_px: usize) -> usize {
        (tile_px / self.config.patch_size).max(1)
    }
}

/// Runs the whole chain on `x` `[1, c, h, w]`.
fn run(chain: &Chain<'_>, x: Tensor<4>, tile: usize, budget: usize) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    assert_eq!(b, 1, "one picture at a time");
    let plan = chain.plan([c, h, w], tile, budget);
    let mut norms: Vec<Option<Moments>> = chain.steps.iter().map(|_| None).collect();
    let mut kept = State { x, residual: None };
    for stage in &plan.stages {
        for &norm in &stage.inner {
            norms[norm] = Some(stage.pooled(chain, &kept, norm, &norms));
        }
        let (next, moments) = stage.kept(chain, kept, &norms);
        kept = next;
        if let Some(moments) = moments {
            norms[moments.0] = Some(moments.1);
        }
    }
    kept.x
}

impl Stage {
    /// The statistics of step `norm`'s input, from tiles that keep nothing.
    fn pooled(
        &self,
        chain: &Chain<'_>,
        kept: &State,
        norm: usize,
        norms: &[Option<Moments>],
    ) -> Moments {
        let mut total = chain.empty(norm);
        for tile in &self.tiles {
            let (state, rect) = chain.forward(kept, self.from..norm, tile, norms);
            total.add(&values(state.x), rect.grown, rect.core);
        }
        total
    }

    /// The feature at the stage's end, whole, and the statistics of a norm that follows.
    fn kept(
        &self,
        chain: &Chain<'_>,
        kept: State,
        norms: &[Option<Moments>],
    ) -> (State, Option<(usize, Moments)>) {
        let mut moments = chain
            .entry_norm(self.to)
            .map(|norm| (norm, chain.empty(norm)));
        if let [Step::Whole(segment)] = &chain.steps[self.from..self.to] {
            let x = segment.forward(kept.x);
            if let Some((_, moments)) = &mut moments {
                let [_, _, h, w] = x.dims();
                moments.add(&values(x.clone()), Rect::whole(h, w), Rect::whole(h, w));
            }
            return (State { x, residual: None }, moments);
        }
        let [c, h, w] = self.out;
        let device = kept.x.device();
        let mut x = Plane::new([c, h, w]);
        let mut residual = self.residual_channels.map(|c| Plane::new([c, h, w]));
        for tile in &self.tiles {
            let (state, rect) = chain.forward(&kept, self.from..self.to, tile, norms);
            let new = values(state.x);
            if let Some((_, moments)) = &mut moments {
                moments.add(&new, rect.grown, rect.core);
            }
            x.put(&new, rect.grown, rect.core);
            if let (Some(plane), Some(new)) = (&mut residual, state.residual) {
                plane.put(&values(new), rect.grown, rect.core);
            }
        }
        let tensor = |plane: Plane| plane.tensor(&device);
        let next = State {
            x: tensor(x),
            residual: residual.map(tensor),
        };
        (next, moments)
    }
}

/// A feature on the host that is put together from tiles.
struct Plane {
    shape: [usize; 3],
    values: Vec<f32>,
}

impl Plane {
    fn new(shape: [usize; 3]) -> Self {
        Self {
            shape,
            values: vec![0.0; shape.iter().product()],
        }
    }

    /// Puts the part `core` of a tile's values, which cover `grown`.
    fn put(&mut self, tile: &[f32], grown: Rect, core: Rect) {
        let [_, h, w] = self.shape;
        let channels = self
            .values
            .par_chunks_mut(h * w)
            .zip(tile.par_chunks(grown.height * grown.width));
        channels.for_each(|(plane, tile)| {
            for y in 0..core.height {
                let from = (core.top - grown.top + y) * grown.width + core.left - grown.left;
                let to = (core.top + y) * w + core.left;
                plane[to..to + core.width].copy_from_slice(&tile[from..from + core.width]);
            }
        });
    }

    fn tensor(self, device: &burn::tensor::Device) -> Tensor<4> {
        let [c, h, w] = self.shape;
        Tensor::from_data(
            TensorData::new(self.values, [1, c, h, w]),
            (device, DType::F32),
        )
    }
}

/// Host values of a tensor.
fn values(x: Tensor<4>) -> Vec<f32> {
    kernels::contiguous(x)
        .into_data()
        .convert::<f32>()
        .try_into_vec()
        .expect("converted to f32")
}
