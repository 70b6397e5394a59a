//! How strong a LoRA file's updates are: diffusers' header and PEFT's `adapter_config.json`.

use std::path::Path;

use priors::weights::SafetensorsFile;
use serde_json::Value;

use crate::Error;

/// The header's entry that diffusers writes: rank and alpha, by module where they differ.
pub(crate) const METADATA: &str = "lora_adapter_metadata";

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
    /// Of the updates of the sub-folder `part`: its network's, or a text encoder's.
    pub(super) fn of(file: &SafetensorsFile, part: &str) -> Result<Self, Error> {
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
            _ => Self::of_header(file, part),
        }
    }

    /// Of the header alone.
    pub(crate) fn of_header(file: &SafetensorsFile, part: &str) -> Result<Self, Error> {
        let Some(text) = file.metadata(METADATA) else {
            return Ok(Self::default());
        };
        let about: Value = serde_json::from_str(text).map_err(|why| {
            Error::Input(format!(
                "{}: {METADATA} is not JSON ({why}); copy it again",
                file.path().display()
            ))
        })?;
        Self::read(file.path(), |key| about.get(format!("{part}.{key}")))
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
