//! What can go wrong with a picture from outside, by whose fault; every message ends with what to do.

use std::path::{Path, PathBuf};

/// An error about a picture, a file or a setting that came from outside this program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not what it claims to be: empty, truncated, damaged, or no picture at all.
    #[error("{}: {problem}; {advice}", path.display())]
    Input {
        /// The file, or the name the bytes came under.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The file may be sound, but is of a kind this program does not read or write.
    #[error("{}: {problem}; {advice}", path.display())]
    Unsupported {
        /// The file, or the name the bytes came under.
        path: PathBuf,
        /// What is not supported.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The picture is larger than the limits allow.
    #[error("{}: {problem}; {advice}", path.display())]
    Limits {
        /// The file, or the name the bytes came under.
        path: PathBuf,
        /// Which limit, and by how much.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The operating system refused to read or write.
    #[error("{}: {source}; {advice}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// Two things given together do not fit, or a setting is out of its range.
    #[error("{what}: expected {expected}, got {got}; {advice}")]
    Mismatch {
        /// The picture, the score or the setting.
        what: String,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
        /// What to do about it.
        advice: &'static str,
    },
}

impl Error {
    pub(crate) fn input(path: &Path, problem: impl Into<String>, advice: &'static str) -> Self {
        Self::Input {
            path: path.into(),
            problem: problem.into(),
            advice,
        }
    }

    pub(crate) fn unsupported(
        path: &Path,
        problem: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self::Unsupported {
            path: path.into(),
            problem: problem.into(),
            advice,
        }
    }

    pub(crate) fn limits(path: &Path, problem: impl Into<String>, advice: &'static str) -> Self {
        Self::Limits {
            path: path.into(),
            problem: problem.into(),
            advice,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error, advice: &'static str) -> Self {
        Self::Io {
            path: path.into(),
            source,
            advice,
        }
    }
}
