//! A product with a low-rank update, whose narrow product is made from the same packed rows.

use rayon::prelude::*;

use super::{
    super::{
        amx::Next, isa::Isa, kept::Kept, loops::multiply, pairs::Kernel, shared::Shared,
        simd::dispatch, stored::Stored,
    },
    Bias, Gemm, More, Operand, PACKED, Plan, Stretch, elements,
    micro::Start,
    run,
    tiles::{BLOCK, Task},
};

/// A low-rank update of `b`: `scale * wide narrow`.
#[derive(Clone, Copy)]
pub(in super::super) struct Update<'a> {
    /// Rank.
    pub(in super::super) rank: usize,
    /// `[rank, k]`.
    pub(in super::super) narrow: Operand<'a>,
    /// `[n, rank]`.
    pub(in super::super) wide: Operand<'a>,
    /// The narrow product is multiplied with it.
    pub(in super::super) scale: f32,
}

/// The product with `b` updated into `out` `[m, n]`, and the narrow product, scaled, into `low` `[m, rank]`.
pub(in super::super) fn run_with_update(
    isa: Isa,
    gemm: &Gemm<'_>,
    update: &Update<'_>,
    low: &mut [f32],
    out: &mut [f32],
) {
    let Gemm { batch, m, n, k, .. } = *gemm;
    let rank = update.rank;
    assert!(batch == 1 && gemm.more.is_none());
    assert!(low.len() == m * rank && out.len() == m * n && rank > 0);
    let narrow = Gemm {
        n: rank,
        b: update.narrow,
        bias: Bias::None,
        ..*gemm
    };
    let kernel = gemm.products.kernel(isa);
    // The rows stay packed for both products, where they are packed at once.
    let padded = elements(kernel, k) + elements(kernel, rank);
    if kernel != Kernel::Tiles || m * n * k == 0 || padded * m.next_multiple_of(BLOCK) > PACKED {
        run(isa, &narrow, low);
        multiply(low, update.scale);
        run(isa, &with_more(gemm, update, low), out);
        return;
    }
    let mut narrow = Plan::new(isa, &narrow);
    narrow.padded = padded;
    let (_, mut a) = narrow.room_for_blocks();
    narrow.rows_with_update(a.get_mut(), update.scale, low);
    let whole = with_more(gemm, update, low);
    let whole = Plan::new(isa, &whole);
    whole.times_all_columns(0..whole.blocks.sizes.len(), a.get(), &Shared::new(out));
}

impl Plan<'_> {
    /// Packs all rows, makes the narrow product of each block while it is in the cache, and packs that behind it.
    fn rows_with_update(&self, a: &mut [f32], factor: f32, low: &mut [f32]) {
        let (rank, panels) = (self.gemm.n, self.panels_each());
        let chunks = || {
            let starts = (0..self.summed).step_by(self.chunk);
            starts.map(|k0| (k0, self.chunk.min(self.summed - k0)))
        };
        // SAFETY: the panels fill what is read.
        let mut b = unsafe { Kept::new(panels * self.width * self.summed) };
        let mut rest = b.get_mut();
        for (k0, depth) in chunks() {
            for panel in 0..panels {
                let (to, tail) = rest.split_at_mut(self.width * depth);
                self.pack_panel(panel, panels, k0..k0 + depth, to);
                rest = tail;
            }
        }
        let b = b.get();
        let blocks = self.parts(0..self.blocks.sizes.len(), a).into_par_iter();
        let low = low.par_chunks_mut(self.blocks.sizes[0] * rank);
        blocks.zip(low).for_each(|((block, a), low)| {
            let stretch = &self.stretches[0];
            self.pack_block(block, stretch, self.blocks.starts[block], a);
            for (k0, depth) in chunks() {
                let b = &b[k0 * panels * self.width..][..depth * panels * self.width];
                let task = Task {
                    a,
                    padded: self.padded,
                    rows: self.blocks.sizes[block],
                    b,
                    columns: rank,
                    c: low.as_mut_ptr(),
                    c_stride: rank,
                    start: if k0 > 0 { Start::Output } else { Start::Zero },
                    k0,
                    depth,
                    next: Next::nothing(b.as_ptr()),
                };
                dispatch(self.isa, task);
            }
            multiply(low, factor);
            let update = Stretch {
                a: Operand::rows(Stored::F32(low), rank),
                k: rank,
                elements: self.summed..self.padded,
                ..*stretch
            };
            self.pack_block(block, &update, 0, a);
        });
    }
}

/// The product with its sums going on over `low` times the wide factor.
fn with_more<'a>(gemm: &Gemm<'a>, update: &Update<'a>, low: &'a [f32]) -> Gemm<'a> {
    Gemm {
        more: Some(More {
            k: update.rank,
            a: Operand::rows(Stored::F32(low), update.rank),
            b: update.wide,
        }),
        ..*gemm
    }
}
