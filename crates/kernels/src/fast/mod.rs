//! Operations on contiguous f32 slices, vectorised and spread over rayon's threads.
//!
//! Every output value is computed by one task in one order, so results have the same bits for any
//! number of threads.

pub(crate) mod add;
mod amx;
pub(crate) mod attention;
mod by_outputs;
pub(crate) mod conv;
mod dot;
pub(crate) mod elementwise;
pub(crate) mod enlarge;
mod expand;
mod gathered;
mod gemm;
pub(crate) mod isa;
mod kept;
pub(crate) mod linear;
pub(crate) mod loops;
pub(crate) mod norm;
mod packed;
pub(crate) mod pairs;
pub(crate) mod peak;
pub(crate) mod row_norm;
pub(crate) mod shared;
mod simd;
pub(crate) mod stored;
mod tile;
mod weight_grad;
mod weight_grad_pairs;
mod winograd;

#[cfg(test)]
mod tests;
