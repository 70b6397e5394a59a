//! What a run needs to go on where it stopped: values, averages, optimiser state, position.
//!
//! One folder, written beside and renamed, so that a run killed at any moment finds a whole one.

use std::path::Path;

use burn::tensor::{DType, TensorData};
use priors::weights::{Metadata, SafetensorsFile, Values, save_safetensors};

use crate::{
    Error,
    optimise::{AdamW, Named},
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
}

const FILE: &str = "checkpoint.safetensors";

impl State {
    /// Writes the state into `folder`; a checkpoint that was there is replaced at once.
    ///
    /// # Errors
    /// A folder that cannot be written to, or a full disk; the old checkpoint stays.
    pub fn save(&self, folder: &Path, config_hash: &str) -> Result<(), Error> {
        let mut all = Values::new();
        for (kind, named) in self.parts() {
            for (name, values) in named {
                all.insert(
                    format!("{kind}/{name}"),
                    TensorData::new(values.clone(), [values.len()]),
                );
            }
        }
        let metadata = Metadata::from([
            ("step".into(), self.step.to_string()),
            ("config".into(), config_hash.to_owned()),
        ]);
        Ok(save_safetensors(
            &folder.join(FILE),
            &all,
            DType::F32,
            &metadata,
        )?)
    }

    /// Reads the checkpoint of `folder`, if there is one.
    ///
    /// # Errors
    /// A damaged checkpoint, or one of a run with another configuration.
    pub fn load(folder: &Path, config_hash: &str) -> Result<Option<Self>, Error> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path)?;
        let damaged = || {
            Error::Input(format!(
                "{}: is no checkpoint of this program; delete it to start over",
                path.display()
            ))
        };
        if file.metadata("config") != Some(config_hash) {
            return Err(Error::Input(format!(
                "{}: is from a run with another configuration; give another `out`, or delete it to start over",
                path.display()
            )));
        }
        let step = file
            .metadata("step")
            .and_then(|step| step.parse().ok())
            .ok_or_else(damaged)?;
        let mut state = Self {
            values: Named::new(),
            average: Named::new(),
            optimiser: AdamW::default(),
            step,
        };
        state.optimiser.step = step;
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

    fn parts(&self) -> [(&'static str, &Named); 4] {
        [
            ("value", &self.values),
            ("average", &self.average),
            ("m", &self.optimiser.m),
            ("v", &self.optimiser.v),
        ]
    }
}
