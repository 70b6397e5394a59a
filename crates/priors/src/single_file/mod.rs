//! A checkpoint of another program, seen as a diffusers folder.
//!
//! Stability's files and ComfyUI's hold one or all of a prior's networks under their own names; a part that is not inside
//! is looked for beside the file, where ComfyUI and Stability's repositories keep it. Configurations are those of the
//! model that the file's header shows ([`crate::known`]); nothing is copied but a few swapped or transposed tensors.

mod beside;
mod clip;
mod transformer;
mod unet;
mod vae;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

pub use clip::{EncoderNames, OpenClipNames};
pub use transformer::TransformerNames;
pub use unet::UnetNames;
pub use vae::VaeNames;

use crate::{
    Error,
    kind::{Kind, NETWORK_PREFIXES, VAE_PREFIXES},
    known,
    weights::{Naming, SafetensorsFile, View},
};

/// A checkpoint, and what stands beside it.
#[derive(Clone, Debug)]
pub struct SingleFile {
    path: PathBuf,
    kind: Kind,
    configs: &'static [(&'static str, &'static [u8])],
    /// The tensors of every sub-folder that a diffusers folder would have.
    parts: BTreeMap<&'static str, View>,
    /// T5's tokenizer, which the program does not have.
    t5_tokenizer: Option<PathBuf>,
    /// The file with T5, where its tokenizer is missing.
    t5_left_out: Option<PathBuf>,
}

/// T5's tokenizer in a diffusers folder, and beside a checkpoint or beside its folder.
const T5_TOKENIZER: &str = "tokenizer_3/tokenizer.json";

/// The key of an SDXL checkpoint whose network predicts v.
const V_PREDICTION: &str = "v_pred";

/// The sub-folders with weights besides the network's.
const SDXL_PARTS: &[&str] = &["vae", "text_encoder", "text_encoder_2"];
const SD3_PARTS: &[&str] = &["vae", "text_encoder", "text_encoder_2", "text_encoder_3"];

impl SingleFile {
    /// Opens the checkpoint at `path` and finds the parts that are beside it. T5 counts only where its tokenizer is.
    ///
    /// # Errors
    /// A file that is no safetensors file, or that holds no network that can restore; two files for one part.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = Arc::new(SafetensorsFile::open(path)?);
        let kind = Kind::of_file(&file);
        let Some(configs) = known::files(kind) else {
            return Err(Error::unsupported(path, kind.refusal()));
        };
        let configs = objective(&file, kind, configs)?;
        let (network, others) = match kind {
            Kind::SdxlBase => ("unet", SDXL_PARTS),
            _ => ("transformer", SD3_PARTS),
        };
        let view = network_of(&file, kind)
            .ok_or_else(|| Error::unsupported(path, Kind::Unknown.refusal()))?;
        let mut parts = BTreeMap::from([(network, view)]);
        let mut missing = Vec::new();
        for &part in others {
            match part_of(&file, kind, part) {
                Some(view) => drop(parts.insert(part, view)),
                None => missing.push(part),
            }
        }
        parts.extend(beside::find(path, kind, &missing)?);
        let folder = path.parent().unwrap_or(Path::new(""));
        let places = ["", ".."].map(|place| folder.join(place).join(T5_TOKENIZER));
        let t5_tokenizer = places.into_iter().find(|path| path.is_file());
        let t5_left_out = match t5_tokenizer {
            None => parts.remove("text_encoder_3"),
            Some(_) => None,
        };
        Ok(Self {
            path: path.to_owned(),
            kind,
            configs,
            parts,
            t5_tokenizer,
            t5_left_out: t5_left_out.map(|view| view.path().to_owned()),
        })
    }

    /// What the file's network is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sub-folders that were found.
    pub fn parts(&self) -> impl Iterator<Item = &'static str> {
        self.parts.keys().copied()
    }

    /// A line about what was found and is not used.
    pub fn left_out(&self) -> Option<String> {
        let t5 = self.t5_left_out.as_ref()?;
        Some(format!(
            "{}: T5 is left out, as its tokenizer is missing; put the model's {T5_TOKENIZER} beside {}",
            t5.display(),
            self.path.display()
        ))
    }

    /// The configurations of its model: relative path and contents.
    pub fn configs(&self) -> &'static [(&'static str, &'static [u8])] {
        self.configs
    }

    /// Where `file` of a diffusers folder really is, for messages.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        match self.parts.get(part(file)) {
            Some(view) if file.ends_with(".safetensors") => view.path().to_owned(),
            _ => PathBuf::from(format!("{} ({file})", self.path.display())),
        }
    }

    /// Whether the checkpoint or its model's configurations have `file`; no `config.json` without its weights.
    pub(crate) fn has(&self, file: &str) -> bool {
        if file == T5_TOKENIZER {
            return self.t5_tokenizer.is_some();
        }
        let there = self.parts.contains_key(part(file));
        if file.ends_with(".safetensors") {
            return there;
        }
        let known = self.configs.iter().any(|(name, _)| *name == file);
        known && (there || !file.ends_with("/config.json"))
    }

    pub(crate) fn read(&self, file: &str) -> Result<Bytes, Error> {
        if let Some(path) = self.t5_tokenizer.as_ref().filter(|_| file == T5_TOKENIZER) {
            return kernels::map_file(path).map_err(|source| Error::io(path, source));
        }
        let found = self.configs.iter().find(|(name, _)| *name == file);
        match found.filter(|_| self.has(file)) {
            Some((_, bytes)) => Ok(Bytes::from_static(bytes)),
            None => Err(self.missing(file)),
        }
    }

    pub(crate) fn view(&self, file: &str) -> Result<View, Error> {
        let view = self.parts.get(part(file));
        view.cloned().ok_or_else(|| self.missing(file))
    }

    fn missing(&self, file: &str) -> Error {
        let part = part(file);
        let place = if part == "vae" {
            "vae"
        } else {
            "text_encoders"
        };
        let what = format!(
            "{part} is neither in this file nor beside it; put the model's own into {place}/ beside the file or into ComfyUI's {place}/"
        );
        Error::input(&self.path, what)
    }
}

/// The configurations of what the network was trained for, which SDXL checkpoints say by keys without a meaning of their own, as
/// ComfyUI reads them.
fn objective(
    file: &SafetensorsFile,
    kind: Kind,
    configs: &'static [(&'static str, &'static [u8])],
) -> Result<&'static [(&'static str, &'static [u8])], Error> {
    let others = [
        (
            "edm_mean",
            "this is Playground 2.5 or alike, trained on EDM's noise levels",
        ),
        (
            "edm_std",
            "this is Playground 2.5 or alike, trained on EDM's noise levels",
        ),
        (
            "edm_vpred.sigma_max",
            "this is CosXL or alike, trained on EDM's noise levels",
        ),
        (
            "ztsnr",
            "it was trained down to a signal-to-noise ratio of zero",
        ),
    ];
    let mut others = others.iter().filter(|_| kind == Kind::SdxlBase);
    match others.find(|(key, _)| file.has(key)) {
        Some((key, what)) => {
            let what = format!(
                "holds {key}: {what}, which is not supported; reclair restores with SDXL or SD3"
            );
            Err(Error::unsupported(file.path(), what))
        }
        None if kind == Kind::SdxlBase && file.has(V_PREDICTION) => Ok(known::SDXL_V),
        None => Ok(configs),
    }
}

/// The sub-folder of a file.
fn part(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

/// The network of `kind` in `file`.
fn network_of(file: &Arc<SafetensorsFile>, kind: Kind) -> Option<View> {
    let (original, ours, naming): (_, _, Arc<dyn Naming>) = match kind {
        Kind::SdxlBase => (
            "input_blocks.0.0.weight",
            "conv_in.weight",
            Arc::new(UnetNames { layers: 2 }),
        ),
        kind => (
            "joint_blocks.0.x_block.attn.qkv.weight",
            "transformer_blocks.0.attn.to_q.weight",
            Arc::new(TransformerNames {
                layers: if kind == Kind::Sd35Large { 38 } else { 24 },
            }),
        ),
    };
    either(file, &NETWORK_PREFIXES, original, ours, naming)
}

/// The view of a network whose keys stand after one of `prefixes`, under the names of `naming` or under diffusers' own.
fn either(
    file: &Arc<SafetensorsFile>,
    prefixes: &[&str],
    original: &str,
    ours: &str,
    naming: Arc<dyn Naming>,
) -> Option<View> {
    let has = |prefix: &&&str, key: &str| file.has(&format!("{prefix}{key}"));
    let mut all = prefixes.iter();
    if let Some(prefix) = all.find(|prefix| has(prefix, original)) {
        return Some(View::named(file.clone(), *prefix, Some(naming)));
    }
    let prefix = prefixes.iter().find(|prefix| has(prefix, ours))?;
    Some(View::named(file.clone(), *prefix, None))
}

/// The sub-folder `part` of a prior of `kind` in `file`.
fn part_of(file: &Arc<SafetensorsFile>, kind: Kind, part: &str) -> Option<View> {
    let sdxl = kind == Kind::SdxlBase;
    if part == "vae" {
        let latent = if sdxl { 4 } else { 16 };
        let fits = |prefix: &&str| {
            let shape = file.shape(&format!("{prefix}decoder.conv_in.weight"));
            matches!(shape, Some([512, c, ..]) if *c == latent)
        };
        VAE_PREFIXES.iter().find(|prefix| fits(prefix))?;
        return either(
            file,
            &VAE_PREFIXES,
            "decoder.up.0.block.0.norm1.weight",
            "decoder.up_blocks.0.resnets.0.norm1.weight",
            Arc::new(VaeNames { levels: 4 }),
        );
    }
    let table = "text_model.embeddings.token_embedding.weight";
    let t5 = "encoder.block.0.layer.0.SelfAttention.q.weight";
    let own: Arc<dyn Naming> = Arc::new(EncoderNames::Own);
    let clip_l: Arc<dyn Naming> = Arc::new(if sdxl {
        EncoderNames::Unprojected
    } else {
        EncoderNames::UnitProjection
    });
    let open: Arc<dyn Naming> = Arc::new(OpenClipNames);
    let places: Vec<(&str, &str, usize, &Arc<dyn Naming>)> = match part {
        "text_encoder" => vec![
            ("conditioner.embedders.0.transformer.", table, 768, &clip_l),
            ("text_encoders.clip_l.transformer.", table, 768, &clip_l),
            ("", table, 768, &clip_l),
        ],
        "text_encoder_2" => vec![
            (
                "conditioner.embedders.1.model.",
                "token_embedding.weight",
                1280,
                &open,
            ),
            ("text_encoders.clip_g.transformer.", table, 1280, &own),
            ("", table, 1280, &own),
            ("", "token_embedding.weight", 1280, &open),
        ],
        _ => vec![
            ("text_encoders.t5xxl.transformer.", t5, 4096, &own),
            ("", t5, 4096, &own),
        ],
    };
    let found = places.into_iter().find(|(prefix, key, width, _)| {
        let shape = file.shape(&format!("{prefix}{key}"));
        shape.is_some_and(|shape| shape.get(1) == Some(width))
    });
    found.map(|(prefix, .., naming)| View::named(file.clone(), prefix, Some(naming.clone())))
}
