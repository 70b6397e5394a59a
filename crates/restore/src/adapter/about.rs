//! `reclair.json` of an adapter's folder: which prior it was trained for, how, and under what licence it is given.

use std::path::Path;

use priors::{folder::Folder, weights::write_atomically};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;

/// The file in an adapter's folder.
pub const ABOUT_FILE: &str = "reclair.json";

/// What an adapter's folder says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The prior it was trained for.
    pub prior: PriorId,
    /// How: stage, steps, hashes of configuration and data.
    #[serde(default)]
    pub training: Map<String, Value>,
    /// Under what licence it is given; nothing where nobody has said.
    #[serde(default)]
    pub licence: Option<String>,
}

/// A prior by name and weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorId {
    /// What it was called: `owner/name`, or its file or folder.
    pub name: String,
    /// `unet` or `transformer`.
    pub network: String,
    /// Its network's fingerprints, see [`Folder::fingerprints`].
    pub sha256: Vec<String>,
}

impl PriorId {
    /// Of the prior in `folder`, called `name`.
    ///
    /// # Errors
    /// A missing configuration, or weights that do not fit it.
    pub fn of(folder: &Folder, name: String) -> Result<Self, Error> {
        Ok(Self {
            name,
            network: folder.network().to_owned(),
            sha256: folder.fingerprints()?.to_vec(),
        })
    }
}

impl About {
    /// What the adapter in `folder` says; none where it has no such file.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn open(folder: &Folder) -> Result<Option<Self>, Error> {
        if !folder.has(ABOUT_FILE) {
            return Ok(None);
        }
        let value = folder.json(ABOUT_FILE)?;
        let about: Self =
            serde_json::from_value(value).map_err(|why| bad(folder, why.to_string()))?;
        let hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        if about.prior.sha256.is_empty() || !about.prior.sha256.iter().all(hash) {
            return Err(bad(folder, "prior.sha256 holds no SHA-256".to_owned()));
        }
        Ok(Some(about))
    }

    /// Writes it into an adapter's folder.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).expect("plain JSON");
        Ok(write_atomically(&folder.join(ABOUT_FILE), &text)?)
    }

    /// A line about `prior` when it is not the one that the adapter in `folder` was trained for.
    ///
    /// # Errors
    /// As [`Folder::fingerprints`].
    pub fn mismatch(&self, folder: &Folder, prior: &Folder) -> Result<Option<String>, Error> {
        let own = prior.fingerprints()?;
        if self.prior.sha256.iter().any(|hash| own.contains(hash)) {
            return Ok(None);
        }
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        Ok(Some(format!(
            "{}: this adapter was trained for {} ({}), and the prior has other weights ({}); the result may be worse than with that prior",
            folder.path(ABOUT_FILE).display(),
            self.prior
                .name
                .chars()
                .take(100)
                .collect::<String>()
                .replace(['\n', '\r'], " "),
            short(&self.prior.sha256[0]),
            short(&own[0]),
        )))
    }
}

fn bad(folder: &Folder, why: String) -> Error {
    let why: String = why.chars().take(200).collect();
    Error::Input(format!(
        "{}: does not say for which prior the adapter is ({why}); copy it again from the adapter's own folder, or delete it",
        folder.path(ABOUT_FILE).display()
    ))
}
