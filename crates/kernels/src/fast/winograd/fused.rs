//! A task transforms a panel of tiles, multiplies it and transforms it back: for few channels and many tiles.
//!
//! The panel's transformed tiles, in all channels, stay in the second-level cache; of the products only those of one block of
//! output channels exist at a time.

use rayon::prelude::*;

use super::{
    super::{
        gemm::micro::{self, Block, Micro, Start},
        kept::Kept,
        packed::WeightOrder,
        pairs::Kernel,
        shared::{Scratch, Shared, with_scratch},
        simd::dispatch,
        stored::Stored,
    },
    CHUNK, PART, Plan,
    jobs::{TransformBack, TransformTiles},
    transform::POINTS,
};

/// Values of a panel's transformed tiles that the second-level cache holds beside what else a task reads.
const LOCAL: usize = 192 * 1024;

impl Plan<'_> {
    /// Whether a panel fits the cache, there are enough of them for all threads, and all kernels fit a part.
    pub(super) fn is_fused(&self) -> bool {
        let channels = self.channels();
        POINTS * self.tile_stride() <= LOCAL
            && channels <= CHUNK
            && self.tiles.div_ceil(self.width) >= 4 * rayon::current_num_threads()
            && POINTS * channels * self.shape.output[0] <= PART
    }

    pub(super) fn run_fused(&self, x: &[f32], weight: Stored<'_>, order: &WeightOrder, y: &Shared) {
        let values = POINTS * self.channels() * self.shape.output[0];
        // SAFETY: the transform writes what is read.
        let mut kernels = unsafe { Kept::new(values) };
        self.transform_kernels(0..self.blocks.len(), weight, order, kernels.get_mut());
        let kernels = &kernels.get()[..values];
        let panels = self.tiles.div_ceil(self.width);
        (0..panels)
            .into_par_iter()
            .for_each(|panel| self.panel(panel, x, kernels, y));
    }

    /// All channels of a panel; the kernels are `[block, point, input channel, output channel]`.
    fn panel(&self, panel: usize, x: &[f32], kernels: &[f32], y: &Shared) {
        let (width, stride, channels) = (self.width, self.tile_stride(), self.channels());
        let first_tile = panel * width;
        let runs = self.runs(first_tile..first_tile + width);
        let room = POINTS * self.blocks[0] * width;
        with_scratch(Scratch::Products, POINTS * stride + room, |scratch| {
            let (tiles, products) = scratch.split_at_mut(POINTS * stride);
            let job = TransformTiles {
                shape: self.shape,
                x,
                runs: &runs,
                channels: 0..channels,
                stride,
                to: tiles.as_mut_ptr(),
            };
            dispatch(self.isa, job);
            for (&first_row, &rows) in self.starts.iter().zip(&self.blocks) {
                let kernels = &kernels[POINTS * channels * first_row..][..POINTS * channels * rows];
                let out = Shared::new(products);
                for (point, a) in kernels.chunks_exact(channels * rows).enumerate() {
                    let b = &tiles[point * stride..][..channels * width];
                    let block = Block {
                        a,
                        rows,
                        // SAFETY: the products are this task's alone.
                        c: unsafe { out.at(point * rows * width, rows * width) },
                        start: Start::Zero,
                    };
                    let micro = Micro {
                        blocks: &[block],
                        b,
                        width,
                        columns: width.min(self.tiles - first_tile),
                        c_stride: width,
                        depth: channels,
                        next: a.as_ptr().wrapping_add(a.len()),
                    };
                    // SAFETY: the block's outputs are valid, as just checked, and no one else's.
                    unsafe { micro::run(self.isa, Kernel::Single, &micro) };
                }
                let job = TransformBack {
                    plan: self,
                    products: &*products,
                    rows,
                    stride: width,
                    first_row,
                    first_tile,
                    y,
                };
                dispatch(self.isa, job);
            }
        });
    }
}
