//! The gradients: probabilities are made again from the logarithms of the rows' sums.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    super::{
        isa::Isa,
        packed::Lanes,
        pairs::round,
        shared::{Shared, unwritten},
        simd::{Job, Simd, dispatch},
    },
    AttentionShape, Bias, KEYS, QUERIES,
    product::{InBlocks, InColumns, InRows, Sum, pack, product},
    rows::{add_bias, dot, exponentials, scores},
    transpose,
};

/// What the backward is given.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    /// Queries `[images, n, heads, d]`.
    pub(crate) q: &'a [f32],
    /// Keys `[images, m, heads, d]`.
    pub(crate) k: &'a [f32],
    /// Values `[images, m, heads, d]`.
    pub(crate) v: &'a [f32],
    /// The output `[images, n, heads, d]`.
    pub(crate) o: &'a [f32],
    /// Logarithms of the rows' sums `[images, heads, n]`.
    pub(crate) lse: &'a [f32],
    /// What was added to the logits.
    pub(crate) bias: Option<Bias<'a>>,
}

/// The gradients of `q`, `k` and `v` for the output's gradient `dy` `[images, n, heads, d]`.
pub(crate) fn backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &Saved<'_>,
    dy: &[f32],
) -> [Vec<f32>; 3] {
    let AttentionShape { n, m, d, .. } = *shape;
    let heads = shape.all();
    assert_eq!(dy.len(), heads * n * d);
    if dy.is_empty() || m == 0 {
        return [n, m, m].map(|tokens| vec![0.0; heads * tokens * d]);
    }
    let rounded;
    let mut saved = *saved;
    if shape.by_tiles(isa, saved.bias) {
        // The logarithms are those of rounded operands' logits.
        rounded = [saved.q, saved.k, saved.v].map(rounded_values);
        [saved.q, saved.k, saved.v] = [&rounded[0], &rounded[1], &rounded[2]];
    }
    let width = d.next_multiple_of(dispatch(isa, Lanes));
    // SAFETY: every head's rows are written.
    let mut gradients = [n, m, m].map(|tokens| unsafe { unwritten(heads * tokens * d) });
    let [dq, dk, dv] = gradients.each_mut().map(|gradient| Shared::new(gradient));
    (0..heads).into_par_iter().for_each(|head| {
        let [q, o, dy] = [saved.q, saved.o, dy].map(|x| head_rows(shape, x, head, n));
        let [k, v] = [saved.k, saved.v].map(|x| head_rows(shape, x, head, m));
        let job = Backward {
            shape,
            width,
            saved: Saved {
                q: &q,
                k: &k,
                v: &v,
                o: &o,
                lse: &saved.lse[head * n..(head + 1) * n],
                bias: saved.bias.map(|bias| Bias(bias.head(shape, head))),
            },
            dy: &dy,
            head,
            dq: &dq,
            dk: &dk,
            dv: &dv,
        };
        dispatch(isa, job);
    });
    gradients
}

/// A head's rows of `x` `[images, tokens, heads, d]`, `[tokens, d]`.
fn head_rows<'a>(
    shape: &AttentionShape,
    x: &'a [f32],
    head: usize,
    tokens: usize,
) -> Cow<'a, [f32]> {
    let d = shape.d;
    let x = &x[shape.first(head, tokens)..];
    if shape.heads == 1 {
        return Cow::Borrowed(&x[..tokens * d]);
    }
    let rows = x.chunks(shape.token()).take(tokens);
    Cow::Owned(rows.flat_map(|row| &row[..d]).copied().collect())
}

/// The values rounded to bfloat16.
fn rounded_values(x: &[f32]) -> Vec<f32> {
    (x.par_iter().with_min_len(1 << 14))
        .map(|x| f32::from_bits(u32::from(round(*x)) << 16))
        .collect()
}

/// One head.
struct Backward<'a> {
    shape: &'a AttentionShape,
    width: usize,
    /// The head's own rows.
    saved: Saved<'a>,
    dy: &'a [f32],
    head: usize,
    /// All heads' gradients.
    dq: &'a Shared,
    dk: &'a Shared,
    dv: &'a Shared,
}

impl Job for Backward<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AttentionShape { n, m, d, scale, .. } = *self.shape;
        let (width, saved) = (self.width, self.saved);
        let rows_of = |x: &[f32], rows: usize| {
            let mut to = vec![0.0f32; rows * width];
            for (to, x) in to.chunks_exact_mut(width).zip(x.chunks_exact(d)) {
                to[..d].copy_from_slice(x);
            }
            to
        };
        let (q, dy) = (rows_of(saved.q, n), rows_of(self.dy, n));
        let (q_packed, dy_packed) = (
            pack(saved.q, d, [n, d], S::ROWS),
            pack(self.dy, d, [n, d], S::ROWS),
        );
        let queries = QUERIES / S::ROWS * S::ROWS;
        let mut dq = vec![0.0f32; n * width];
        let deltas: Vec<f32> = (self.dy.chunks_exact(d))
            .zip(saved.o.chunks_exact(d))
            .map(|(dy, o)| dot(s, dy, o))
            .collect();
        let mut p = vec![0.0f32; QUERIES * KEYS];
        let mut ds = vec![0.0f32; QUERIES * KEYS];
        let (mut kt, mut vt) = (vec![0.0f32; d * KEYS], vec![0.0f32; d * KEYS]);
        for k0 in (0..m).step_by(KEYS) {
            let keys = KEYS.min(m - k0);
            let part = k0 * d..(k0 + keys) * d;
            transpose(&saved.k[part.clone()], d, [keys, d], &mut kt, KEYS);
            transpose(&saved.v[part.clone()], d, [keys, d], &mut vt, KEYS);
            let k = rows_of(&saved.k[part], keys);
            let (mut dk, mut dv) = (vec![0.0f32; keys * width], vec![0.0f32; keys * width]);
            for q0 in (0..n).step_by(queries) {
                let rows = queries.min(n - q0);
                if self.shape.causal && q0 + rows <= k0 {
                    continue;
                }
                // SAFETY: every operand holds the rows and columns that the sizes say.
                unsafe {
                    let (q, dy) = (q.as_ptr().add(q0 * width), dy.as_ptr().add(q0 * width));
                    let wide = [rows, KEYS, d];
                    let to = (p.as_mut_ptr(), KEYS);
                    let a = InBlocks(q_packed.as_ptr().add(q0 * d));
                    product(s, wide, a, (kt.as_ptr(), KEYS), to, Sum::New);
                    let to = (ds.as_mut_ptr(), KEYS);
                    let a = InBlocks(dy_packed.as_ptr().add(q0 * d));
                    product(s, wide, a, (vt.as_ptr(), KEYS), to, Sum::New);
                    let both = p.chunks_exact_mut(KEYS).zip(ds.chunks_exact_mut(KEYS));
                    for (i, (p, ds)) in both.enumerate().take(rows) {
                        let visible = if self.shape.causal {
                            keys.min((q0 + i + 1).saturating_sub(k0))
                        } else {
                            keys
                        };
                        if let Some(Bias(bias)) = saved.bias {
                            let bias = &bias[(q0 + i) * m + k0..][..visible];
                            add_bias(s, p, scale, bias);
                            exponentials(s, p, 1.0, saved.lse[q0 + i]);
                        } else {
                            exponentials(s, p, scale, saved.lse[q0 + i]);
                        }
                        p[visible..].fill(0.0);
                        scores(s, p, ds, deltas[q0 + i], scale);
                        ds[visible..].fill(0.0);
                    }
                    let narrow = [keys, width, rows];
                    let to = (dv.as_mut_ptr(), width);
                    product(
                        s,
                        narrow,
                        InColumns::<KEYS>(p.as_ptr()),
                        (dy, width),
                        to,
                        Sum::Add,
                    );
                    let to = (dk.as_mut_ptr(), width);
                    product(
                        s,
                        narrow,
                        InColumns::<KEYS>(ds.as_ptr()),
                        (q, width),
                        to,
                        Sum::Add,
                    );
                    let to = (dq.as_mut_ptr().add(q0 * width), width);
                    let size = [rows, width, keys];
                    product(
                        s,
                        size,
                        InRows::<KEYS>(ds.as_ptr()),
                        (k.as_ptr(), width),
                        to,
                        Sum::Add,
                    );
                }
            }
            self.strip(&dk, self.dk, k0, m);
            self.strip(&dv, self.dv, k0, m);
        }
        self.strip(&dq, self.dq, 0, n);
    }
}

impl Backward<'_> {
    /// Rows of `width` as the head's in `to`, from row `first` on of so many tokens.
    fn strip(&self, from: &[f32], to: &Shared, first: usize, tokens: usize) {
        let d = self.shape.d;
        let at = self.shape.first(self.head, tokens);
        for (row, from) in from.chunks_exact(self.width).enumerate() {
            // SAFETY: this head's rows belong to this task alone, and the gradients outlive it.
            unsafe {
                let to = to.at(at + (first + row) * self.shape.token(), d);
                std::slice::from_raw_parts_mut(to, d).copy_from_slice(&from[..d]);
            }
        }
    }
}
