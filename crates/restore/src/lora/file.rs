//! Reading a LoRA file of any trainer, as updates of a prior's modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, TensorData};
use priors::weights::{Part, SafetensorsFile};
use serde_json::Value;

use super::names::{Key, Names, Place, Role};
use crate::Error;

/// The header's entry that diffusers writes: rank and alpha, by module where they differ.
pub(crate) const METADATA: &str = "lora_adapter_metadata";

/// A low-rank update of one module: `W + strength * alpha / r * up down`.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// `A`, `[r, in]`, or `[r, in, k, k]` of a convolution, in f32.
    pub down: TensorData,
    /// `B`, `[out, r]`, or `[out, r, 1, 1]`, in f32.
    pub up: TensorData,
    /// The update is scaled by `alpha / r`.
    pub alpha: f64,
}

impl Update {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }

    /// The shape of the weight it changes.
    pub fn shape(&self) -> Vec<usize> {
        [&[self.up.shape()[0]], &self.down.shape()[1..]].concat()
    }
}

/// A file's updates, by the prior's module.
#[derive(Clone, Debug)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// The updates of the prior's modules.
    pub updates: BTreeMap<String, Update>,
    /// How the file's keys were used.
    pub report: Report,
}

/// How many keys of a file have found their module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Keys of this prior's modules.
    pub matched: usize,
    /// Keys of the file.
    pub all: usize,
    /// Keys of text encoders, which are not used.
    pub text_encoder: usize,
    /// The first of the others.
    pub strangers: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} keys matched", self.matched, self.all)?;
        if self.text_encoder > 0 {
            write!(f, ", {} of text encoders are not used", self.text_encoder)?;
        }
        if !self.strangers.is_empty() {
            let strangers = self.all - self.matched - self.text_encoder;
            let first = self.strangers.join(", ");
            write!(
                f,
                ", {strangers} belong to no module of this prior ({first})"
            )?;
        }
        Ok(())
    }
}

/// The three tensors of one module, as stored.
#[derive(Default)]
struct Parts {
    down: Option<TensorData>,
    up: Option<TensorData>,
    alpha: Option<f64>,
}

impl LoraFile {
    /// Reads the LoRA at `path` for a prior with these tensors. Files of diffusers, PEFT, kohya and ComfyUI are understood.
    ///
    /// # Errors
    /// A file that is no LoRA or one of another kind (LoKr, LoHa, DoRA), half an update, shapes that do not fit the prior, or
    /// a file without one key of this prior.
    pub fn open(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, Error> {
        // PEFT's and our adapters are folders with the file inside.
        let names = [
            "pytorch_lora_weights.safetensors",
            "adapter_model.safetensors",
        ];
        let inside = names
            .map(|name| path.join(name))
            .into_iter()
            .find(|path| path.is_file());
        let path = inside.unwrap_or_else(|| path.to_owned());
        Self::from_file(&SafetensorsFile::open(&path)?, shapes)
    }

    /// As [`LoraFile::open`], of an open file.
    ///
    /// # Errors
    /// As [`LoraFile::open`].
    pub fn from_file(
        file: &SafetensorsFile,
        shapes: &BTreeMap<String, Vec<usize>>,
    ) -> Result<Self, Error> {
        let path = file.path();
        let bad = |what: String| Error::Input(format!("{}: {what}", path.display()));
        let names = Names::new(shapes);
        let mut modules: BTreeMap<&str, Parts> = BTreeMap::new();
        let mut report = Report {
            matched: 0,
            all: file.names().len(),
            text_encoder: 0,
            strangers: vec![],
        };
        let mut strange = BTreeSet::new();
        for name in file.names() {
            refuse_others(name).map_err(bad)?;
            let Some(key) = Key::parse(name) else {
                strange.insert(name);
                continue;
            };
            if key.of_text_encoder() {
                report.text_encoder += 1;
                continue;
            }
            if names.find(key.module).is_empty() {
                strange.insert(name);
                continue;
            }
            report.matched += 1;
            let values = values(file, name)?;
            let parts = modules.entry(key.module).or_default();
            match key.role {
                Role::Down => parts.down = Some(values),
                Role::Up => parts.up = Some(values),
                Role::Alpha => {
                    parts.alpha = Some(scalar(&values).ok_or_else(|| {
                        bad(format!(
                            "{name} should be one finite number; download or copy it again"
                        ))
                    })?)
                }
            }
        }
        report.strangers = strange.into_iter().take(3).cloned().collect();
        if report.matched == 0 {
            return Err(bad(format!(
                "holds no LoRA of this prior: {report}; give a LoRA that was made for it"
            )));
        }
        let alphas = Alphas::of(file)?;
        let mut updates = BTreeMap::new();
        for (module, parts) in modules {
            let (Some(down), Some(up)) = (parts.down, parts.up) else {
                return Err(bad(format!(
                    "holds only a part of {module}; download or copy it again"
                )));
            };
            for place in names.find(module) {
                let update = one(&down, &up, place).and_then(|(down, up)| {
                    let rank = down.shape().first().copied().unwrap_or(0);
                    let alpha = parts.alpha.or(alphas.of_module(&place.module, rank));
                    let update = Update {
                        alpha: alpha.unwrap_or(rank as f64),
                        down,
                        up,
                    };
                    let wanted = &shapes[&format!("{}.weight", place.module)];
                    (fits(&update, wanted)).then_some(update)
                });
                let update = update.ok_or_else(|| {
                    let wanted = &shapes[&format!("{}.weight", place.module)];
                    bad(format!(
                        "{module} is {:?} and {:?}, which does not fit the prior's {} {wanted:?}; give a LoRA that was made for it",
                        down.shape().as_slice(),
                        up.shape().as_slice(),
                        place.module
                    ))
                })?;
                if updates.insert(place.module.clone(), update).is_some() {
                    return Err(bad(format!(
                        "holds {} under two names; keep one of them",
                        place.module
                    )));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            updates,
            report,
        })
    }
}

/// Refuses updates that are no plain product of two matrices.
fn refuse_others(name: &str) -> Result<(), String> {
    let others = [
        (".dora_scale", "DoRA"),
        (".lora_magnitude_vector", "DoRA"),
        (".hada_w", "LoHa"),
        (".lokr_w", "LoKr"),
        (".oft_", "OFT"),
        (".lora_mid.", "LoCon in Tucker form"),
    ];
    let whole = [".diff", ".diff_b"]
        .iter()
        .any(|ending| name.ends_with(ending));
    let whole = whole.then_some(&("", "whole differences"));
    match others
        .iter()
        .find(|(part, _)| name.contains(part))
        .or(whole)
    {
        None => Ok(()),
        Some((_, what)) => Err(format!(
            "is {what} ({name}), which is not supported; use a plain LoRA"
        )),
    }
}

fn values(file: &SafetensorsFile, name: &str) -> Result<TensorData, Error> {
    let shape = file.shape(name).unwrap_or_default();
    // Alphas are stored as whole numbers too.
    if !shape.is_empty() {
        file.float(name)?;
    }
    match file.data(name) {
        Some(data) => Ok(data.convert_dtype(DType::F32)),
        None => Err(file.float(name).map_or_else(Error::from, |_| {
            Error::Input(format!(
                "{}: {name} cannot be read; copy it again",
                file.path().display()
            ))
        })),
    }
}

fn scalar(data: &TensorData) -> Option<f64> {
    match data.as_slice::<f32>() {
        Ok([value]) if value.is_finite() => Some(f64::from(*value)),
        _ => None,
    }
}

/// Both matrices of a place; the rows of the upper one that reach it.
fn one(down: &TensorData, up: &TensorData, place: &Place) -> Option<(TensorData, TensorData)> {
    let up_values = up.as_slice::<f32>().ok()?;
    let up = match place.part {
        Part::Rows { index, of } => {
            let rows = up.shape().first()?;
            if !rows.is_multiple_of(of) {
                return None;
            }
            let (rows, part) = (rows / of, up_values.len() / of);
            let shape = [&[rows], &up.shape()[1..]].concat();
            TensorData::new(up_values[index * part..(index + 1) * part].to_vec(), shape)
        }
        Part::SwapHalves => {
            let (first, second) = up_values.split_at(up_values.len() / 2);
            TensorData::new([second, first].concat(), up.shape().clone())
        }
        _ => up.clone(),
    };
    Some((down.clone(), up))
}

/// Whether an update has the shape of the weight.
fn fits(update: &Update, wanted: &[usize]) -> bool {
    let (down, up) = (update.down.shape().as_slice(), update.up.shape().as_slice());
    let inner = match (down, up) {
        ([r, _], [_, s]) | ([r, _, _, _], [_, s, 1, 1]) => *r == *s && *r > 0,
        _ => false,
    };
    if !inner || !update.alpha.is_finite() {
        return false;
    }
    // A linear map is stored as a 1x1 convolution by some.
    let shape = update.shape();
    let squeezed = shape.len() == 4 && shape[2..] == [1, 1] && shape[..2] == *wanted;
    shape == wanted || squeezed
}

/// How strong a file's updates are, as diffusers writes it into the header and PEFT into `adapter_config.json`.
#[derive(Debug, Default)]
pub(crate) struct Alphas {
    all: Option<f64>,
    each: Vec<Pattern>,
    /// `use_rslora`: the scale is `alpha / sqrt(r)`.
    stabilised: bool,
}

/// A module's path or its end, and the alpha of what matches.
#[derive(Debug)]
struct Pattern {
    path: String,
    whole: bool,
    alpha: f64,
}

impl Alphas {
    fn of(file: &SafetensorsFile) -> Result<Self, Error> {
        let beside = file.path().with_file_name("adapter_config.json");
        match std::fs::read(&beside) {
            Ok(text) if file.metadata(METADATA).is_none() => {
                let config: Value = serde_json::from_slice(&text).map_err(|why| {
                    Error::Input(format!(
                        "{}: is not JSON ({why}), and it says how strong the LoRA is; copy it again",
                        beside.display()
                    ))
                })?;
                Self::read(&beside, |key| config.get(key))
            }
            _ => Self::of_header(file),
        }
    }

    /// Of the header alone.
    pub(crate) fn of_header(file: &SafetensorsFile) -> Result<Self, Error> {
        let Some(text) = file.metadata(METADATA) else {
            return Ok(Self::default());
        };
        let about: Value = serde_json::from_str(text).map_err(|why| {
            Error::Input(format!(
                "{}: {METADATA} is not JSON ({why}); copy it again",
                file.path().display()
            ))
        })?;
        Self::read(file.path(), |key| {
            let mut networks = ["unet", "transformer"].iter();
            networks.find_map(|network| about.get(format!("{network}.{key}")))
        })
    }

    /// The value of each key is what `get` has for it.
    fn read<'a>(path: &Path, get: impl Fn(&str) -> Option<&'a Value>) -> Result<Self, Error> {
        let get = |key: &str| get(key).filter(|value| !value.is_null());
        let bad = |what: String| Error::Input(format!("{}: {what}", path.display()));
        let number = |key: &str, value: &Value| {
            value.as_f64().ok_or_else(|| {
                let value = short(&value.to_string());
                bad(format!("{key} is {value} and no number; copy it again"))
            })
        };
        let all = get("lora_alpha").map(|alpha| number("lora_alpha", alpha));
        let all = all.transpose()?;
        let stabilised = match get("use_rslora") {
            None => false,
            Some(Value::Bool(stabilised)) => *stabilised,
            Some(other) => {
                let other = short(&other.to_string());
                return Err(bad(format!(
                    "use_rslora is {other} and neither true nor false; copy it again"
                )));
            }
        };
        if stabilised && all.is_none() {
            return Err(bad(
                "says use_rslora and no lora_alpha; copy it again".to_owned()
            ));
        }
        let mut each = Vec::new();
        let patterns = match get("alpha_pattern") {
            None => None,
            Some(Value::Object(patterns)) => Some(patterns),
            Some(_) => {
                return Err(bad("alpha_pattern is no object; copy it again".to_owned()));
            }
        };
        for (pattern, alpha) in patterns.into_iter().flatten() {
            let path = pattern.strip_prefix('^').unwrap_or(pattern);
            // A regular expression to PEFT; modules' names have none of its signs but the dot.
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if path.is_empty() || !path.chars().all(plain) {
                return Err(bad(format!(
                    "alpha_pattern {:?} is a regular expression, which is not supported; name the modules",
                    short(pattern)
                )));
            }
            each.push(Pattern {
                path: path.to_owned(),
                whole: path != pattern,
                alpha: number("alpha_pattern", alpha)?,
            });
        }
        Ok(Self {
            all,
            each,
            stabilised,
        })
    }

    /// Whether some modules differ from the others.
    pub(crate) fn differ(&self) -> bool {
        !self.each.is_empty()
    }

    /// The alpha of a module of this rank by which `alpha / r` is its scale; none where nothing is said.
    pub(crate) fn of_module(&self, module: &str, rank: usize) -> Option<f64> {
        // PEFT takes the first pattern that is the module's path or its end.
        let mut each = self.each.iter();
        let own = each.find(|pattern| {
            let start = module.strip_suffix(&pattern.path);
            start.is_some_and(|start| start.is_empty() || (!pattern.whole && start.ends_with('.')))
        });
        let alpha = own.map(|own| own.alpha).or(self.all)?;
        let more = if self.stabilised {
            (rank as f64).sqrt()
        } else {
            1.0
        };
        Some(alpha * more)
    }
}

/// The beginning of what may be long.
fn short(text: &str) -> String {
    text.chars().take(60).collect()
}
