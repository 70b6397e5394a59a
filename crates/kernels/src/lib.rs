//! Tensor operations with their gradients: convolution, linear maps, attention, norms, activations.
//!
//! Public functions take burn tensors and choose the path by device: on `flex` (the CPU) an extension
//! of ours with a handwritten forward and backward where one exists, elsewhere burn's own operations.
//! This crate knows no diffusion. It is the only one that may hold `unsafe`.
//!
//! Legend: `b` batch, `c` channels, `h w` rows and columns, `n` tokens, `d` width, `k` heads.

mod activation;
mod add;
mod allocator;
mod attention;
mod cat;
mod contiguous;
mod conv;
mod extension;
mod fast;
mod linear;
mod mapped;

mod norm;
mod plain;
mod pool;
mod products;
mod resample;

/// Refuses tensors without elements, whose means and maxima are no numbers.
fn refuse_empty(what: &str, dims: &[usize]) {
    assert!(
        dims.iter().all(|&n| n > 0),
        "{what}: an empty tensor, {dims:?}"
    );
}

pub use activation::{geglu, gelu, gelu_tanh, quick_gelu, silu};
pub use add::{add, add_gated, shift_channels};
pub use allocator::{Allocator, give_back};
pub use attention::{Mask, attention, attention_biased};
pub use cat::cat;
pub use contiguous::contiguous;
pub use conv::{Padding, conv2d};
pub use fast::isa::ignored_settings;
#[doc(hidden)]
pub use fast::peak::{fma_loop, fma_loop_flops};
pub use linear::{LowRank, linear, linear_low_rank};
pub use mapped::map_file;
pub use norm::{Activation, group_norm, layer_norm, layer_norm_adaptive, rms_norm};
pub use plain::with_plain_operations;
pub use pool::in_pool;
pub use products::{Products, with_products, with_stored_products};
pub use resample::{upsample_nearest, upsample_nearest2x};
