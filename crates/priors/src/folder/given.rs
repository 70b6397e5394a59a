//! Files that whoever opens a prior names for its autoencoder and text encoders.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{ENCODER_FILE, NETWORK_FILE, refuse_pickle, shards};
use crate::{
    Error, json,
    kind::Kind,
    single_file::{Configs, EncoderNames, T5_TOKENIZER, Wanted, part},
    weights::{SafetensorsFile, View},
};

/// The files to take in place of a prior's own parts: safetensors files, or folders of one part in diffusers' layout.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The autoencoder.
    pub vae: Option<PathBuf>,
    /// Text encoders; which each is, is seen from its width.
    pub text_encoders: Vec<PathBuf>,
}

/// The parts that stand in place of a folder's own.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    views: BTreeMap<&'static str, View>,
    files: BTreeMap<String, (PathBuf, Bytes)>,
}

/// One of the given files, open.
enum Opened {
    File(Arc<SafetensorsFile>),
    Folder(View, Bytes),
}

impl Given {
    /// Opens the files for the parts that a prior has by `wanted`, each with its configuration: its own where it is a folder, else
    /// that of `configs`. `origin` names the prior in errors.
    ///
    /// # Errors
    /// A file that is none of these parts or has another width, two files for one part, T5 without its tokenizer.
    pub(crate) fn resolve(
        &self,
        wanted: &[Wanted],
        has_t5_tokenizer: bool,
        configs: &Configs,
        origin: &Path,
    ) -> Result<Replaced, Error> {
        let mut replaced = Replaced::default();
        let vae = self.vae.iter().map(|path| (path, true));
        for (path, is_vae) in vae.chain(self.text_encoders.iter().map(|path| (path, false))) {
            let opened = open(path, is_vae)?;
            let slots = wanted.iter().filter(|one| (one.part == "vae") == is_vae);
            let mut fits = false;
            for one in slots {
                let Some((view, config)) = opened.as_part(one) else {
                    continue;
                };
                fits = true;
                let name = format!("{}/config.json", one.part);
                let config = match config {
                    Some(own) => Some((path.join("config.json"), own)),
                    None => configs
                        .get(&name)
                        .map(|known| (origin.to_owned(), known.clone())),
                };
                replaced.files.extend(config.map(|config| (name, config)));
                if replaced.views.insert(one.part, view).is_some() {
                    let what = format!(
                        "is the second file given for {}; give one of them",
                        one.part
                    );
                    return Err(Error::input(path, what));
                }
            }
            if !fits {
                return Err(misfit(path, &opened, is_vae, wanted, origin));
            }
        }
        if replaced.has("text_encoder_3") && !has_t5_tokenizer {
            replaced.find_t5_tokenizer()?;
        }
        Ok(replaced)
    }
}

fn open(path: &Path, is_vae: bool) -> Result<Opened, Error> {
    refuse_pickle(path)?;
    if !path.is_dir() {
        return Ok(Opened::File(Arc::new(SafetensorsFile::open(path)?)));
    }
    let config = path.join("config.json");
    let read = |source| Error::io(&config, source);
    let config = Bytes::from(std::fs::read(&config).map_err(read)?);
    let view = if is_vae {
        shards::open(path, NETWORK_FILE)?
    } else {
        shards::open(path, ENCODER_FILE)?.renamed(Arc::new(EncoderNames::Own))
    };
    Ok(Opened::Folder(view, config))
}

impl Opened {
    /// The tensors of the part `wanted`, and their own configuration.
    fn as_part(&self, wanted: &Wanted) -> Option<(View, Option<Bytes>)> {
        match self {
            Self::File(file) => Some((wanted.in_file(file)?, None)),
            Self::Folder(view, config) => {
                let value = serde_json::from_slice(config).ok()?;
                let own = Wanted::new(wanted.part, wanted.of_unet, &value)?;
                (own.width == wanted.width).then(|| (view.clone(), Some(config.clone())))
            }
        }
    }
}

/// Why a given file cannot be taken.
fn misfit(path: &Path, opened: &Opened, is_vae: bool, wanted: &[Wanted], origin: &Path) -> Error {
    let kind = match opened {
        Opened::File(file) => Kind::of_file(file),
        Opened::Folder(view, _) => Kind::of_view(view),
    };
    let widths: Vec<String> = wanted
        .iter()
        .filter(|one| (one.part == "vae") == is_vae)
        .map(|one| format!("{} {}", one.part, one.width))
        .collect();
    let (what, widths) = (
        if is_vae {
            "autoencoder of these latent channels"
        } else {
            "text encoder of one of these widths"
        },
        widths.join(", "),
    );
    Error::input(
        path,
        format!(
            "is {kind} and no {what}, which {} has: {widths}; give the model's own",
            origin.display()
        ),
    )
}

impl Replaced {
    /// Whether nothing is replaced.
    pub(crate) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Whether the sub-folder `part` is replaced.
    pub fn has(&self, part: &str) -> bool {
        self.views.contains_key(part)
    }

    /// The file of each replaced part.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.views.iter().map(|(part, view)| (*part, view.path()))
    }

    /// Where `file` of a diffusers folder really is, when it is replaced.
    pub(super) fn path(&self, file: &str) -> Option<&Path> {
        match self.files.get(file) {
            Some((path, _)) => Some(path),
            None => Some(self.view(file)?.path()),
        }
    }

    pub(super) fn read(&self, file: &str) -> Option<&Bytes> {
        Some(&self.files.get(file)?.1)
    }

    pub(super) fn view(&self, file: &str) -> Option<&View> {
        let view = self.views.get(part(file));
        view.filter(|_| shards::is_weights(file))
    }

    /// T5's tokenizer beside its file or the file's folder.
    fn find_t5_tokenizer(&mut self) -> Result<(), Error> {
        let t5 = self.views["text_encoder_3"].path().to_owned();
        let folder = t5.parent().unwrap_or(Path::new(""));
        let places = [
            "tokenizer.json",
            T5_TOKENIZER,
            "../tokenizer_3/tokenizer.json",
        ];
        let mut places = places.iter().map(|place| folder.join(place));
        let Some(path) = places.find(|path| path.is_file()) else {
            let what = format!(
                "T5's tokenizer is missing; put the model's {T5_TOKENIZER} beside this file"
            );
            return Err(Error::input(t5, what));
        };
        let bytes = kernels::map_file(&path).map_err(|source| Error::io(&path, source))?;
        json::parse(&bytes, &path)?;
        self.files.insert(T5_TOKENIZER.to_owned(), (path, bytes));
        Ok(())
    }
}
