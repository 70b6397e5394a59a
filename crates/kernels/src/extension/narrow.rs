//! Operands rounded to half precision, as a GPU multiplies them: the products of the rounded values, summed in f32.

use burn::tensor::{DType, f16};
use rayon::prelude::*;

use super::{FlexTensor, floats, like, stored};
use crate::fast::{pairs::Products, stored::Stored};

/// Values a thread works on at a time.
const CHUNK: usize = 1 << 14;

/// The tensor to multiply for `products` as if they were of f32 values: for [`Products::F16`] its values are rounded, and
/// those beyond 65504 become infinite; otherwise it is the tensor itself.
pub(super) fn operand(tensor: &FlexTensor, products: Products) -> FlexTensor {
    if products != Products::F16 || tensor.dtype() == DType::F16 {
        return tensor.clone();
    }
    let round = |v: &f32| f16::from_f32(*v).to_f32();
    let values: Vec<f32> = match stored(tensor) {
        Stored::Bf16(values) => values
            .par_iter()
            .with_min_len(CHUNK)
            .map(|v| round(&v.to_f32()))
            .collect(),
        _ => floats(tensor)
            .par_iter()
            .with_min_len(CHUNK)
            .map(round)
            .collect(),
    };
    like(values, tensor)
}
