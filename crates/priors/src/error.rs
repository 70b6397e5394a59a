//! What can go wrong with weights and configurations, by whose fault.

use std::{borrow::Cow, path::PathBuf};

/// Characters of a message's start and end that are kept where it is longer than both.
const KEPT: [usize; 2] = [400, 200];

/// A message as one line of bounded length: names in files may hold anything. Control characters become spaces, the middle of a long
/// message dots.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let [start, end] = KEPT;
    if text.len() <= start + end && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let count = text.chars().count();
    if count <= start + end {
        return Cow::Owned(text.chars().map(plain).collect());
    }
    let first = text.chars().take(start);
    let last = text.chars().skip(count - end);
    Cow::Owned(
        first
            .chain(" ... ".chars())
            .chain(last)
            .map(plain)
            .collect(),
    )
}

/// An error of this crate. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file's contents cannot be understood.
    #[error("{}: {}", path.display(), one_line(what))]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// A tensor is missing, unused, or has another shape than the configuration says.
    #[error("{}: {}", path.display(), one_line(what))]
    Weights {
        /// The file or folder the tensor was wanted from.
        path: PathBuf,
        /// Which tensor, expected and got, and what to do.
        what: String,
    },
    /// A valid configuration that this program does not implement.
    #[error("{}: {}", path.display(), one_line(what))]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_that_ends_with_what_to_do() {
        assert_eq!(one_line("short; do that"), "short; do that");
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        let long = format!("tensor {} is missing; copy it again", "é".repeat(10_000));
        let line = one_line(&long);
        assert!(line.chars().count() < 620, "{line}");
        assert!(
            line.starts_with("tensor é") && line.ends_with("; copy it again"),
            "{line}"
        );
    }
}
