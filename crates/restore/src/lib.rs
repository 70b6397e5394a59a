//! Restoration with a diffusion prior: the paper.
