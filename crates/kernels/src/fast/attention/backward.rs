//! The gradients: probabilities are made again from the logarithms of the rows' sums.

use rayon::prelude::*;

use super::{
    super::{
        isa::Isa,
        packed::Lanes,
        pairs::round,
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
    /// Queries `[heads, n, d]`.
    pub(crate) q: &'a [f32],
    /// Keys `[heads, m, d]`.
    pub(crate) k: &'a [f32],
    /// Values `[heads, m, d]`.
    pub(crate) v: &'a [f32],
    /// The output `[heads, n, d]`.
    pub(crate) o: &'a [f32],
    /// Logarithms of the rows' sums `[heads, n]`.
    pub(crate) lse: &'a [f32],
    /// What was added to the logits.
    pub(crate) bias: Option<Bias<'a>>,
}

/// The gradients of `q`, `k` and `v` for the output's gradient `dy` `[heads, n, d]`.
pub(crate) fn backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &Saved<'_>,
    dy: &[f32],
) -> [Vec<f32>; 3] {
    let AttentionShape { heads, n, m, d, .. } = *shape;
    assert_eq!(dy.len(), heads * n * d);
    let mut dq = vec![0.0; heads * n * d];
    let mut dk = vec![0.0; heads * m * d];
    let mut dv = vec![0.0; heads * m * d];
    if dq.is_empty() || dk.is_empty() {
        return [dq, dk, dv];
    }
    let rounded;
    let mut saved = *saved;
    if shape.by_tiles(isa, saved.bias) {
        // The logarithms are those of rounded operands' logits.
        rounded = [saved.q, saved.k, saved.v].map(rounded_values);
        [saved.q, saved.k, saved.v] = [&rounded[0], &rounded[1], &rounded[2]];
    }
    let width = d.next_multiple_of(dispatch(isa, Lanes));
    dq.par_chunks_mut(n * d)
        .zip(dk.par_chunks_mut(m * d))
        .zip(dv.par_chunks_mut(m * d))
        .enumerate()
        .for_each(|(head, ((dq, dk), dv))| {
            let queries = head * n * d..(head + 1) * n * d;
            let keys = head * m * d..(head + 1) * m * d;
            let job = Backward {
                shape,
                width,
                saved: Saved {
                    q: &saved.q[queries.clone()],
                    k: &saved.k[keys.clone()],
                    v: &saved.v[keys],
                    o: &saved.o[queries.clone()],
                    lse: &saved.lse[head * n..(head + 1) * n],
                    bias: saved.bias.map(|bias| Bias(bias.head(shape, head))),
                },
                dy: &dy[queries],
                dq,
                dk,
                dv,
            };
            dispatch(isa, job);
        });
    [dq, dk, dv]
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
    saved: Saved<'a>,
    dy: &'a [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
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
        let (q_packed, dy_packed) = (pack(saved.q, d, S::ROWS), pack(self.dy, d, S::ROWS));
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
            transpose(&saved.k[part.clone()], d, &mut kt, KEYS);
            transpose(&saved.v[part.clone()], d, &mut vt, KEYS);
            let k = rows_of(&saved.k[part.clone()], keys);
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
            strip(&dk, width, &mut self.dk[part.clone()], d);
            strip(&dv, width, &mut self.dv[part], d);
        }
        strip(&dq, width, self.dq, d);
    }
}

/// Rows of `width` as rows of `d`.
fn strip(from: &[f32], width: usize, to: &mut [f32], d: usize) {
    for (to, from) in to.chunks_exact_mut(d).zip(from.chunks_exact(width)) {
        to.copy_from_slice(&from[..d]);
    }
}
