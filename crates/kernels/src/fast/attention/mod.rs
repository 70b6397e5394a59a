//! Scaled dot-product attention in blocks with an online softmax: no matrix of all queries by all keys.
//!
//! ```text
//! s = scale q kT        p = softmax(s)        o = p v
//! dv = pT do            ds = p (do vT - sum(do o)) scale        dq = ds k        dk = dsT q
//! ```
//!
//! The backward recomputes `p` from the logarithm of each row's sum (Dao et al., 2205.14135). One task makes a block of
//! queries of one head (forward) or one head (backward), always in the same order.

#![expect(
    unsafe_code,
    reason = "raw addresses keep the inner loops free of bounds checks"
)]

mod backward;
mod product;
mod rows;
mod tiles;

pub(crate) use backward::{Saved, backward};

use rayon::prelude::*;

use self::{
    product::{InBlocks, InRows, Sum, pack, product},
    rows::{Softmax, add_bias},
};
use super::{
    isa::Isa,
    packed::{Lanes, Rows},
    pairs::{Kernel, Products},
    shared::Shared,
    simd::{Job, Simd, dispatch},
};

/// Most queries of a block; a block has a multiple of the rows of a set's tiles.
const QUERIES: usize = 52;
/// Keys of a block, a multiple of every set's lanes.
const KEYS: usize = 64;

/// Sizes and rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionShape {
    /// Batch times heads.
    pub(crate) heads: usize,
    /// Queries.
    pub(crate) n: usize,
    /// Keys.
    pub(crate) m: usize,
    /// Width of a head.
    pub(crate) d: usize,
    /// Multiplies the logits.
    pub(crate) scale: f32,
    /// Whether query `i` sees keys `0..=i` only.
    pub(crate) causal: bool,
    /// How products are made; of bfloat16 values where there are matrix tiles, neither a bias nor a causal mask.
    pub(crate) products: Products,
}

/// What is added to the logits after the scale, `[k, n, m]`: head `i` of all takes matrix `i mod k`.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a>(pub(crate) &'a [f32]);

impl<'a> Bias<'a> {
    /// The matrix of a head.
    fn head(self, shape: &AttentionShape, head: usize) -> &'a [f32] {
        let size = shape.n * shape.m;
        &self.0[head % (self.0.len() / size) * size..][..size]
    }
}

impl AttentionShape {
    /// Whether the products are those of matrix tiles.
    pub(super) fn by_tiles(&self, isa: Isa, bias: Option<Bias<'_>>) -> bool {
        self.products.kernel(isa) == Kernel::Tiles && !self.causal && bias.is_none()
    }

    /// Keys that some query of `first..end` sees.
    fn seen(&self, end: usize) -> usize {
        if self.causal { self.m.min(end) } else { self.m }
    }
}

/// `o` `[heads, n, d]` for `q` `[heads, n, d]`, `k` and `v` `[heads, m, d]`, and the logarithm of each row's sum of
/// exponentials, `[heads, n]`.
pub(crate) fn forward(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: Option<Bias<'_>>,
) -> (Vec<f32>, Vec<f32>) {
    let AttentionShape { heads, n, m, d, .. } = *shape;
    assert_eq!(
        [q.len(), k.len(), v.len()],
        [heads * n * d, heads * m * d, heads * m * d]
    );
    let mut o = vec![0.0; heads * n * d];
    let mut lse = vec![0.0; heads * n];
    if o.is_empty() || m == 0 {
        return (o, lse);
    }
    if shape.by_tiles(isa, bias) {
        tiles::forward(isa, shape, [q, k, v], &mut o, &mut lse);
        return (o, lse);
    }
    assert!(bias.is_none_or(|bias| !bias.0.is_empty() && bias.0.len().is_multiple_of(n * m)));
    let width = d.next_multiple_of(dispatch(isa, Lanes));
    let blocks = m.div_ceil(KEYS);
    // Keys across their block, values in padded rows.
    let mut kt = vec![0.0; heads * blocks * d * KEYS];
    kt.par_chunks_mut(d * KEYS)
        .enumerate()
        .for_each(|(i, kt)| transpose(block_rows(k, i / blocks, m, d, i % blocks), d, kt, KEYS));
    let padded;
    let v = if width == d {
        v
    } else {
        padded = pad_rows(v, d, width);
        &padded
    };
    let queries = queries(isa);
    let tasks = n.div_ceil(queries);
    let (o_out, lse_out) = (Shared::new(&mut o), Shared::new(&mut lse));
    (0..heads * tasks).into_par_iter().for_each(|task| {
        // The last blocks of a causal head take longest.
        let (head, i) = (task / tasks, tasks - 1 - task % tasks);
        let first = i * queries;
        let rows = queries.min(n - first);
        // SAFETY: these rows belong to this task alone, and both vectors outlive it.
        let (o, lse) = unsafe {
            let at = head * n + first;
            let o = std::slice::from_raw_parts_mut(o_out.at(at * d, rows * d), rows * d);
            let lse = std::slice::from_raw_parts_mut(lse_out.at(at, rows), rows);
            (o, lse)
        };
        let job = Forward {
            shape,
            first,
            rows,
            width,
            q: &q[(head * n + first) * d..][..rows * d],
            kt: &kt[head * blocks * d * KEYS..][..blocks * d * KEYS],
            v: &v[head * m * width..][..m * width],
            bias: bias.map(|bias| bias.head(shape, head)),
            o,
            lse,
        };
        dispatch(isa, job);
    });
    (o, lse)
}

/// Queries of a block.
fn queries(isa: Isa) -> usize {
    let rows = dispatch(isa, Rows);
    QUERIES / rows * rows
}

/// The rows of block `block` of a head's `[rows, d]`.
fn block_rows(x: &[f32], head: usize, rows: usize, d: usize, block: usize) -> &[f32] {
    let first = block * KEYS;
    &x[(head * rows + first) * d..(head * rows + rows.min(first + KEYS)) * d]
}

/// Columns of `x` `[rows, d]` as rows of `width` in `to` `[d, width]`, with zeros after the last row of `x`.
fn transpose(x: &[f32], d: usize, to: &mut [f32], width: usize) {
    let rows = x.len() / d;
    for (c, to) in to.chunks_exact_mut(width).enumerate() {
        for (to, x) in to.iter_mut().zip(x[c..].iter().step_by(d)) {
            *to = *x;
        }
        to[rows..].fill(0.0);
    }
}

/// `x` `[rows, d]` as `[rows, width]`.
fn pad_rows(x: &[f32], d: usize, width: usize) -> Vec<f32> {
    let mut to = vec![0.0; x.len() / d * width];
    to.par_chunks_mut(width)
        .zip(x.par_chunks(d))
        .with_min_len(64)
        .for_each(|(to, x)| to[..d].copy_from_slice(x));
    to
}

/// A block of queries of one head.
struct Forward<'a> {
    shape: &'a AttentionShape,
    first: usize,
    rows: usize,
    width: usize,
    q: &'a [f32],
    kt: &'a [f32],
    v: &'a [f32],
    /// The head's, `[n, m]`.
    bias: Option<&'a [f32]>,
    o: &'a mut [f32],
    lse: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AttentionShape { m, d, .. } = *self.shape;
        let (rows, width) = (self.rows, self.width);
        // With a bias the logits are scaled where it is added.
        let scale = if self.bias.is_some() {
            1.0
        } else {
            self.shape.scale
        };
        let mut p = vec![0.0f32; QUERIES * KEYS];
        let mut sums = vec![0.0f32; rows * width];
        let mut softmax = [Softmax::new(s); QUERIES];
        let seen = self.shape.seen(self.first + rows);
        let packed = pack(self.q, d, S::ROWS);
        for k0 in (0..seen).step_by(KEYS) {
            let keys = KEYS.min(seen - k0);
            // SAFETY: q has `rows` rows of d; the block of kt d rows of KEYS; p room for both.
            unsafe {
                let kt = self.kt.as_ptr().add(k0 * d);
                let size = [rows, KEYS, d];
                let a = InBlocks(packed.as_ptr());
                product(s, size, a, (kt, KEYS), (p.as_mut_ptr(), KEYS), Sum::New);
            }
            for (i, p) in p.chunks_exact_mut(KEYS).enumerate().take(rows) {
                let visible = if self.shape.causal {
                    keys.min((self.first + i + 1).saturating_sub(k0))
                } else {
                    keys
                };
                if let Some(bias) = self.bias {
                    let bias = &bias[(self.first + i) * m + k0..][..visible];
                    add_bias(s, p, self.shape.scale, bias);
                }
                if visible == 0 {
                    p.fill(0.0);
                    continue;
                }
                let sums = &mut sums[i * width..(i + 1) * width];
                softmax[i].take(s, p, visible, scale, sums);
            }
            // SAFETY: p has `rows` rows of KEYS, v `keys` rows of `width` from k0, sums `rows` rows of `width`.
            unsafe {
                let v = self.v.as_ptr().add(k0 * width);
                let size = [rows, width, keys];
                let a = InRows::<KEYS>(p.as_ptr());
                product(s, size, a, (v, width), (sums.as_mut_ptr(), width), Sum::Add);
            }
        }
        for i in 0..rows {
            let sums = &mut sums[i * width..(i + 1) * width];
            self.lse[i] = softmax[i].finish(s, sums);
            self.o[i * d..(i + 1) * d].copy_from_slice(&sums[..d]);
        }
    }
}
