//! Diffusion priors as sequences of segments; knows no adapter.
