//! Linear maps `y[n][o] = bias[o] + sum over i of x[n][i] w[o][i]` and their gradients.

#![expect(unsafe_code, reason = "results that the products write")]

use rayon::prelude::*;

use super::{
    dot::{self, Dot, Order},
    gemm::{self, Bias, Gemm, More, Operand, Update},
    isa::Isa,
    loops::multiply,
    pairs::Products,
    shared::unwritten,
    stored::Stored,
};

/// Rows, inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinearShape {
    /// Rows of the input.
    pub(crate) n: usize,
    /// Inputs of a row.
    pub(crate) d_in: usize,
    /// Outputs of a row.
    pub(crate) d_out: usize,
    /// How products are made.
    pub(crate) products: Products,
}

impl LinearShape {
    /// The narrow product of a low-rank update, `d_in` to `rank`.
    pub(crate) fn narrow(self, rank: usize) -> Self {
        Self {
            d_out: rank,
            ..self
        }
    }

    /// The wide one, `rank` to `d_out`.
    pub(crate) fn wide(self, rank: usize) -> Self {
        Self { d_in: rank, ..self }
    }

    /// The same for operands that are rounded already.
    pub(crate) fn of_rounded(self) -> Self {
        Self {
            products: self.products.of_rounded(),
            ..self
        }
    }
}

/// Rows up to which packing the weight costs more than it gives.
const FEW: usize = 16;

/// `y`, `[n, d_out]`.
pub(crate) fn forward(
    isa: Isa,
    shape: &LinearShape,
    x: &[f32],
    weight: Stored<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    if shape.n > FEW {
        return product(isa, &of_rows(shape, x, weight, bias));
    }
    let LinearShape { n, d_in, d_out, .. } = *shape;
    assert_eq!(x.len(), n * d_in);
    // SAFETY: the product writes every value.
    let mut y = unsafe { unwritten(n * d_out) };
    let operands = Dot {
        a: weight,
        m: d_out,
        n,
        k: d_in,
        bias,
        order: Order::ByB,
    };
    let fill = |row: usize, k0: usize, to: &mut [f32]| {
        to.copy_from_slice(&x[row * d_in + k0..][..to.len()])
    };
    dot::run(isa, &operands, &fill, &mut y);
    y
}

/// A low-rank update of a linear map: `scale b a`, with `a` `[rank, d_in]` and `b` `[d_out, rank]`.
pub(crate) struct Factors<'a> {
    /// The narrow factor.
    pub(crate) a: Stored<'a>,
    /// The wide one.
    pub(crate) b: Stored<'a>,
    /// Rank.
    pub(crate) rank: usize,
    /// The narrow product is multiplied with it.
    pub(crate) scale: f32,
}

/// `y`, `[n, d_out]`, with the weight updated, and the narrow product `scale x aT`, `[n, rank]`.
pub(crate) fn forward_low_rank(
    isa: Isa,
    shape: &LinearShape,
    x: &[f32],
    weight: Stored<'_>,
    bias: Option<&[f32]>,
    factors: &Factors<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let LinearShape { n, d_in, d_out, .. } = *shape;
    let Factors { a, b, rank, scale } = *factors;
    assert_eq!((a.len(), b.len()), (rank * d_in, d_out * rank));
    if n > FEW {
        let gemm = of_rows(shape, x, weight, bias);
        let update = Update {
            rank,
            narrow: Operand::rows(a, d_in),
            wide: Operand::rows(b, rank),
            scale,
        };
        // SAFETY: the products write every value.
        let (mut y, mut low) = unsafe { (unwritten(n * d_out), unwritten(n * rank)) };
        gemm::run_with_update(isa, &gemm, &update, &mut low, &mut y);
        return (y, low);
    }
    let mut low = forward(isa, &shape.narrow(rank), x, a, None);
    multiply(&mut low, scale);
    let mut y = forward(isa, shape, x, weight, bias);
    let term = forward(isa, &shape.wide(rank), &low, b, None);
    y.iter_mut().zip(term).for_each(|(y, term)| *y += term);
    (y, low)
}

/// The map of `x`, in packed parts.
fn of_rows<'a>(
    shape: &LinearShape,
    x: &'a [f32],
    weight: Stored<'a>,
    bias: Option<&'a [f32]>,
) -> Gemm<'a> {
    let LinearShape {
        n,
        d_in,
        d_out,
        products,
    } = *shape;
    assert_eq!(x.len(), n * d_in);
    Gemm {
        m: n,
        n: d_out,
        k: d_in,
        a: Operand::rows(Stored::F32(x), d_in),
        b: Operand::rows(weight, d_in),
        batch: 1,
        more: None,
        bias: bias.map_or(Bias::None, Bias::Columns),
        products,
    }
}

/// The product as a vector of its own.
fn product(isa: Isa, gemm: &Gemm<'_>) -> Vec<f32> {
    // SAFETY: the product writes every value.
    let mut out = unsafe { unwritten(gemm.m * gemm.n) };
    gemm::run(isa, gemm, &mut out);
    out
}

/// A low-rank update's part in a product: `low` `[rows, rank]` times `factor`, of another layout each time.
fn more<'a>(low: &'a [f32], rank: usize, factor: Operand<'a>) -> Option<More<'a>> {
    Some(More {
        k: rank,
        a: Operand::rows(Stored::F32(low), rank),
        b: factor,
    })
}

/// The gradient of `x`, `[n, d_in]`.
pub(crate) fn input_grad(
    isa: Isa,
    shape: &LinearShape,
    dy: &[f32],
    weight: Stored<'_>,
) -> Vec<f32> {
    input_grad_with(isa, shape, dy, weight, None)
}

/// The gradient of `x`, `[n, d_in]`, where a low-rank update reads it too: `d_low` `[n, rank]`, `a` `[rank, d_in]`.
pub(crate) fn input_grad_low_rank(
    isa: Isa,
    shape: &LinearShape,
    dy: &[f32],
    weight: Stored<'_>,
    d_low: &[f32],
    a: Stored<'_>,
) -> Vec<f32> {
    let rank = a.len() / shape.d_in;
    let update = more(d_low, rank, Operand::columns(a, shape.d_in));
    input_grad_with(isa, shape, dy, weight, update)
}

fn input_grad_with(
    isa: Isa,
    shape: &LinearShape,
    dy: &[f32],
    weight: Stored<'_>,
    more: Option<More<'_>>,
) -> Vec<f32> {
    let LinearShape {
        n,
        d_in,
        d_out,
        products,
    } = *shape;
    let gemm = Gemm {
        m: n,
        n: d_in,
        k: d_out,
        a: Operand::rows(Stored::F32(dy), d_out),
        b: Operand::columns(weight, d_in),
        batch: 1,
        more,
        bias: Bias::None,
        products,
    };
    product(isa, &gemm)
}

/// The gradient of the weight, `[d_out, d_in]`.
pub(crate) fn weight_grad(isa: Isa, shape: &LinearShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let LinearShape {
        n,
        d_in,
        d_out,
        products,
    } = *shape;
    let gemm = Gemm {
        m: d_out,
        n: d_in,
        k: n,
        a: Operand::columns(Stored::F32(dy), d_out),
        b: Operand::columns(Stored::F32(x), d_in),
        batch: 1,
        more: None,
        bias: Bias::None,
        products,
    };
    product(isa, &gemm)
}

/// The gradient of the bias, `[d_out]`: sums over rows, in f64.
pub(crate) fn bias_grad(shape: &LinearShape, dy: &[f32]) -> Vec<f32> {
    const COLUMNS: usize = 64;
    let d_out = shape.d_out;
    let mut db = vec![0.0; d_out];
    db.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, db)| {
        let first = i * COLUMNS;
        let mut sums = [0.0f64; COLUMNS];
        for row in dy.chunks_exact(d_out) {
            let row = &row[first..first + db.len()];
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, v)| *sum += f64::from(*v));
        }
        db.iter_mut()
            .zip(sums)
            .for_each(|(db, sum)| *db = sum as f32);
    });
    db
}
