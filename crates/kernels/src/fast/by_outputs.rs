//! A convolution whose weight is larger than its input, on matrix tiles: a task takes some of the output channels, packs its
//! part of the weight in its own cache and multiplies it with all pixels, so that the weight passes through memory once.
//!
//! Sums are in the order of [`conv`](super::conv)'s strips: the same bits.

#![expect(unsafe_code, reason = "hands addresses to the kernels")]

use rayon::prelude::*;

use super::{
    amx::{DEPTH, SIDE, TILE},
    conv::ConvShape,
    expand::{Expand, ExpandChannel, Layout},
    isa::Isa,
    kept::Kept,
    packed::{Lanes, WeightOrder, chunk_of, even_parts, pack_block, starts, tile_blocks},
    pairs::Kernel,
    shared::{Scratch, Shared, unwritten, with_scratch},
    simd::dispatch,
    stored::Stored,
    tile::{self, Start, Strip},
};

/// Pixels of a strip: with them the input's chunk stays in the cache for all of a task's outputs.
const STRIP: usize = 256;

/// How many times larger than the expanded input the weight is where this pays (docs/benchmarks.md): of 3x3 kernels, 1280 -> 640
/// @ 32 with 3.6 was a fifth quicker than by strips, 320 -> 160 @ 32 with 1.2 as quick, 512 -> 512 @ 64 with 1 slower.
const LARGER: usize = 2;

/// The same of single values, beside a product of matrices: with 1.2 a quarter quicker, with 0.6 as quick.
const LARGER_OF_PIXELS: usize = 1;

/// Values of a pair of channels.
const PAIR: usize = 2;

/// Whether this way is quicker: the weight is read once and the expanded input by every task, where strips read the input once
/// and the weight by every strip.
pub(super) fn pays(isa: Isa, shape: &ConvShape) -> bool {
    if shape.products.kernel(isa) != Kernel::Tiles || shape.output.contains(&0) {
        return false;
    }
    let [c_in, ..] = shape.input;
    let weight = shape.output[0] * c_in * shape.taps() / PAIR;
    let larger = match shape.taps() {
        1 => LARGER_OF_PIXELS,
        _ => LARGER,
    };
    let expanded = shape.batch * c_in.div_ceil(PAIR) * whole(isa, shape).floats();
    c_in > 0 && shape.batch > 0 && larger * expanded <= weight
}

/// All rows of the output as one strip.
fn whole(isa: Isa, shape: &ConvShape) -> Expand<'_> {
    Expand {
        shape,
        layout: Layout::of(shape, dispatch(isa, Lanes)),
        y0: 0,
        rows: shape.output[1],
    }
}

/// `y = conv(x, weight) + bias`, `[b, c_out, oh, ow]`, with a weight that lies in `order`.
pub(super) fn run(
    isa: Isa,
    shape: &ConvShape,
    x: &[f32],
    weight: Stored<'_>,
    order: &WeightOrder,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let ([c_in, h, w], [c_out, oh, ow]) = (shape.input, shape.output);
    let elements = c_in.div_ceil(PAIR);
    let stored = elements.next_multiple_of(DEPTH);
    assert_eq!(x.len(), shape.batch * c_in * h * w);
    assert!(bias.is_none_or(|bias| bias.len() == c_out));
    let expand = whole(isa, shape);
    let (stride, taps) = (expand.floats(), expand.taps());
    // SAFETY: all of it is written below.
    let mut expanded = unsafe { Kept::new(shape.batch * stored * stride + SIDE) };
    expanded.get_mut()[shape.batch * stored * stride..].fill(0.0);
    expanded.get_mut()[..shape.batch * stored * stride]
        .par_chunks_mut(stride)
        .enumerate()
        .for_each(|(i, to)| {
            let (image, element) = (i / stored, i % stored);
            to.fill(0.0);
            if element < elements {
                let first = (image * c_in + PAIR * element) * h * w;
                let planes = PAIR.min(c_in - PAIR * element);
                let (first, second) = x[first..][..planes * h * w].split_at(h * w);
                dispatch(
                    isa,
                    ExpandChannel {
                        expand,
                        kernel: Kernel::Tiles,
                        first,
                        second,
                        to,
                    },
                );
            }
        });
    let blocks = tile_blocks(c_out);
    let tasks = tasks(blocks.len().div_ceil(2), oh, rayon::current_num_threads());
    // SAFETY: the tasks write every row of every output channel before they read it.
    let mut y = unsafe { unwritten(shape.batch * c_out * oh * ow) };
    let out = Shared::new(&mut y);
    let job = Job {
        isa,
        expand,
        x: expanded.get(),
        stride,
        taps: &taps,
        stored,
        weight,
        order,
        bias,
        blocks: &blocks,
        out: &out,
    };
    tasks
        .into_par_iter()
        .for_each(|(pairs, rows)| job.task(2 * pairs[0]..(2 * pairs[1]).min(blocks.len()), rows));
    y
}

/// Pairs of blocks and rows of each task, from and to.
fn tasks(pairs: usize, rows: usize, threads: usize) -> Vec<([usize; 2], [usize; 2])> {
    // Two pairs a task, so that a strip's input is used twice while it is in the cache, and as many for every thread.
    let count = pairs.div_ceil(2).next_multiple_of(threads).min(pairs);
    // Where few pairs cannot be shared evenly, their rows are.
    let shares = match pairs < 4 * threads && !pairs.is_multiple_of(threads) {
        true => threads.min(rows),
        false => 1,
    };
    let ranges = |parts: Vec<usize>| -> Vec<[usize; 2]> {
        let starts = starts(&parts);
        starts
            .into_iter()
            .zip(parts)
            .map(|(at, n)| [at, at + n])
            .collect()
    };
    let rows = ranges(even_parts(rows, shares));
    let each = ranges(even_parts(pairs, count)).into_iter();
    each.flat_map(|pairs| rows.iter().map(move |&rows| (pairs, rows)))
        .collect()
}

/// What all tasks share.
struct Job<'a> {
    isa: Isa,
    expand: Expand<'a>,
    /// The expanded input.
    x: &'a [f32],
    /// Floats of an element of the channels.
    stride: usize,
    taps: &'a [usize],
    /// Elements of an image, those that fill a tile included.
    stored: usize,
    weight: Stored<'a>,
    order: &'a WeightOrder,
    bias: Option<&'a [f32]>,
    /// Sizes of the blocks of output channels.
    blocks: &'a [usize],
    out: &'a Shared,
}

impl Job<'_> {
    /// The blocks `which` of the output's rows `from..to`.
    fn task(&self, which: std::ops::Range<usize>, [from, to]: [usize; 2]) {
        let shape = self.expand.shape;
        let ([c_in, ..], [c_out, oh, ow]) = (shape.input, shape.output);
        let (elements, plane) = (c_in.div_ceil(PAIR), oh * ow);
        let lanes = dispatch(self.isa, Lanes);
        let chunk = chunk_of(Kernel::Tiles, elements);
        let blocks = &self.blocks[which.clone()];
        let co0 = self.blocks[..which.start].iter().sum::<usize>();
        let count = blocks.iter().sum::<usize>();
        let strip = (STRIP / ow).max(1);
        for e0 in (0..elements).step_by(chunk) {
            let channels = chunk.min(elements - e0);
            let size = channels.div_ceil(DEPTH) * self.taps.len() * TILE;
            with_scratch(Scratch::Weights, size * blocks.len(), |packed| {
                let mut co = co0;
                for (&block, to) in blocks.iter().zip(packed.chunks_exact_mut(size)) {
                    let part = [e0, channels, co, block];
                    pack_block(
                        self.isa,
                        Kernel::Tiles,
                        self.order,
                        self.weight,
                        c_in,
                        part,
                        to,
                    );
                    co += block;
                }
                let parts = blocks.iter().copied().zip(packed.chunks_exact(size));
                let parts: Vec<(usize, &[f32])> = parts.collect();
                let start = match self.bias {
                    _ if e0 > 0 => Start::Output,
                    Some(bias) => Start::Bias(bias[co0..co0 + count].as_ptr()),
                    None => Start::Zero,
                };
                for image in 0..shape.batch {
                    for y0 in (from..to).step_by(strip) {
                        let rows = strip.min(to - y0);
                        let first = (image * self.stored + e0) * self.stride;
                        let first = first + y0 * self.expand.row_stride();
                        // SAFETY: `x` holds the whole chunk with every tap's pixels and more behind it; the outputs are this
                        // task's channels of its rows, and within `y`.
                        unsafe {
                            let y = self.out.at(
                                (image * c_out + co0) * plane + y0 * ow,
                                (count - 1) * plane + rows * ow,
                            );
                            let strip = Strip {
                                x: self.x[first..].as_ptr(),
                                x_stride: self.stride,
                                channels,
                                taps: self.taps,
                                row_vectors: self.expand.row_vectors(lanes),
                                row_stride: self.expand.row_stride(),
                                pixels: rows * ow,
                                blocks: &parts,
                                y,
                                y_stride: plane,
                                start,
                            };
                            tile::run(self.isa, Kernel::Tiles, &strip);
                        }
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;

    use super::*;
    use crate::fast::{conv::in_strips, pairs::Products, tests::noise};

    #[test]
    fn the_same_bits_as_by_strips() {
        for (batch, [c_in, h, w], c_out) in [
            (1, [128, 4, 16], 128),
            (2, [66, 6, 5], 400),
            (1, [300, 16, 16], 90),
            (1, [70, 3, 32], 33),
        ] {
            for side in [1, 3] {
                let taps = side * side;
                let shape = ConvShape {
                    batch,
                    input: [c_in, h, w],
                    output: [c_out, h, w],
                    kernel: [side, side],
                    stride: 1,
                    before: [side as isize / 2; 2],
                    products: Products::Bf16,
                };
                let x = noise(batch * c_in * h * w, 1);
                let plain: Vec<bf16> = noise(c_out * c_in * taps, 2)
                    .into_iter()
                    .map(bf16::from_f32)
                    .collect();
                let bias = noise(c_out, 3);
                let orders =
                    [[c_in * taps, taps], [taps, c_out * taps]].map(|strides| WeightOrder {
                        strides,
                        taps: (0..taps).collect(),
                    });
                for isa in Isa::available() {
                    if shape.products.kernel(isa) != Kernel::Tiles {
                        continue;
                    }
                    for order in &orders {
                        for bias in [None, Some(&bias[..])] {
                            let weight = Stored::Bf16(&plain);
                            let strips = in_strips(isa, &shape, &x, weight, order, bias);
                            assert!(
                                run(isa, &shape, &x, weight, order, bias) == strips,
                                "{shape:?} on {isa:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_pair_and_row_is_in_one_task() {
        for pairs in 1..50 {
            for threads in [1, 2, 3, 16] {
                for rows in [1, 2, 16] {
                    let mut seen = vec![0; pairs * rows];
                    for (pairs, [from, to]) in tasks(pairs, rows, threads) {
                        for pair in pairs[0]..pairs[1] {
                            (from..to).for_each(|row| seen[pair * rows + row] += 1);
                        }
                    }
                    assert!(seen.iter().all(|n| *n == 1), "{pairs} {rows} {threads}");
                }
            }
        }
    }
}
