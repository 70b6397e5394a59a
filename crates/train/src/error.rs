//! What can go wrong in training, by whose fault.

use std::path::PathBuf;

/// An error of this crate. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration or the data does not make sense.
    #[error("{0}")]
    Input(String),
    /// The numbers went wrong.
    #[error("{0}")]
    Diverged(String),
    /// The device computes wrong gradients.
    #[error("{0}")]
    Device(String),
    /// A prior's files.
    #[error(transparent)]
    Prior(#[from] priors::Error),
    /// A picture.
    #[error(transparent)]
    Picture(#[from] pixels::Error),
    /// The adapter.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// The operating system refused.
    #[error("{path}: {source}; check that the file exists, the disk has room and may be written")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
