//! Restores real photographs with a diffusion prior and a restoration adapter.
