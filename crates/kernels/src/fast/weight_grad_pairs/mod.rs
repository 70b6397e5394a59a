//! The gradient of a convolution's weight by products of bfloat16 pairs.
//!
//! `dw[co][ci][tap] = sum over images and pixels q of dy[co][q] * x[ci][q + tap]`. Pixels are numbered on a grid with
//! room for the taps at the right of each row, where `dy` is zero, so that the input at a tap is the input a fixed number
//! of pixels further on. A pair is two neighbouring pixels: of `x` they lie next to each other in rows of bfloat16, which
//! may be read from any pixel on; `dy` is transposed to pairs of pixels by channels.

#![expect(unsafe_code, reason = "tasks write disjoint parts of one output")]

mod grid;
mod sums;

use rayon::prelude::*;

use self::{
    grid::Operands,
    sums::{Block, ByVectors},
};
use super::{
    amx::{DEPTH, SIDE},
    conv::ConvShape,
    isa::Isa,
    pairs::Kernel,
    shared::Shared,
    simd::dispatch_pairs,
};

/// Pixels of a tile.
const PIXELS: usize = 2 * DEPTH;
/// Tiles of pixels whose products are summed while both operands stay in the first-level cache.
const RUN: usize = 10;

/// The gradient of the weight, `[c_out, c_in, kh, kw]`.
pub(super) fn weight_grad(isa: Isa, shape: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let [c_in, h, w] = shape.input;
    let [c_out, oh, ow] = shape.output;
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert_eq!(dy.len(), shape.batch * c_out * oh * ow);
    let taps = shape.taps();
    let mut dw = vec![0.0; c_out * c_in * taps];
    if dw.is_empty() || dy.is_empty() {
        return dw;
    }
    let operands = Operands::new(isa, shape, x, dy);
    let (c_blocks, o_blocks) = (c_in.div_ceil(2 * SIDE), c_out.div_ceil(2 * SIDE));
    let kernel = shape.products.kernel(isa);
    // Where blocks are few, a task takes the taps of one row of the kernel.
    let parts = if c_blocks * o_blocks < 4 * rayon::current_num_threads() {
        shape.kernel[0]
    } else {
        1
    };
    let part = taps / parts;
    let out = Shared::new(&mut dw);
    (0..c_blocks * o_blocks * parts)
        .into_par_iter()
        .for_each(|task| {
            let (first, task) = (task % parts * part, task / parts);
            let (ci0, co0) = (task / o_blocks * 2 * SIDE, task % o_blocks * 2 * SIDE);
            let block = Block {
                operands: &operands,
                inputs: (c_in - ci0).min(2 * SIDE),
                outputs: (c_out - co0).min(2 * SIDE),
                ci0,
                co0,
                taps: &operands.taps[first..first + part],
            };
            let sums = match kernel {
                Kernel::Tiles => block.by_tiles(),
                _ => dispatch_pairs(isa, ByVectors(&block)),
            };
            for (tap, sums) in sums.iter().enumerate() {
                for l in 0..block.outputs {
                    for c in 0..block.inputs {
                        // SAFETY: these weights belong to this task alone, and the vector outlives it.
                        unsafe {
                            let at = ((co0 + l) * c_in + ci0 + c) * taps + first + tap;
                            *out.at(at, 1) = sums.0[c][l];
                        }
                    }
                }
            }
        });
    dw
}
