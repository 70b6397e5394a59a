//! Writing a prior as one file in the layout of Stability's checkpoints, which ComfyUI and diffusers' `from_single_file` read.
//!
//! The inverse of the views in this module: projections are fused, halves swapped back, maps transposed. The header's
//! `reclair.configs` holds the configurations, so that a prior of another size than the known ones is read back too; other
//! programs pass over it. Tokenizers are not stored: it must be CLIP's own.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, TensorData};
use serde_json::{Map, Value};

use super::{
    CONFIGS, EncoderNames, KNOWN_FILES, OpenClipNames, TransformerNames, UnetNames, V_PREDICTION,
    VaeNames,
};
use crate::{
    Error,
    folder::{Folder, StoredPart},
    model::PriorModel,
    scheduler::Prediction,
    tokenizer::ClipTokenizer,
    weights::{Metadata, Naming, Part, Piece, Stored, write_safetensors},
};

/// Where a checkpoint's tensor comes from: a part, and its tensors there, in the order of a fused one's rows.
struct Source<'a> {
    part: &'a StoredPart,
    names: Vec<(String, Part)>,
}

/// Writes `prior`, of SDXL's or SD3's kind, with its autoencoder and text encoders to `path`, in the types they are stored in.
///
/// # Errors
/// A prior of another kind, tensors that do not fit their configuration, a tokenizer that is not CLIP's own, a file that cannot
/// be written.
pub fn write_single_file(prior: &Folder, path: &Path) -> Result<(), Error> {
    let index = prior.path("model_index.json");
    if !prior.has("text_encoder_2/config.json") {
        let what = "has one text encoder: single files are for SDXL and SD3; write a folder";
        return Err(Error::unsupported(index, what));
    }
    for part in ["tokenizer", "tokenizer_2"] {
        refuse_other_tokenizer(prior, part)?;
    }
    let parts = layout(prior)?;
    let mut header = BTreeMap::new();
    let mut sources: BTreeMap<String, Source<'_>> = BTreeMap::new();
    for (prefix, naming, part) in &parts {
        for (name, shape) in part.shapes() {
            let Some(piece) = place(&**naming, name, part) else {
                let what = format!("tensor {name} has no place in a single file; write a folder");
                return Err(Error::unsupported(part.path(), what));
            };
            if piece.part == Part::Unit {
                refuse_other_than_unit(part, name)?;
                continue;
            }
            let key = format!("{prefix}{}", piece.key);
            let stored = Stored {
                dtype: part.dtype(name),
                shape: whole_shape(shape, piece.part),
            };
            header.entry(key.clone()).or_insert(stored);
            let source = sources.entry(key).or_insert(Source {
                part,
                names: vec![],
            });
            source.names.push((name.clone(), piece.part));
        }
    }
    let predicts_v = PriorModel::open_scheduler(prior)?.prediction() == Prediction::VPrediction;
    if predicts_v && prior.network() == "unet" {
        let (dtype, shape) = (DType::F32, vec![]);
        header.insert(V_PREDICTION.to_owned(), Stored { dtype, shape });
    }
    let about = Metadata::from([(CONFIGS.to_owned(), configs(prior)?.to_string())]);
    write_safetensors(path, &header, &about, |key| match sources.get(key) {
        Some(source) => source.tensor(header[key].dtype),
        None => Ok(TensorData::new(vec![0.0_f32], Vec::<usize>::new())),
    })
}

type Layout = Vec<(&'static str, Box<dyn Naming>, StoredPart)>;

/// The prior's parts, with their prefixes and names in a checkpoint.
fn layout(prior: &Folder) -> Result<Layout, Error> {
    let config = |file: &str| prior.json(file);
    let count = |value: &Value| {
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(0)
    };
    let levels = config("vae/config.json")?["block_out_channels"]
        .as_array()
        .map_or(0, Vec::len);
    let vae = || Box::new(VaeNames { levels }) as Box<dyn Naming>;
    let mut parts: Vec<(&str, &'static str, Box<dyn Naming>)> = if prior.network() == "unet" {
        let layers = count(&config("unet/config.json")?["layers_per_block"]);
        vec![
            (
                "unet",
                "model.diffusion_model.",
                Box::new(UnetNames { layers }),
            ),
            ("vae", "first_stage_model.", vae()),
            (
                "text_encoder",
                "conditioner.embedders.0.transformer.",
                Box::new(EncoderNames::Own),
            ),
            (
                "text_encoder_2",
                "conditioner.embedders.1.model.",
                Box::new(OpenClipNames),
            ),
        ]
    } else {
        let layers = count(&config("transformer/config.json")?["num_layers"]);
        let own = || Box::new(EncoderNames::Own);
        vec![
            (
                "transformer",
                "model.diffusion_model.",
                Box::new(TransformerNames { layers }),
            ),
            ("vae", "first_stage_model.", vae()),
            (
                "text_encoder",
                "text_encoders.clip_l.transformer.",
                Box::new(EncoderNames::UnitProjection),
            ),
            ("text_encoder_2", "text_encoders.clip_g.transformer.", own()),
            ("text_encoder_3", "text_encoders.t5xxl.transformer.", own()),
        ]
    };
    parts.retain(|(part, ..)| *part != "text_encoder_3" || prior.has("text_encoder_3/config.json"));
    let open = |(part, prefix, naming)| Ok((prefix, naming, prior.stored(part)?));
    parts.into_iter().map(open).collect()
}

/// Where a tensor goes. An upsampler has two places; the level has attention when a module says so.
fn place(naming: &dyn Naming, name: &str, part: &StoredPart) -> Option<Piece> {
    let mut pieces = naming.pieces(name).into_iter();
    let (first, second) = (pieces.next()?, pieces.next());
    let attention = name.replace("upsamplers.0.conv", "attentions.0.norm");
    match second {
        Some(second) if attention != name && !part.shapes().contains_key(&attention) => {
            Some(second)
        }
        _ => Some(first),
    }
}

/// The shape of the stored tensor of which a tensor of `shape` is a part.
fn whole_shape(shape: &[usize], part: Part) -> Vec<usize> {
    match (part, shape) {
        (Part::Rows { of, .. }, [rows, rest @ ..]) => [&[of * rows], rest].concat(),
        (Part::Transpose, [a, b]) => vec![*b, *a],
        (Part::Matrix, [a, b]) => vec![*a, *b, 1, 1],
        _ => shape.to_vec(),
    }
}

impl Source<'_> {
    /// The checkpoint's tensor.
    fn tensor(&self, dtype: DType) -> Result<TensorData, Error> {
        let mut rows: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut shape = Vec::new();
        for (name, part) in &self.names {
            let data = self.part.tensor(name)?.convert_dtype(dtype);
            let of = data.shape().as_slice().to_vec();
            let bytes = data.as_bytes().to_vec();
            let (index, bytes) = match part {
                Part::Rows { index, .. } => (*index, bytes),
                Part::SwapHalves => {
                    let (second, first) = bytes.split_at(bytes.len() / 2);
                    (0, [first, second].concat())
                }
                Part::Transpose => {
                    let columns = of.get(1).copied().unwrap_or(1);
                    (0, crate::weights::transposed(&bytes, columns, dtype.size()))
                }
                _ => (0, bytes),
            };
            shape = whole_shape(&of, *part);
            rows.push((index, bytes));
        }
        rows.sort_by_key(|(index, _)| *index);
        let bytes: Vec<u8> = rows.into_iter().flat_map(|(_, bytes)| bytes).collect();
        if bytes.len() != dtype.size() * shape.iter().product::<usize>() {
            let name = &self.names[0].0;
            let what = format!(
                "{name} lacks its neighbours, with which a single file fuses it; write a folder"
            );
            return Err(Error::unsupported(self.part.path(), what));
        }
        Ok(TensorData::from_bytes_vec(bytes, shape, dtype))
    }
}

/// SD3's checkpoints keep no projection of the first text encoder, and readers give it the unit matrix.
fn refuse_other_than_unit(part: &StoredPart, name: &str) -> Result<(), Error> {
    let data = part.tensor(name)?.convert::<f32>();
    let d = data.shape()[0];
    let mut values = data
        .as_slice::<f32>()
        .unwrap_or_default()
        .iter()
        .enumerate();
    if values.any(|(i, v)| *v != f32::from(u8::from(i.is_multiple_of(d + 1)))) {
        let what = format!(
            "{name} is not the unit matrix, and a single file of SD3 cannot hold another; write a folder"
        );
        return Err(Error::unsupported(part.path(), what));
    }
    Ok(())
}

/// Refuses a vocabulary of its own, which a reader of the single file would not have.
fn refuse_other_tokenizer(prior: &Folder, part: &str) -> Result<(), Error> {
    let length = 77;
    let config = prior.json(&format!("{part}/tokenizer_config.json"))?;
    let (own, clips) = (
        prior.clip_tokenizer(part, length)?,
        ClipTokenizer::embedded(&config, length)?,
    );
    for text in [
        "a photo of a cat",
        "low quality, blurry, 1234 pixels",
        "Žluťoučký kůň?!",
    ] {
        if own.encode(text).ids != clips.encode(text).ids {
            let what = "this tokenizer is not CLIP's own, and a single file cannot hold it; write a folder";
            return Err(Error::unsupported(prior.path(part), what));
        }
    }
    Ok(())
}

/// The configurations that go into the header.
fn configs(prior: &Folder) -> Result<Value, Error> {
    let mut all = Map::new();
    for file in KNOWN_FILES {
        if prior.has(file) {
            all.insert((*file).to_owned(), prior.json(file)?);
        }
    }
    Ok(Value::Object(all))
}
