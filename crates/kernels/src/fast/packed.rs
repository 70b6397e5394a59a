//! A convolution's weight in the order in which the tiles read it.

#![expect(unsafe_code, reason = "memory that is not zeroed")]

use std::slice::ChunksExact;

use burn::tensor::{bf16, f16};
use rayon::prelude::*;

use super::{
    amx::{DEPTH, SIDE, TILE},
    isa::Isa,
    kept::Kept,
    pairs::{Kernel, Products, pair},
    simd::{Job, Simd, dispatch},
    stored::Stored,
};

/// The most elements of the input's channels in a chunk.
const CHUNK: usize = 128;

/// Where a weight's values lie: `weight[co][ci][tap]` at `co * strides[0] + ci * strides[1] + taps[tap]`.
pub(super) struct WeightOrder {
    /// Values between output channels and between input channels.
    pub(super) strides: [usize; 2],
    /// Each tap's place in a kernel.
    pub(super) taps: Vec<usize>,
}

impl WeightOrder {
    /// Whether a weight lies as `[co, ci, taps]`.
    fn is_plain(&self, [c_in, taps]: [usize; 2]) -> bool {
        self.strides == [c_in * taps, taps] && self.taps.iter().copied().eq(0..taps)
    }
}

/// Taps of the usual kernel.
const THREE_BY_THREE: usize = 9;

/// Packs a block of a bfloat16 weight of kernels of `T` taps into tiles.
struct Deal<'a, const T: usize> {
    /// Its rows, all input channels of an output.
    rows: ChunksExact<'a, bf16>,
    /// The first input channel.
    from: usize,
    /// Elements, pairs of input channels.
    count: usize,
    to: &'a mut [f32],
}

impl<const T: usize> Job for Deal<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(S::LANES, DEPTH, "tiles come with AVX-512");
        let blocks = self.rows.len();
        // A group of channels of all rows at a time: its tiles stay in the first-level cache until they are full.
        for (group, to) in self.to.chunks_exact_mut(T * TILE).enumerate() {
            let first = 2 * DEPTH * group;
            for (m, row) in self.rows.clone().enumerate() {
                let row = &row[self.from * T..];
                let count = (2 * self.count - first)
                    .min(2 * DEPTH)
                    .min(row.len() / T - first);
                let from = &row[first * T..(first + count) * T];
                // The row's next group: sixteen rows in turn are too many streams for the machine to follow by itself.
                for line in 0..T {
                    s.prefetch(from.as_ptr().wrapping_add(2 * DEPTH * (T + line)).cast());
                }
                let to = &mut to[m * DEPTH..][..(T - 1) * TILE + DEPTH];
                // SAFETY: `from` holds all channels of a tile, as does the copy; `to` the rows of all taps.
                unsafe {
                    if count == 2 * DEPTH {
                        s.deal::<T>(from.as_ptr().cast(), to.as_mut_ptr(), TILE);
                    } else {
                        let mut all = [bf16::ZERO; 2 * DEPTH * THREE_BY_THREE];
                        all[..from.len()].copy_from_slice(from);
                        s.deal::<T>(all.as_ptr().cast(), to.as_mut_ptr(), TILE);
                    }
                }
            }
        }
        // Where a tile is not full.
        for tile in self.to.chunks_exact_mut(TILE) {
            tile[blocks * DEPTH..].fill(0.0);
        }
    }
}

/// Weights in the order in which the tiles read them: chunk of input channels, block of output
/// channels, element of the input's channels, tap, output channel; or as [`tile::run`] describes.
pub(super) struct Packed {
    /// What the values are for.
    pub(super) kernel: Kernel,
    values: Kept,
    /// Sizes of the blocks of output channels.
    pub(super) blocks: Vec<usize>,
    /// Elements of a chunk of input channels; the last may have fewer.
    pub(super) chunk: usize,
    /// Output channels, elements of the input's channels, taps.
    pub(super) dims: [usize; 3],
}

impl Packed {
    /// Packs a weight `[c_out, c_in, taps]` that lies in `order`.
    pub(super) fn new(
        isa: Isa,
        products: Products,
        [c_out, c_in]: [usize; 2],
        order: &WeightOrder,
        weight: Stored<'_>,
    ) -> Self {
        let kernel = products.kernel(isa);
        let taps = order.taps.len();
        let elements = c_in.div_ceil(kernel.values());
        let blocks = if kernel == Kernel::Tiles {
            tile_blocks(c_out)
        } else {
            even_parts(c_out, c_out.div_ceil(dispatch(isa, Rows)))
        };
        let chunk = chunk_of(kernel, elements);
        let dims = [c_out, elements, taps];
        let mut starts = Vec::new();
        let mut len = 0;
        for e0 in (0..elements).step_by(chunk) {
            let mut co0 = 0;
            for &block in &blocks {
                let size = size(kernel, dims, chunk, e0, block);
                starts.push((size, e0, co0, block));
                len += size;
                co0 += block;
            }
        }
        // SAFETY: `pack` writes every value.
        let mut values = unsafe { Kept::new(len) };
        let mut rest = &mut values.get_mut()[..len];
        let mut parts = Vec::with_capacity(starts.len());
        for (size, e0, co0, block) in starts {
            let (part, tail) = rest.split_at_mut(size);
            parts.push((part, e0, co0, block));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(part, e0, co0, block)| {
            let part_of = [e0, chunk.min(elements - e0), co0, block];
            pack_block(isa, kernel, order, weight, c_in, part_of, part);
        });
        Self {
            kernel,
            values,
            blocks,
            chunk,
            dims,
        }
    }

    /// Values of a block for the chunk from element `e0`.
    fn size(&self, e0: usize, block: usize) -> usize {
        size(self.kernel, self.dims, self.chunk, e0, block)
    }

    /// The blocks `first..end` for the chunk from element `e0`.
    pub(super) fn blocks(&self, e0: usize, first: usize, end: usize) -> Vec<(usize, &[f32])> {
        let sizes = |e0: usize, blocks: &[usize]| -> usize {
            blocks.iter().map(|&block| self.size(e0, block)).sum()
        };
        let mut at = sizes(e0, &self.blocks[..first]);
        if e0 > 0 {
            // Chunks before this one are whole.
            at += e0 / self.chunk * sizes(0, &self.blocks);
        }
        let mut out = Vec::with_capacity(end - first);
        for &block in &self.blocks[first..end] {
            let size = self.size(e0, block);
            out.push((block, &self.values.get()[at..at + size]));
            at += size;
        }
        out
    }
}

/// Elements of the input's channels that are handled in one pass over a strip.
pub(super) fn chunk_of(kernel: Kernel, elements: usize) -> usize {
    let chunk = elements.div_ceil(elements.div_ceil(CHUNK));
    match kernel {
        Kernel::Tiles => chunk.next_multiple_of(DEPTH),
        _ => chunk,
    }
}

/// Blocks of output channels, for tiles.
pub(super) fn tile_blocks(c_out: usize) -> Vec<usize> {
    let starts = (0..c_out).step_by(SIDE);
    starts.map(|co| SIDE.min(c_out - co)).collect()
}

/// Packs a block of a weight that lies in `order`: `count` elements from `e0`, `block` outputs from `co0`. Writes all of `to`.
pub(super) fn pack_block(
    isa: Isa,
    kernel: Kernel,
    order: &WeightOrder,
    weight: Stored<'_>,
    c_in: usize,
    part: [usize; 4],
    to: &mut [f32],
) {
    match weight {
        Stored::Bf16(w) if kernel == Kernel::Tiles && order.is_plain([c_in, THREE_BY_THREE]) => {
            deal::<THREE_BY_THREE>(isa, w, c_in, part, to);
        }
        Stored::Bf16(w) if kernel == Kernel::Tiles && order.is_plain([c_in, 1]) => {
            deal::<1>(isa, w, c_in, part, to);
        }
        Stored::F32(w) => pack(kernel, w, order, c_in, part, to),
        Stored::Bf16(w) => pack(kernel, w, order, c_in, part, to),
        Stored::F16(w) => pack(kernel, w, order, c_in, part, to),
    }
}

/// [`pack_block`] of a weight of `T` taps in their plain order.
fn deal<const T: usize>(
    isa: Isa,
    weight: &[bf16],
    c_in: usize,
    [e0, count, co0, block]: [usize; 4],
    to: &mut [f32],
) {
    let row = c_in * T;
    let rows = weight[co0 * row..][..block * row].chunks_exact(row);
    let from = 2 * e0;
    let job = Deal::<T> {
        rows,
        from,
        count,
        to,
    };
    dispatch(isa, job);
}

/// Values of a block for the chunk from element `e0`.
fn size(
    kernel: Kernel,
    [_, elements, taps]: [usize; 3],
    chunk: usize,
    e0: usize,
    block: usize,
) -> usize {
    let count = chunk.min(elements - e0);
    if kernel == Kernel::Tiles {
        count.div_ceil(DEPTH) * taps * TILE
    } else {
        count * taps * block
    }
}

/// A stored value.
trait Value: Copy {
    /// Its value.
    fn widen(self) -> f32;
    /// The bfloat16 pair of this and the next value, or zero.
    #[inline(always)]
    fn with(self, next: Option<Self>) -> f32 {
        pair(self.widen(), next.map_or(0.0, Self::widen))
    }
}

impl Value for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    /// The bits already are what rounding would give, but for the payload of NaN.
    #[inline(always)]
    fn with(self, next: Option<Self>) -> f32 {
        let next = next.map_or(0, Self::to_bits);
        f32::from_bits(u32::from(self.to_bits()) | u32::from(next) << 16)
    }
}

impl Value for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Packs a block: `count` elements from `e0`, `block` outputs from `co0`.
#[inline(always)]
fn pack<T: Value>(
    kernel: Kernel,
    weight: &[T],
    order: &WeightOrder,
    c_in: usize,
    [e0, count, co0, block]: [usize; 4],
    to: &mut [f32],
) {
    let [co_stride, ci_stride] = order.strides;
    let taps = order.taps.len();
    if kernel == Kernel::Tiles {
        // Where a tile is not full.
        to.fill(0.0);
    }
    if kernel == Kernel::Tiles && ci_stride < co_stride {
        // Along the weight's rows.
        for m in 0..block {
            let row = &weight[(co0 + m) * co_stride..];
            for e in 0..count {
                let ci = 2 * (e0 + e);
                let first = &row[ci * ci_stride..];
                let second = (ci + 1 < c_in).then(|| &first[ci_stride..]);
                let place = e / DEPTH * taps * TILE + e % DEPTH + m * DEPTH;
                for (t, &tap) in order.taps.iter().enumerate() {
                    to[place + t * TILE] = first[tap].with(second.map(|second| second[tap]));
                }
            }
        }
        return;
    }
    for e in 0..count {
        let ci = kernel.values() * (e0 + e);
        for (t, &tap) in order.taps.iter().enumerate() {
            let (first, step) = if kernel == Kernel::Tiles {
                ((e / DEPTH * taps + t) * TILE + e % DEPTH, DEPTH)
            } else {
                ((e * taps + t) * block, 1)
            };
            let to = to[first..].iter_mut().step_by(step).take(block);
            let from = &weight[co0 * co_stride + ci * ci_stride + tap..];
            let values = from.iter().step_by(co_stride);
            if kernel == Kernel::Single {
                for (to, value) in to.zip(values) {
                    *to = value.widen();
                }
            } else if ci + 1 < c_in {
                let seconds = from[ci_stride..].iter().step_by(co_stride);
                for (to, (value, second)) in to.zip(values.zip(seconds)) {
                    *to = value.with(Some(*second));
                }
            } else {
                for (to, value) in to.zip(values) {
                    *to = value.with(None);
                }
            }
        }
    }
}

/// The most output channels of a block.
pub(super) struct Rows;

impl Job for Rows {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::ROWS
    }
}

/// `total` in `parts` sizes that differ by at most one, larger first.
pub(super) fn even_parts(total: usize, parts: usize) -> Vec<usize> {
    (0..parts)
        .map(|i| total / parts + usize::from(i < total % parts))
        .collect()
}

/// Where each part begins.
pub(super) fn starts(parts: &[usize]) -> Vec<usize> {
    (parts.iter())
        .scan(0, |at, part| Some(std::mem::replace(at, *at + part)))
        .collect()
}

/// The lanes of an instruction set.
pub(super) struct Lanes;

impl Job for Lanes {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}
