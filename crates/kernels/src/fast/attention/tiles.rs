//! The forward by matrix tiles: products of values rounded to bfloat16, softmax in f32.

use rayon::prelude::*;

use super::{
    super::{
        amx::{self, DEPTH, Place, SIDE, TILE, Tiles},
        gemm::{
            Operand,
            pack::{Layout, Pack},
        },
        isa::Isa,
        kept::Kept,
        shared::{Scratch, Shared, with_scratch},
        simd::{Job, Simd, dispatch_pairs},
        stored::Stored,
    },
    AttentionShape,
    rows::Softmax,
};

/// Queries of a task, and keys or columns of a panel: two tiles.
const BLOCK: usize = 2 * SIDE;
/// Keys between which the sums are scaled anew.
const KEYS: usize = 128;

/// Keys and values as the tiles read them.
struct Packed {
    /// Panels of keys, `[heads, keys / 32, depth, 32]`.
    k: Kept,
    /// Panels of columns, `[heads, width / 32, keys / 2, 32]`.
    v: Kept,
    /// Pairs along a head's width, with zeros to whole tiles.
    depth: usize,
    /// Keys, with zeros to whole blocks.
    keys: usize,
    /// A head's width, with zeros to whole blocks.
    width: usize,
}

impl Packed {
    fn new(isa: Isa, shape: &AttentionShape, k: &[f32], v: &[f32]) -> Self {
        let AttentionShape { heads, m, d, .. } = *shape;
        let depth = d.div_ceil(2).next_multiple_of(DEPTH);
        let (keys, width) = (m.next_multiple_of(BLOCK), d.next_multiple_of(BLOCK));
        // SAFETY: packing writes every value.
        let (mut packed_k, mut packed_v) = unsafe {
            (
                Kept::new(heads * keys * depth),
                Kept::new(heads * width * keys / 2),
            )
        };
        packed_k.get_mut()[..heads * keys * depth]
            .par_chunks_mut(BLOCK * depth)
            .enumerate()
            .for_each(|(i, to)| {
                let (head, panel) = (i / (keys / BLOCK), i % (keys / BLOCK));
                let first = panel * BLOCK;
                let job = Pack {
                    rows: BLOCK.min(m - first),
                    ..rows(k, d, head * m * d, first, depth, to)
                };
                dispatch_pairs(isa, job);
            });
        packed_v.get_mut()[..heads * width * keys / 2]
            .par_chunks_mut(BLOCK * keys / 2)
            .enumerate()
            .for_each(|(i, to)| {
                let (head, panel) = (i / (width / BLOCK), i % (width / BLOCK));
                let first = panel * BLOCK;
                let job = Pack {
                    from: Operand {
                        values: Stored::F32(v),
                        row_stride: 1,
                        k_stride: d,
                    },
                    rows: BLOCK.min(d - first),
                    k: m,
                    ..rows(v, d, head * m * d, first, keys / 2, to)
                };
                dispatch_pairs(isa, job);
            });
        Self {
            k: packed_k,
            v: packed_v,
            depth,
            keys,
            width,
        }
    }
}

/// Packing of up to 32 rows of `d` values, from row `first` on.
fn rows<'a>(
    x: &'a [f32],
    d: usize,
    offset: usize,
    first: usize,
    elements: usize,
    to: &'a mut [f32],
) -> Pack<'a> {
    Pack {
        from: Operand {
            values: Stored::F32(x),
            row_stride: d,
            k_stride: 1,
        },
        offset,
        first,
        rows: BLOCK,
        k: d,
        skip: 0,
        values: 2,
        layout: Layout::Interleaved(BLOCK),
        elements: 0..elements,
        padded: elements,
        to,
    }
}

/// As [`super::forward`], into `o` and `lse`; neither causal nor with a bias.
pub(super) fn forward(
    isa: Isa,
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    o: &mut [f32],
    lse: &mut [f32],
) {
    let AttentionShape { heads, n, d, .. } = *shape;
    let packed = Packed::new(isa, shape, k, v);
    let tasks = n.div_ceil(BLOCK);
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    (0..heads * tasks).into_par_iter().for_each(|task| {
        let (head, first) = (task / tasks, task % tasks * BLOCK);
        let rows = BLOCK.min(n - first);
        // SAFETY: these rows belong to this task alone, and both results outlive it.
        let (o, lse) = unsafe {
            let at = head * n + first;
            let o = std::slice::from_raw_parts_mut(o.at(at * d, rows * d), rows * d);
            let lse = std::slice::from_raw_parts_mut(lse.at(at, rows), rows);
            (o, lse)
        };
        let sizes = [
            BLOCK * packed.depth,
            BLOCK * KEYS,
            BLOCK * KEYS / 2,
            BLOCK * packed.width,
        ];
        with_scratch(Scratch::Products, sizes.iter().sum(), |scratch| {
            let (q_tiles, scratch) = scratch.split_at_mut(sizes[0]);
            let (logits, scratch) = scratch.split_at_mut(sizes[1]);
            let (p, sums) = scratch.split_at_mut(sizes[2]);
            let job = Block {
                shape,
                packed: &packed,
                head,
                first,
                q,
                q_tiles,
                logits,
                p,
                sums,
                o,
                lse,
            };
            dispatch_pairs(isa, job);
        });
    });
}

/// Up to 32 queries of one head.
struct Block<'a> {
    shape: &'a AttentionShape,
    packed: &'a Packed,
    head: usize,
    first: usize,
    q: &'a [f32],
    /// `[2, depth / 16, 16, 16]`.
    q_tiles: &'a mut [f32],
    /// `[32, KEYS]`.
    logits: &'a mut [f32],
    /// `[2, KEYS / 32, 16, 16]`.
    p: &'a mut [f32],
    /// `[32, width]`.
    sums: &'a mut [f32],
    o: &'a mut [f32],
    lse: &'a mut [f32],
}

impl Job for Block<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(S::LANES, SIDE, "tiles come with AVX-512");
        let Self {
            shape,
            packed,
            q_tiles,
            logits,
            p,
            sums,
            ..
        } = self;
        let AttentionShape { n, m, d, scale, .. } = *shape;
        let Packed {
            depth, keys, width, ..
        } = *packed;
        let count = self.lse.len();
        Pack {
            rows: count,
            layout: Layout::Tiles,
            ..rows(self.q, d, self.head * n * d, self.first, depth, q_tiles)
        }
        .run(s);
        let k = &packed.k.get()[self.head * keys * depth..][..keys * depth];
        let v = &packed.v.get()[self.head * width * keys / 2..][..width * keys / 2];
        let tiles = Tiles::new().expect("the set has tiles");
        let steps = amx::Operands::steps_of_panel((depth / DEPTH).max(KEYS / 2 / DEPTH));
        let tall = count.div_ceil(SIDE);
        sums.fill(0.0);
        let mut softmax = [Softmax::new(s); BLOCK];
        for k0 in (0..keys).step_by(KEYS) {
            let wide = KEYS.min(keys - k0);
            for n0 in (0..wide).step_by(BLOCK) {
                let b = &k[(k0 + n0) * depth..][..BLOCK * depth];
                let out = Place {
                    at: logits[n0..].as_mut_ptr(),
                    stride: 4 * KEYS,
                };
                let steps = &steps[..depth / DEPTH];
                let places = [Place::zeros(), out];
                let operands = amx::Operands::of_panel(q_tiles, SIDE * depth, b, steps, places);
                // SAFETY: the queries are whole tiles of `depth`, the panel of keys as well; the logits have 32 rows.
                unsafe { tiles.run([tall, 2], &operands) };
            }
            for (i, row) in logits.chunks_exact_mut(KEYS).enumerate().take(count) {
                let row = &mut row[..wide];
                let sums = &mut sums[i * width..(i + 1) * width];
                softmax[i].take(s, row, (m - k0).min(wide), scale, sums);
                let to = &mut p[i / SIDE * (KEYS / 2 / DEPTH) * TILE + i % SIDE * DEPTH..];
                for (to, row) in to.chunks_mut(TILE).zip(row.chunks_exact(2 * SIDE)) {
                    // SAFETY: a row of a tile is a vector, `row` two of them.
                    unsafe {
                        let (a, b) = (s.load(row.as_ptr()), s.load(row[SIDE..].as_ptr()));
                        s.store(to[..DEPTH].as_mut_ptr(), s.pairs_within(a, b));
                    }
                }
            }
            for n0 in (0..width).step_by(BLOCK) {
                let b = &v[n0 * keys / 2 + k0 / 2 * BLOCK..][..wide / 2 * BLOCK];
                let sums = Place {
                    at: sums[n0..].as_mut_ptr(),
                    stride: 4 * width,
                };
                let steps = &steps[..wide / 2 / DEPTH];
                let operands = amx::Operands::of_panel(p, SIDE * KEYS / 2, b, steps, [sums; 2]);
                // SAFETY: the probabilities are whole tiles of KEYS, the panel of values has `wide` keys; there are 32
                // rows of sums.
                unsafe { tiles.run([tall, 2], &operands) };
            }
        }
        for i in 0..count {
            let sums = &mut sums[i * width..(i + 1) * width];
            self.lse[i] = softmax[i].finish(s, sums);
            self.o[i * d..(i + 1) * d].copy_from_slice(&sums[..d]);
        }
    }
}
