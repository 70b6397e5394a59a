//! Changing tensors while they are loaded.

use std::fmt::Debug;

use burn::tensor::TensorData;

/// Changes a network's tensors on their way from a file to the network: a merged low-rank update for example.
pub trait Edit: Debug + Send + Sync {
    /// The tensor to use for `name`; one that is not meant goes back as it came.
    fn edit(&self, name: &str, data: TensorData) -> TensorData;
}
