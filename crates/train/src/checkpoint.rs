//! What a run needs to go on where it stopped: values, averages, optimiser state, position.
//!
//! One folder, written beside and renamed, so that a run killed at any moment finds a whole one.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, TensorData};
use priors::weights::{Metadata, SafetensorsFile, Stored, write_safetensors};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    config::Precision,
    guard::Recent,
    loss_scale::LossScale,
    optimise::{AdamW, Named},
    origin::Origin,
};

/// The state of a run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Trained values.
    pub values: Named,
    /// Their average.
    pub average: Named,
    /// Optimiser state.
    pub optimiser: AdamW,
    /// Steps done.
    pub step: usize,
    /// The last losses.
    pub recent: Recent,
    /// What the loss is multiplied with.
    pub loss_scale: LossScale,
}

const FILE: &str = "checkpoint.safetensors";

/// Whether a run can go on in `folder`.
pub fn exists(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// Bytes of the checkpoint in `folder`; none where there is none.
pub(crate) fn bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join(FILE)).map_or(0, |about| about.len())
}

impl State {
    /// Writes the state into `folder`; a checkpoint that was there is replaced at once.
    ///
    /// # Errors
    /// A folder that cannot be written to, or a full disk; the old checkpoint stays.
    pub fn save(&self, folder: &Path, origin: &Origin) -> Result<(), Error> {
        let parts = self.parts();
        let mut header = BTreeMap::new();
        for (kind, named) in parts {
            for (name, values) in named {
                let stored = Stored {
                    dtype: DType::F32,
                    shape: vec![values.len()],
                };
                header.insert(format!("{kind}/{name}"), stored);
            }
        }
        let mut metadata = Metadata::from([
            ("step".into(), self.step.to_string()),
            ("updates".into(), self.optimiser.step.to_string()),
            ("recent".into(), self.recent.to_text()),
            ("config".into(), origin.config.clone()),
            ("data".into(), origin.data.clone()),
        ]);
        for (what, fingerprint) in &origin.files {
            metadata.insert(format!("{what}_files"), fingerprint.clone());
        }
        if let Some(text) = self.loss_scale.to_text() {
            metadata.insert("loss_scale".into(), text);
        }
        // Tensor by tensor: a copy of all would be the most memory of a run whose gradient is made in pieces.
        let tensor = |key: &str| {
            let (kind, name) = key.split_once('/').expect("as above");
            let part = parts.iter().find(|(part, _)| *part == kind);
            let values = part.expect("as above").1[name].clone();
            let n = values.len();
            Ok(TensorData::new(values, [n]))
        };
        Ok(write_safetensors(
            &folder.join(FILE),
            &header,
            &metadata,
            tensor,
        )?)
    }

    /// Reads the checkpoint of `folder`, if there is one.
    ///
    /// # Errors
    /// A damaged checkpoint, or one of a run with another configuration.
    pub fn load(folder: &Path, origin: &Origin) -> Result<Option<Self>, Error> {
        let path = folder.join(FILE);
        if !exists(folder) {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path)?;
        let damaged = || {
            Error::Input(format!(
                "{}: is no checkpoint of this program; delete it to start over",
                path.display()
            ))
        };
        let other = |what: &str| {
            Error::Input(format!(
                "{}: is from a run with {what}; give another `out`, or delete it to start over",
                path.display()
            ))
        };
        if file.metadata("config") != Some(&origin.config) {
            return Err(other("another configuration"));
        }
        // Checkpoints of version 0.1.0's first weeks have neither this nor what follows.
        if file
            .metadata("data")
            .is_some_and(|data| data != origin.data)
        {
            return Err(other("other pictures or captions in data.images"));
        }
        for (what, fingerprint) in &origin.files {
            let then = file.metadata(&format!("{what}_files"));
            if then.is_some_and(|then| then != fingerprint) {
                return Err(other(&format!(
                    "other files in `{what}` (put those back to go on)"
                )));
            }
        }
        let number = |key: &str| file.metadata(key).map(str::parse::<usize>);
        let step = number("step").and_then(Result::ok).ok_or_else(damaged)?;
        let updates = number("updates").unwrap_or(Ok(step));
        let recent = match file.metadata("recent") {
            Some(text) => Recent::from_text(text).ok_or_else(damaged)?,
            None => Recent::default(),
        };
        let loss_scale = match file.metadata("loss_scale") {
            Some(text) => LossScale::from_text(text).ok_or_else(damaged)?,
            None => LossScale::new(Precision::F32),
        };
        let mut state = Self {
            values: Named::new(),
            average: Named::new(),
            optimiser: AdamW::default(),
            step,
            recent,
            loss_scale,
        };
        state.optimiser.step = updates.map_err(|_| damaged())?;
        for key in file.names() {
            let (kind, name) = key.split_once('/').ok_or_else(damaged)?;
            let values = file
                .data(key)
                .and_then(|data| data.try_into_vec::<f32>().ok())
                .ok_or_else(damaged)?;
            let part = match kind {
                "value" => &mut state.values,
                "average" => &mut state.average,
                "m" => &mut state.optimiser.m,
                "v" => &mut state.optimiser.v,
                _ => return Err(damaged()),
            };
            part.insert(name.to_owned(), values);
        }
        Ok(Some(state))
    }

    /// SHA-256 of where the run stands and comes from: origin, step and trained values.
    pub(crate) fn digest(&self, origin: &Origin) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(&origin.config);
        hash.update(&origin.data);
        origin.files.values().for_each(|file| hash.update(file));
        hash.update(self.step.to_le_bytes());
        hash.update(self.recent.to_text());
        for (name, values) in &self.values {
            hash.update(name);
            for part in values.chunks(1 << 12) {
                let bytes: Vec<u8> = part.iter().flat_map(|v| v.to_le_bytes()).collect();
                hash.update(bytes);
            }
        }
        hash.finalize().into()
    }

    fn parts(&self) -> [(&'static str, &Named); 4] {
        [
            ("value", &self.values),
            ("average", &self.average),
            ("m", &self.optimiser.m),
            ("v", &self.optimiser.v),
        ]
    }
}
