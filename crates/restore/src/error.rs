//! What can go wrong in a restoration, by whose fault.

/// An error of this crate. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request or a file does not make sense.
    #[error("{0}")]
    Input(String),
    /// A valid request that this program does not implement.
    #[error("{0}")]
    Unsupported(String),
    /// A prior's or adapter's files.
    #[error(transparent)]
    Prior(#[from] priors::Error),
    /// A picture.
    #[error(transparent)]
    Picture(#[from] pixels::Error),
}
