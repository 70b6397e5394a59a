//! A U-Net's way down and its middle, alone: the part that a ControlNet copies.

use super::build::Builder;
use super::{Segment, UnetConfig, UnetFlow};
use crate::{Error, nn::Tap, weights::Weights};

/// The way down and the middle, `down_blocks.*` and `mid_block.*`.
#[derive(Clone, Debug)]
pub struct UnetEncoder {
    segments: Vec<Segment>,
    skips: Vec<usize>,
    channels: usize,
}

impl UnetEncoder {
    /// Builds the part from `w`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn new(config: &UnetConfig, w: &Weights) -> Result<Self, Error> {
        let mut builder = Builder::new(config, w);
        let skips = builder.down()?;
        let middle = builder.sites.last();
        Ok(Self {
            skips,
            channels: middle.map_or(0, |site| site.channels),
            segments: builder.segments,
        })
    }

    /// Channels of each skip; the first is the feature that enters.
    pub fn skips(&self) -> &[usize] {
        &self.skips
    }

    /// Channels of the feature that leaves the middle.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Segments, as many as the whole U-Net has up to the end of its middle.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Walks a flow as [`crate::flow::Prior::enter`] makes it to the end of the middle.
    pub fn forward(&self, flow: UnetFlow, tap: &dyn Tap) -> UnetFlow {
        let step = |flow, segment: &Segment| segment.forward(flow, tap);
        self.segments.iter().fold(flow, step)
    }
}
