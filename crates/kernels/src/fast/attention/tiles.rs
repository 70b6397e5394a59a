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
        shared::{Scratch, with_scratch},
        simd::{Job, Simd, dispatch_pairs},
        stored::Stored,
    },
    AttentionShape, Results,
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
        let AttentionShape { m, d, .. } = *shape;
        let (heads, token) = (shape.all(), shape.token());
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
                    ..rows(shape, k, shape.first(head, m), first, depth, to)
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
                        k_stride: token,
                    },
                    rows: BLOCK.min(d - first),
                    k: m,
                    ..rows(shape, v, shape.first(head, m), first, keys / 2, to)
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

/// Packing of up to 32 rows of a head, which begins at `offset`, from row `first` on.
fn rows<'a>(
    shape: &AttentionShape,
    x: &'a [f32],
    offset: usize,
    first: usize,
    elements: usize,
    to: &'a mut [f32],
) -> Pack<'a> {
    Pack {
        from: Operand {
            values: Stored::F32(x),
            row_stride: shape.token(),
            k_stride: 1,
        },
        offset,
        first,
        rows: BLOCK,
        k: shape.d,
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
    let AttentionShape { n, .. } = *shape;
    let heads = shape.all();
    let packed = Packed::new(isa, shape, k, v);
    let tasks = n.div_ceil(BLOCK);
    let results = Results::new(o, lse);
    (0..heads * tasks).into_par_iter().for_each(|task| {
        let (head, first) = (task / tasks, task % tasks * BLOCK);
        let rows = BLOCK.min(n - first);
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
                count: rows,
                q,
                q_tiles,
                logits,
                p,
                sums,
                results: &results,
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
    /// Queries.
    count: usize,
    q: &'a [f32],
    /// `[2, depth / 16, 16, 16]`.
    q_tiles: &'a mut [f32],
    /// `[32, KEYS]`.
    logits: &'a mut [f32],
    /// `[2, KEYS / 32, 16, 16]`.
    p: &'a mut [f32],
    /// `[32, width]`.
    sums: &'a mut [f32],
    results: &'a Results,
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
            count,
            ..
        } = self;
        let AttentionShape { n, m, d, scale, .. } = *shape;
        let Packed {
            depth, keys, width, ..
        } = *packed;
        Pack {
            rows: count,
            layout: Layout::Tiles,
            ..rows(
                shape,
                self.q,
                shape.first(self.head, n),
                self.first,
                depth,
                q_tiles,
            )
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
                let to = &mut p[i / SIDE * (KEYS / 2 / DEPTH) * TILE + i % SIDE * DEPTH..];
                let visible = (m - k0).min(wide);
                softmax[i].take_pairs(s, row, visible, scale, sums, (to, TILE));
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
            let lse = softmax[i].finish(s, sums);
            // SAFETY: this row belongs to this task alone.
            unsafe { (self.results).write(shape, self.head, self.first + i, &sums[..d], lse) };
        }
    }
}
