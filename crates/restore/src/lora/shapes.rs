//! What a LoRA may change: the weights of a prior's network and text encoders, by configuration alone.

use std::collections::BTreeMap;

use priors::folder::{Folder, Shapes};

use crate::Error;

/// The text encoders' sub-folders.
pub(super) const TEXT_ENCODERS: [&str; 3] = ["text_encoder", "text_encoder_2", "text_encoder_3"];

/// Names and shapes of the tensors of a prior's parts.
#[derive(Clone, Debug)]
pub struct PriorShapes {
    network: &'static str,
    parts: BTreeMap<&'static str, Shapes>,
}

impl PriorShapes {
    /// Of the prior in `folder`; a text encoder that it has no configuration of is left out.
    ///
    /// # Errors
    /// A missing or unsupported configuration.
    pub fn of(folder: &Folder) -> Result<Self, Error> {
        let network = folder.network();
        let mut parts = BTreeMap::from([(network, folder.shapes(network)?)]);
        for part in TEXT_ENCODERS {
            if folder.has(&format!("{part}/config.json")) {
                parts.insert(part, folder.shapes(part)?);
            }
        }
        Ok(Self { network, parts })
    }

    /// The network's sub-folder.
    pub fn network(&self) -> &'static str {
        self.network
    }

    /// The tensors of a part; none of one that the prior does not have.
    pub fn part(&self, part: &str) -> Option<&Shapes> {
        self.parts.get(part)
    }

    /// How many text encoders there are.
    pub(super) fn text_encoders(&self) -> usize {
        self.parts.len() - 1
    }

    /// The shape of a module's weight that the names have found.
    pub(super) fn weight(&self, part: &str, module: &str) -> &[usize] {
        &self.parts[part][&format!("{module}.weight")]
    }
}
