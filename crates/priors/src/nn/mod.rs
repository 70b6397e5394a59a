//! Layers: linear, convolution, norms, attention, time embedding, token tables. They hold tensors in the file's
//! layout and call `kernels`.

mod attention;
mod conv;
mod embedding;
mod linear;
mod norm;
mod resnet;
mod time;

pub(crate) use attention::attend;
pub use attention::{Attention, FeedForward, TransformerLayer};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::{Bare, Bias, Linear, Tap};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use resnet::{Resnet, ResnetConfig};
pub use time::{TimestepEmbedding, sinusoid};
