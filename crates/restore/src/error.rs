//! What can go wrong in a restoration, by whose fault.

/// An error of this crate. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request or a file does not make sense.
    #[error("{}", priors::one_line(.0))]
    Input(String),
    /// A valid request that this program does not implement.
    #[error("{}", priors::one_line(.0))]
    Unsupported(String),
    /// A prior's or adapter's files.
    #[error(transparent)]
    Prior(#[from] priors::Error),
    /// A picture.
    #[error(transparent)]
    Picture(#[from] pixels::Error),
}
