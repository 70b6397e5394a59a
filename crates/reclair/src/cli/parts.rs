//! `--vae` and `--text-encoder`: parts of a prior from files of their own.

use std::path::PathBuf;

use priors::folder::Given;

/// What is taken in place of a prior's own parts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Parts {
    /// The prior's autoencoder from this safetensors file, or folder in diffusers' layout, in place of its own.
    #[arg(long, value_name = "PATH")]
    vae: Option<PathBuf>,
    /// A text encoder of the prior from this safetensors file or folder, in place of its own; which it is, is seen from its width.
    /// May be given again.
    #[arg(long, value_name = "PATH")]
    text_encoder: Vec<PathBuf>,
}

impl Parts {
    /// The same for whoever opens the prior.
    pub(super) fn given(&self) -> Given {
        Given {
            vae: self.vae.clone(),
            text_encoders: self.text_encoder.clone(),
        }
    }

    /// Refuses parts where nothing is read but configurations in the program.
    pub(super) fn refuse(&self, model: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.vae.is_none() && self.text_encoder.is_empty(),
            "{model} is only a configuration here and reads no files; leave --vae and --text-encoder out, or give --prior a folder or checkpoint"
        );
        Ok(())
    }
}
