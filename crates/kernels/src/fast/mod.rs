//! Operations on contiguous f32 slices, vectorised and spread over rayon's threads.
//!
//! Every output value is computed by one task in one order, so results have the same bits for any
//! number of threads.

pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod isa;
mod loops;
pub(crate) mod norm;
pub(crate) mod peak;
mod shared;
mod simd;
mod tile;
mod weight_grad;

#[cfg(test)]
mod tests;
