//! A checkpoint of another program, seen as a diffusers folder.
//!
//! Stability's files and ComfyUI's hold one or all of a prior's networks under their own names; a part that is not inside
//! is looked for beside the file, where ComfyUI and Stability's repositories keep it. Configurations are those of the
//! model that the file's header shows ([`crate::known`]); nothing is copied but a few swapped or transposed tensors.

mod beside;
mod clip;
mod origin;
mod transformer;
mod unet;
mod vae;
mod wanted;
mod write;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::Value;

pub(crate) use beside::CHECKPOINTS;
pub use clip::{EncoderNames, OpenClipNames};
pub use transformer::TransformerNames;
pub use unet::UnetNames;
pub use vae::VaeNames;
pub(crate) use wanted::{PARTS, Wanted};
pub use write::write_single_file;

use crate::{
    Error,
    folder::{Given, Replaced},
    json,
    kind::{Kind, NETWORK_PREFIXES, begins_as_known},
    known,
    weights::{Naming, SafetensorsFile, View},
};

/// Configurations by their place in a diffusers folder.
pub(crate) type Configs = BTreeMap<String, Bytes>;

/// A checkpoint, and what stands beside it.
#[derive(Clone, Debug)]
pub struct SingleFile {
    path: PathBuf,
    configs: Configs,
    /// `unet` or `transformer`.
    network: &'static str,
    /// The tensors of every sub-folder that a diffusers folder would have.
    parts: BTreeMap<&'static str, View>,
    /// T5's tokenizer, which the program does not have.
    t5_tokenizer: Option<PathBuf>,
    /// What was found and is not used, a line each.
    left_out: Vec<String>,
}

/// T5's tokenizer in a diffusers folder, and beside a checkpoint or beside its folder.
pub(crate) const T5_TOKENIZER: &str = "tokenizer_3/tokenizer.json";

/// The header's entry with the configurations of a file that [`write_single_file`] wrote, by their places in a folder.
const CONFIGS: &str = "reclair.configs";

/// The configurations that a checkpoint may bring.
const KNOWN_FILES: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "text_encoder_3/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    "unet/config.json",
    "vae/config.json",
];

/// The key of an SDXL checkpoint whose network predicts v.
const V_PREDICTION: &str = "v_pred";

impl SingleFile {
    /// Opens the checkpoint at `path` and finds the parts that are beside it, but for those in `given`. T5 counts only where
    /// its tokenizer is.
    ///
    /// # Errors
    /// A file that is no safetensors file, or that holds no network that can restore; two files for one part; a given file
    /// that does not fit.
    pub(crate) fn open(path: &Path, given: &Given) -> Result<(Self, Replaced), Error> {
        let file = Arc::new(SafetensorsFile::open(path)?);
        let configs = match own_configs(&file)? {
            Some(own) => own,
            None => known_configs(&file)?,
        };
        let network = match configs.contains_key("transformer/config.json") {
            true => "transformer",
            false => "unet",
        };
        let config = |part: &str| -> Result<Option<Value>, Error> {
            let name = format!("{part}/config.json");
            let bytes = configs.get(&name);
            bytes.map(|bytes| json::parse(bytes, path)).transpose()
        };
        let view = network_of(&file, network, config(network)?.as_ref())
            .ok_or_else(|| Error::unsupported(path, Kind::Unknown.refusal()))?;
        let mut wanted = Vec::new();
        for part in PARTS {
            let config = config(part)?;
            wanted.extend(config.and_then(|config| Wanted::new(part, network == "unet", &config)));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let places = ["", ".."].map(|place| folder.join(place).join(T5_TOKENIZER));
        let t5_tokenizer = places.into_iter().find(|path| path.is_file());
        let replaced = given.resolve(&wanted, t5_tokenizer.is_some(), &configs, path)?;
        wanted.retain(|wanted| !replaced.has(wanted.part));
        let mut parts = BTreeMap::from([(network, view)]);
        wanted.retain(|wanted| match wanted.in_file(&file) {
            Some(view) => parts.insert(wanted.part, view).is_some(),
            None => true,
        });
        let mut left_out = Vec::from_iter(strangers(&file, &parts));
        let found = beside::find(path, &wanted)?;
        parts.extend(found.parts);
        left_out.extend(found.passed_over);
        if t5_tokenizer.is_none()
            && let Some(view) = parts.remove("text_encoder_3")
        {
            left_out.push(format!(
                "{}: T5 is left out, as its tokenizer is missing; put the model's {T5_TOKENIZER} beside {}",
                view.path().display(),
                path.display()
            ));
        }
        let single = Self {
            path: path.to_owned(),
            configs,
            network,
            parts,
            t5_tokenizer,
            left_out,
        };
        Ok((single, replaced))
    }

    /// The sub-folder that its network has in a diffusers folder.
    pub fn network(&self) -> &'static str {
        self.network
    }

    /// The sub-folders that were found.
    pub fn parts(&self) -> impl Iterator<Item = &'static str> {
        self.parts.keys().copied()
    }

    /// The file of each part that was found.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.parts.iter().map(|(part, view)| (*part, view.path()))
    }

    /// Lines about what was found and is not used.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The folders that hold what belongs to the checkpoint: its own, the one above, ComfyUI's `models`.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        beside::roots(&self.path)
    }

    /// The configurations of its model by relative path.
    pub fn configs(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.configs
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes))
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
        self.configs.contains_key(file) && (there || !file.ends_with("/config.json"))
    }

    pub(crate) fn read(&self, file: &str) -> Result<Bytes, Error> {
        if let Some(path) = self.t5_tokenizer.as_ref().filter(|_| file == T5_TOKENIZER) {
            return kernels::map_file(path).map_err(|source| Error::io(path, source));
        }
        match self.configs.get(file).filter(|_| self.has(file)) {
            Some(bytes) => Ok(bytes.clone()),
            None => Err(self.missing(file)),
        }
    }

    pub(crate) fn view(&self, file: &str) -> Result<View, Error> {
        let view = self.parts.get(part(file));
        view.cloned().ok_or_else(|| self.missing(file))
    }

    fn missing(&self, file: &str) -> Error {
        let part = part(file);
        let (place, option) = if part == "vae" {
            ("vae", "--vae")
        } else {
            ("text_encoders", "--text-encoder")
        };
        let what = format!(
            "{part} is neither in this file nor beside it; give the model's own with {option}, or put it into {place}/ beside the file or into ComfyUI's {place}/"
        );
        Error::input(&self.path, what)
    }
}

/// A line about the file's keys that are of none of its `parts` and of nothing else that is known.
fn strangers(file: &SafetensorsFile, parts: &BTreeMap<&'static str, View>) -> Option<String> {
    let of_a_part = |key: &str| parts.values().any(|view| view.own(key).is_some());
    let strange = |key: &&String| !begins_as_known(key) && !of_a_part(key);
    let all: Vec<&String> = file.names().iter().filter(strange).collect();
    // Names come from outside and may be long or hold line ends.
    let short = |key: &&String| key.escape_debug().take(60).collect::<String>();
    let first: Vec<String> = all.iter().take(3).map(short).collect();
    (!all.is_empty()).then(|| {
        format!(
            "{}: {} of its tensors belong to no part of a prior and are not used ({})",
            file.path().display(),
            all.len(),
            first.join(", ")
        )
    })
}

/// The configurations that the file's header brings.
fn own_configs(file: &SafetensorsFile) -> Result<Option<Configs>, Error> {
    let Some(text) = file.metadata(CONFIGS) else {
        return Ok(None);
    };
    let Value::Object(all) = json::parse(text.as_bytes(), file.path())? else {
        let what = format!("{CONFIGS} in its header is no object; write the file again");
        return Err(Error::input(file.path(), what));
    };
    let known = |(name, _): &(String, Value)| KNOWN_FILES.contains(&name.as_str());
    let bytes = |(name, value): (String, Value)| (name, Bytes::from(value.to_string()));
    Ok(Some(all.into_iter().filter(known).map(bytes).collect()))
}

/// The configurations of the model that the file's header shows.
fn known_configs(file: &SafetensorsFile) -> Result<Configs, Error> {
    let kind = Kind::of_file(file);
    let Some(configs) = known::files(kind) else {
        return Err(Error::unsupported(file.path(), kind.refusal()));
    };
    let configs = objective(file, kind, configs)?.iter();
    let owned =
        |(name, bytes): &(&str, &'static [u8])| ((*name).to_owned(), Bytes::from_static(bytes));
    Ok(configs.map(owned).collect())
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
pub(crate) fn part(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

/// The network of a checkpoint, a U-Net or transformer of this configuration.
fn network_of(file: &Arc<SafetensorsFile>, network: &str, config: Option<&Value>) -> Option<View> {
    let whole = |key: &str| usize::try_from(config?.get(key)?.as_u64()?).ok();
    let (original, ours, naming): (_, _, Arc<dyn Naming>) = if network == "unet" {
        let layers = whole("layers_per_block")?;
        (
            "input_blocks.0.0.weight",
            "conv_in.weight",
            Arc::new(UnetNames { layers }),
        )
    } else {
        let layers = whole("num_layers")?;
        (
            "joint_blocks.0.x_block.attn.qkv.weight",
            "transformer_blocks.0.attn.to_q.weight",
            Arc::new(TransformerNames { layers }),
        )
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
