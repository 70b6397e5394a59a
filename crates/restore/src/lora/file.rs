//! Reading a LoRA file of any trainer, as updates of a prior's modules.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, TensorData};
use priors::weights::{Part, SafetensorsFile};

use super::{
    alphas::Alphas,
    names::{Key, Names, Place, Role},
    shapes::PriorShapes,
};
use crate::Error;

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

/// Updates by the module that they change.
pub type Updates = BTreeMap<String, Update>;

/// A file's updates, by the prior's part and module.
#[derive(Clone, Debug)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// The updates of each part: `unet` or `transformer`, `text_encoder`, `text_encoder_2`, `text_encoder_3`.
    pub updates: BTreeMap<&'static str, Updates>,
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
    /// Keys of text encoders' modules that this prior does not have.
    pub text_encoder: usize,
    /// The first of the others.
    pub strangers: Vec<String>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} keys matched", self.matched, self.all)?;
        if self.text_encoder > 0 {
            write!(
                f,
                ", {} of text encoders that this prior does not have",
                self.text_encoder
            )?;
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
    pub fn open(path: &Path, shapes: &PriorShapes) -> Result<Self, Error> {
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
    pub fn from_file(file: &SafetensorsFile, shapes: &PriorShapes) -> Result<Self, Error> {
        let path = file.path();
        let bad = |what: String| Error::Input(format!("{}: {what}", path.display()));
        let names = Names::new(shapes);
        let mut modules: BTreeMap<(&'static str, &str), Parts> = BTreeMap::new();
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
            let Some((part, _)) = names.find(key.module) else {
                if key.of_text_encoder() {
                    report.text_encoder += 1;
                } else {
                    strange.insert(name);
                }
                continue;
            };
            report.matched += 1;
            let values = values(file, name)?;
            let parts = modules.entry((part, key.module)).or_default();
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
        let mut updates: BTreeMap<&'static str, Updates> = BTreeMap::new();
        let mut alphas = BTreeMap::new();
        for ((part, module), parts) in modules {
            let alphas = match alphas.entry(part) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Alphas::of(file, part)?),
            };
            let of_part = updates.entry(part).or_default();
            let (Some(down), Some(up)) = (parts.down, parts.up) else {
                return Err(bad(format!(
                    "holds only a part of {module}; download or copy it again"
                )));
            };
            for place in names.places(part, module) {
                let wanted = shapes.weight(part, &place.module);
                let update = one(&down, &up, place).and_then(|(down, up)| {
                    let rank = down.shape().first().copied().unwrap_or(0);
                    let alpha = parts.alpha.or(alphas.of_module(&place.module, rank));
                    let update = Update {
                        alpha: alpha.unwrap_or(rank as f64),
                        down,
                        up,
                    };
                    (fits(&update, wanted)).then_some(update)
                });
                let update = update.ok_or_else(|| {
                    bad(format!(
                        "{module} is {:?} and {:?}, which does not fit the prior's {} {wanted:?}; give a LoRA that was made for it",
                        down.shape().as_slice(),
                        up.shape().as_slice(),
                        place.module
                    ))
                })?;
                if of_part.insert(place.module.clone(), update).is_some() {
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
