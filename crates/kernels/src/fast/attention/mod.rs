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
    shared::{Shared, unwritten},
    simd::{Job, Simd, dispatch},
};

/// Most queries of a block; a block has a multiple of the rows of a set's tiles.
const QUERIES: usize = 52;
/// Keys of a block, a multiple of every set's lanes.
const KEYS: usize = 64;

/// Sizes and rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AttentionShape {
    /// Images of the batch.
    pub(crate) images: usize,
    /// Heads, side by side in each token.
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

/// What is added to the logits after the scale, `[k, n, m]`: head `i` of all images' takes matrix `i mod k`.
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
    /// Heads of all images, counted image by image.
    fn all(&self) -> usize {
        self.images * self.heads
    }

    /// Values of a token.
    fn token(&self) -> usize {
        self.heads * self.d
    }

    /// Where the first row of a head lies, of all images' with so many tokens each; rows are [`Self::token`] values apart.
    fn first(&self, head: usize, tokens: usize) -> usize {
        head / self.heads * tokens * self.token() + head % self.heads * self.d
    }

    /// Whether the products are those of matrix tiles.
    pub(super) fn by_tiles(&self, isa: Isa, bias: Option<Bias<'_>>) -> bool {
        self.products.kernel(isa) == Kernel::Tiles && !self.causal && bias.is_none()
    }

    /// Keys that some query of `first..end` sees.
    fn seen(&self, end: usize) -> usize {
        if self.causal { self.m.min(end) } else { self.m }
    }
}

/// `o` `[images, n, heads, d]` for `q` `[images, n, heads, d]`, `k` and `v` `[images, m, heads, d]`, and the logarithm of each
/// row's sum of exponentials, `[images, heads, n]`.
pub(crate) fn forward(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    bias: Option<Bias<'_>>,
) -> (Vec<f32>, Vec<f32>) {
    let AttentionShape { n, m, d, .. } = *shape;
    let heads = shape.all();
    assert_eq!(
        [q.len(), k.len(), v.len()],
        [heads * n * d, heads * m * d, heads * m * d]
    );
    if q.is_empty() || m == 0 {
        return (vec![0.0; heads * n * d], vec![0.0; heads * n]);
    }
    // SAFETY: the tasks write every head's rows.
    let (mut o, mut lse) = unsafe { (unwritten(heads * n * d), unwritten(heads * n)) };
    if shape.by_tiles(isa, bias) {
        tiles::forward(isa, shape, [q, k, v], &mut o, &mut lse);
        return (o, lse);
    }
    assert!(bias.is_none_or(|bias| !bias.0.is_empty() && bias.0.len().is_multiple_of(n * m)));
    let width = d.next_multiple_of(dispatch(isa, Lanes));
    let blocks = m.div_ceil(KEYS);
    // Keys across their block, values in padded rows.
    let mut kt = vec![0.0; heads * blocks * d * KEYS];
    kt.par_chunks_mut(d * KEYS).enumerate().for_each(|(i, kt)| {
        let (head, first) = (i / blocks, i % blocks * KEYS);
        let k = &k[shape.first(head, m) + first * shape.token()..];
        transpose(k, shape.token(), [KEYS.min(m - first), d], kt, KEYS);
    });
    let padded;
    let v = if width == d && shape.heads == 1 {
        v
    } else {
        padded = padded_rows(shape, v, m, width);
        &padded
    };
    let queries = queries(isa);
    let tasks = n.div_ceil(queries);
    let results = Results::new(&mut o, &mut lse);
    (0..heads * tasks).into_par_iter().for_each(|task| {
        // The last blocks of a causal head take longest.
        let (head, i) = (task / tasks, tasks - 1 - task % tasks);
        let first = i * queries;
        let rows = queries.min(n - first);
        let job = Forward {
            shape,
            head,
            first,
            rows,
            width,
            q: &q[shape.first(head, n) + first * shape.token()..],
            kt: &kt[head * blocks * d * KEYS..][..blocks * d * KEYS],
            v: &v[head * m * width..][..m * width],
            bias: bias.map(|bias| bias.head(shape, head)),
            results: &results,
        };
        dispatch(isa, job);
    });
    (o, lse)
}

/// What a forward writes, all heads'.
struct Results {
    /// `[images, n, heads, d]`.
    o: Shared,
    /// `[images, heads, n]`.
    lse: Shared,
}

impl Results {
    fn new(o: &mut [f32], lse: &mut [f32]) -> Self {
        Self {
            o: Shared::new(o),
            lse: Shared::new(lse),
        }
    }

    /// A head's output for one query and the logarithm of its sum.
    ///
    /// # Safety
    /// No one else writes this row, and both results are alive.
    #[inline(always)]
    unsafe fn write(&self, shape: &AttentionShape, head: usize, row: usize, o: &[f32], lse: f32) {
        let at = shape.first(head, shape.n) + row * shape.token();
        // SAFETY: by the caller's promise.
        unsafe {
            *self.lse.at(head * shape.n + row, 1) = lse;
            std::slice::from_raw_parts_mut(self.o.at(at, o.len()), o.len()).copy_from_slice(o);
        }
    }
}

/// Queries of a block.
fn queries(isa: Isa) -> usize {
    let rows = dispatch(isa, Rows);
    QUERIES / rows * rows
}

/// Columns of the `[rows, d]` values of `x`, rows `stride` apart, as rows of `width` in `to` `[d, width]`, with zeros after the
/// last row of `x`.
fn transpose(x: &[f32], stride: usize, [rows, d]: [usize; 2], to: &mut [f32], width: usize) {
    assert!(x.len() >= (rows - 1) * stride + d);
    for (c, to) in to.chunks_exact_mut(width).enumerate() {
        for (to, x) in to[..rows].iter_mut().zip(x[c..].iter().step_by(stride)) {
            *to = *x;
        }
        to[rows..].fill(0.0);
    }
}

/// `x` `[images, tokens, heads, d]` as `[images, heads, tokens, width]`.
fn padded_rows(shape: &AttentionShape, x: &[f32], tokens: usize, width: usize) -> Vec<f32> {
    let d = shape.d;
    let mut to = vec![0.0; shape.all() * tokens * width];
    to.par_chunks_mut(width)
        .enumerate()
        .with_min_len(64)
        .for_each(|(row, to)| {
            let first = shape.first(row / tokens, tokens) + row % tokens * shape.token();
            to[..d].copy_from_slice(&x[first..first + d]);
        });
    to
}

/// A block of queries of one head.
struct Forward<'a> {
    shape: &'a AttentionShape,
    head: usize,
    first: usize,
    rows: usize,
    width: usize,
    /// From the block's first row on.
    q: &'a [f32],
    kt: &'a [f32],
    v: &'a [f32],
    /// The head's, `[n, m]`.
    bias: Option<&'a [f32]>,
    results: &'a Results,
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
        let packed = pack(self.q, self.shape.token(), [rows, d], S::ROWS);
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
            let lse = softmax[i].finish(s, sums);
            // SAFETY: this row belongs to this task alone.
            unsafe { (self.results).write(self.shape, self.head, self.first + i, &sums[..d], lse) };
        }
    }
}
