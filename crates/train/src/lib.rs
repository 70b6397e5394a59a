//! Training of priors and adapters.
