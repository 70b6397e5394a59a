//! Writing LoRA files in the forms of kohya's scripts, diffusers and PEFT.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, TensorData};
use priors::weights::{Metadata, Part, Values, save_safetensors, write_atomically};
use serde_json::{Map, Value, json};

use super::{METADATA, PriorShapes, Update, Updates, names::Names, text_names::TextNames};
use crate::Error;

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// kohya's scripts, as ComfyUI and other programs load them; blocks have Stability's names, SD3's projections are fused.
    Kohya,
    /// diffusers' `load_lora_weights`.
    Diffusers,
    /// PEFT's folder with `adapter_config.json`.
    Peft,
}

/// Writes `updates` of the parts of a prior with these tensors to `path`, a file (kohya, diffusers) or a folder (PEFT).
///
/// # Errors
/// A module that the form has no name for, updates of a text encoder in PEFT's form, or a place that cannot be written to.
pub fn write_lora(
    path: &Path,
    updates: &BTreeMap<&'static str, Updates>,
    shapes: &PriorShapes,
    form: Form,
    dtype: DType,
) -> Result<(), Error> {
    let network = shapes.network();
    let none = Updates::new();
    match form {
        Form::Kohya => {
            let names = Names::new(shapes);
            let mut values = kohya(updates.get(network).unwrap_or(&none), &names)?;
            for (part, updates) in updates.iter().filter(|(part, _)| **part != network) {
                let prefix = TextNames::kohya(part, shapes.text_encoders()).unwrap_or_default();
                for (module, update) in updates {
                    let (down, up) = (update.down.clone(), update.up.clone());
                    put(&mut values, prefix, module, down, up, update.alpha);
                }
            }
            Ok(save_safetensors(path, &values, dtype, &Metadata::new())?)
        }
        Form::Diffusers => {
            let mut about: Map<String, Value> = Map::new();
            let mut values = Values::new();
            for (part, updates) in updates {
                let of_part = config(updates).into_iter();
                about.extend(of_part.map(|(key, value)| (format!("{part}.{key}"), value)));
                values.extend(plain(updates, part));
            }
            let metadata =
                Metadata::from([(METADATA.to_owned(), Value::Object(about).to_string())]);
            Ok(save_safetensors(path, &values, dtype, &metadata)?)
        }
        Form::Peft => {
            if let Some(part) = updates.keys().find(|part| **part != network) {
                return Err(Error::Unsupported(format!(
                    "PEFT's form holds one network's updates and these are of {part} too; write kohya's or diffusers'"
                )));
            }
            let updates = updates.get(network).unwrap_or(&none);
            let values = plain(updates, "base_model.model");
            let file = path.join("adapter_model.safetensors");
            save_safetensors(&file, &values, dtype, &Metadata::new())?;
            let mut about = config(updates);
            about.insert("peft_type".into(), "LORA".into());
            let text = serde_json::to_vec_pretty(&about).expect("plain JSON");
            Ok(write_atomically(&path.join("adapter_config.json"), &text)?)
        }
    }
}

fn plain(updates: &Updates, prefix: &str) -> Values {
    let both = |(module, update): (&String, &Update)| {
        let name = |matrix| format!("{prefix}.{module}.{matrix}.weight");
        [
            (name("lora_A"), update.down.clone()),
            (name("lora_B"), update.up.clone()),
        ]
    };
    updates.iter().flat_map(both).collect()
}

/// PEFT's `LoraConfig`: the commonest rank and alpha, and the modules that differ.
fn config(updates: &Updates) -> Map<String, Value> {
    let first = updates.values().next();
    let (rank, alpha) = first.map_or((1, 1.0), |update| (update.rank(), update.alpha));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (module, update) in updates {
        if update.rank() != rank {
            ranks.insert(module.clone(), update.rank().into());
        }
        if update.alpha != alpha {
            alphas.insert(module.clone(), number(update.alpha));
        }
    }
    let about = json!({
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": updates.keys().collect::<Vec<_>>(),
    });
    match about {
        Value::Object(about) => about,
        _ => Map::new(),
    }
}

/// Whole numbers without a point, as PEFT writes them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        (value as i64).into()
    } else {
        value.into()
    }
}

/// Adds a module's update in kohya's form.
fn put(
    values: &mut Values,
    prefix: &str,
    module: &str,
    down: TensorData,
    up: TensorData,
    alpha: f64,
) {
    let module = format!("{prefix}{}", module.replace('.', "_"));
    values.insert(format!("{module}.lora_down.weight"), down);
    values.insert(format!("{module}.lora_up.weight"), up);
    let alpha = TensorData::new(vec![alpha as f32], Vec::<usize>::new());
    values.insert(format!("{module}.alpha"), alpha);
}

fn kohya(updates: &Updates, names: &Names) -> Result<Values, Error> {
    let mut fused: BTreeMap<String, Vec<(usize, &Update, usize)>> = BTreeMap::new();
    let mut values = Values::new();
    let mut put = |module: &str, down, up, alpha| {
        put(&mut values, "lora_unet_", module, down, up, alpha);
    };
    for (module, update) in updates {
        let (original, part) = names.original(module).ok_or_else(|| {
            Error::Unsupported(format!(
                "kohya's form has no name for {module}; write diffusers' or PEFT's"
            ))
        })?;
        match part {
            Part::Rows { index, of } => {
                fused.entry(original).or_default().push((index, update, of));
            }
            Part::SwapHalves => {
                let up = update.up.as_slice::<f32>().expect("updates are f32");
                let (first, second) = up.split_at(up.len() / 2);
                let up = TensorData::new([second, first].concat(), update.up.shape().clone());
                put(&original, update.down.clone(), up, update.alpha);
            }
            _ => put(
                &original,
                update.down.clone(),
                update.up.clone(),
                update.alpha,
            ),
        }
    }
    for (original, parts) in fused {
        let (down, up, rank) = joined(&parts);
        put(&original, down, up, rank as f64);
    }
    Ok(values)
}

/// The updates of a fused projection's parts as one: ranks add up, each part's `B` (with its scale) in its own rows and columns.
fn joined(parts: &[(usize, &Update, usize)]) -> (TensorData, TensorData, usize) {
    let rank: usize = parts.iter().map(|(_, update, _)| update.rank()).sum();
    let (_, first, of) = parts[0];
    let (d_in, d_out) = (first.down.shape()[1], first.up.shape()[0]);
    let mut down = Vec::new();
    let mut up = vec![0.0_f32; of * d_out * rank];
    let mut column = 0;
    for (index, update, _) in parts {
        down.extend_from_slice(update.down.as_slice::<f32>().expect("updates are f32"));
        let r = update.rank();
        let scale = (update.alpha / r as f64) as f32;
        let rows = update
            .up
            .as_slice::<f32>()
            .expect("updates are f32")
            .chunks_exact(r);
        for (i, row) in rows.enumerate() {
            let at = (index * d_out + i) * rank + column;
            for (to, from) in up[at..at + r].iter_mut().zip(row) {
                *to = scale * from;
            }
        }
        column += r;
    }
    let down = TensorData::new(down, [rank, d_in]);
    (down, TensorData::new(up, [of * d_out, rank]), rank)
}
