//! What can go wrong with weights and configurations, by whose fault.

use std::path::PathBuf;

/// An error of this crate. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file's contents cannot be understood.
    #[error("{path}: {what}")]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// A tensor is missing, unused, or has another shape than the configuration says.
    #[error("{path}: {what}")]
    Weights {
        /// The file or folder the tensor was wanted from.
        path: PathBuf,
        /// Which tensor, expected and got, and what to do.
        what: String,
    },
    /// A valid configuration that this program does not implement.
    #[error("{path}: {what}")]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The key, its value and what is supported.
        what: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}; check that the file exists and can be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn input(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Input {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn weights(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Weights {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.into(),
            what: what.into(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
