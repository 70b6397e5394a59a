//! Checkpoints in other programs' names: the same tensors as diffusers' conversion gives (`golden/single_file.py`).

mod golden;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use burn::tensor::{DType, Device, TensorData};
use priors::{
    clip::ClipText,
    folder::Folder,
    kind::Kind,
    known,
    mmdit::MmDit,
    single_file::{EncoderNames, OpenClipNames, TransformerNames, UnetNames, VaeNames},
    unet::Unet,
    vae::AutoencoderKl,
    weights::{
        Init, Naming, Part, Precision, SafetensorsFile, Values, View, Weights, save_safetensors,
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

type Shapes = BTreeMap<String, Vec<usize>>;

fn shape_in_file(naming: &dyn Naming, shapes: &Shapes) -> Shapes {
    let mut original = Shapes::new();
    for (name, shape) in shapes {
        // Where there are two places, the upsampler's, the level above has attention or not.
        let pieces = naming.pieces(name);
        let attends = |name: &str| {
            shapes.contains_key(&name.replace("upsamplers.0.conv", "attentions.0.norm"))
        };
        let piece = match &pieces[..] {
            [piece] => piece,
            [with, without] => {
                if attends(name) {
                    with
                } else {
                    without
                }
            }
            _ => panic!("{name} is nowhere"),
        };
        let stored: Vec<usize> = match piece.part {
            Part::Whole | Part::SwapHalves => shape.clone(),
            Part::Rows { of, .. } => [&[of * shape[0]], &shape[1..]].concat(),
            Part::Transpose => vec![shape[1], shape[0]],
            Part::Matrix => vec![shape[0], shape[1], 1, 1],
            Part::Unit => panic!("{name} is not stored"),
        };
        let before = original.insert(piece.key.clone(), stored.clone());
        assert!(before.is_none_or(|before| before == stored), "{name}");
    }
    original
}

fn digest(prefix: &str, shapes: &Shapes) -> (usize, String) {
    let line = |(name, shape): (&String, &Vec<usize>)| {
        let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("{prefix}{name}\t{}", sides.join("x"))
    };
    let mut lines: Vec<String> = shapes.iter().map(line).collect();
    lines.sort();
    let hash = Sha256::digest(lines.join("\n").as_bytes());
    (
        lines.len(),
        hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    )
}

/// Every name and shape of the full-size networks, in diffusers' and in the original names.
#[test]
fn full_size_names_are_those_of_diffusers() {
    let text = std::fs::read(format!("{FOLDER}/single_file_names.json")).expect("the digests");
    let names: Value = serde_json::from_slice(&text).expect("JSON");
    let device = Device::flex();
    let configs = |kind| known::configs(kind).expect("known");
    let check = |what: &str,
                 prefix: &str,
                 naming: &dyn Naming,
                 shapes: Shapes,
                 more: &[(&str, Vec<usize>)]| {
        let wanted = |form: &str| {
            let digest = &names["names"][what][form];
            let n = digest["tensors"].as_u64().expect("a count") as usize;
            (n, digest["sha256"].as_str().expect("a hash").to_owned())
        };
        assert_eq!(digest("", &shapes), wanted("diffusers"), "{what}");
        let mut original = shape_in_file(naming, &shapes);
        original.extend(
            more.iter()
                .map(|(name, shape)| ((*name).to_owned(), shape.clone())),
        );
        assert_eq!(digest(prefix, &original), wanted("original"), "{what}");
        compare_list(what, &shapes);
    };
    let network = "model.diffusion_model.";
    let sdxl = configs(Kind::SdxlBase);
    let recorded = |folder: &Folder, part: &str| {
        let w = Weights::blank(&device);
        let file = format!("{part}/config.json");
        let (json, path) = (folder.json(&file).expect("there"), folder.path(&file));
        match part {
            "unet" => drop(Unet::from_json(&json, &path, &w).expect("supported")),
            "vae" => drop(AutoencoderKl::from_json(&json, &path, &w).expect("supported")),
            _ => drop(ClipText::from_json(&json, &path, &w).expect("supported")),
        }
        w.shapes()
    };
    check(
        "unet",
        network,
        &UnetNames { layers: 2 },
        recorded(&sdxl, "unet"),
        &[],
    );
    let vae = VaeNames { levels: 4 };
    check(
        "vae",
        "first_stage_model.",
        &vae,
        recorded(&sdxl, "vae"),
        &[],
    );
    let sd3 = configs(Kind::Sd3Medium);
    check(
        "sd3_vae",
        "first_stage_model.",
        &vae,
        recorded(&sd3, "vae"),
        &[],
    );
    let scale = [("logit_scale", vec![])];
    let clip = recorded(&sdxl, "text_encoder_2");
    check(
        "text_encoder_2",
        "conditioner.embedders.1.model.",
        &OpenClipNames,
        clip,
        &scale,
    );
    let transformers = [
        ("sd3", Kind::Sd3Medium, 24),
        ("sd35_medium", Kind::Sd35Medium, 24),
        ("sd35_large", Kind::Sd35Large, 38),
    ];
    for (what, kind, layers) in transformers {
        let file = "transformer/config.json";
        let json = configs(kind).json(file).expect("there");
        let w = Weights::blank(&Device::flex());
        MmDit::from_json(&json, Path::new(file), &w).expect("supported");
        check(what, network, &TransformerNames { layers }, w.shapes(), &[]);
    }
}

/// The lists `name<TAB>64x32` of a folder, when there is one.
fn compare_list(what: &str, shapes: &Shapes) {
    let Some(folder) = std::env::var_os("RECLAIR_TENSOR_LISTS") else {
        eprintln!("{what}: no RECLAIR_TENSOR_LISTS, compared by its digest only");
        return;
    };
    let file = match what {
        "unet" | "vae" => format!("sdxl_{what}"),
        "text_encoder_2" => "clip_g".to_owned(),
        "sd3" => "sd3_medium_transformer".to_owned(),
        "sd3_vae" => what.to_owned(),
        other => format!("{other}_transformer"),
    };
    let text = std::fs::read_to_string(Path::new(&folder).join(file + ".tsv")).expect("a list");
    let listed: Shapes = text
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').expect("two columns");
            let sides = shape
                .split('x')
                .map(|n| n.parse().expect("a number"))
                .collect();
            (name.to_owned(), sides)
        })
        .collect();
    assert_eq!(&listed, shapes, "{what}");
}

fn tiny(part: &str, prefix: &str, naming: impl Naming + 'static) {
    let path = format!("{FOLDER}/single_file_{part}.safetensors");
    let file = Arc::new(SafetensorsFile::open(Path::new(&path)).expect("opens"));
    let converted = file.metadata("converted").expect("diffusers' names");
    let converted: Shapes = serde_json::from_str(converted).expect("names and shapes");
    let view = View::named(file, prefix, Some(Arc::new(naming)));
    let formula = Weights::formula(&Device::flex());
    for (name, shape) in &converted {
        assert_eq!(view.shape(name).as_ref(), Some(shape), "{name}");
        let got = view.data(name).expect("floats").expect("there");
        got.assert_eq(&golden::formula_value(&formula, name, shape), true);
    }
    assert!(
        view.unused(&converted).is_empty(),
        "{:?}",
        view.unused(&converted)
    );
    // A name that the network does not have is nowhere, and a tensor that nothing asked for is said.
    assert!(!view.has("down_blocks.9.resnets.0.conv1.weight") && !view.has("nonsense"));
    let mut fewer = converted;
    fewer.retain(|name, _| !name.ends_with("bias"));
    assert!(!view.unused(&fewer).is_empty());
}

#[test]
fn every_tensor_of_an_sdxl_unet() {
    tiny("unet", "model.diffusion_model.", UnetNames { layers: 2 });
}

#[test]
fn every_tensor_of_an_autoencoder() {
    tiny("vae", "first_stage_model.", VaeNames { levels: 3 });
}

#[test]
fn every_tensor_of_an_openclip_text_encoder() {
    tiny(
        "text_encoder_2",
        "conditioner.embedders.1.model.",
        OpenClipNames,
    );
}

#[test]
fn every_tensor_of_an_sd35_transformer() {
    tiny(
        "transformer",
        "model.diffusion_model.",
        TransformerNames { layers: 3 },
    );
}

/// The tiny network `part` and the encoders' and autoencoder's goldens as one checkpoint, the network's keys after `prefix` in Stability's
/// or diffusers' names, with `more` scalars.
fn checkpoint(path: &Path, part: &str, prefix: &str, names: Names, more: &[&str]) {
    let (mut values, mut configs) = (Values::new(), serde_json::Map::new());
    for inside in [part, "vae", "text_encoder_2"] {
        let golden = golden::Golden::open(FOLDER, &format!("single_file_{inside}"));
        configs.insert(format!("{inside}/config.json"), golden.config());
        if inside == part && names == Names::Diffusers {
            let formula = Weights::formula(&Device::flex());
            let of = |(name, shape): (String, Vec<usize>)| {
                let value = golden::formula_value(&formula, &name, &shape);
                (format!("{prefix}{name}"), value)
            };
            values.extend(converted(part).into_iter().map(of));
            continue;
        }
        for name in golden.names() {
            let network = name.strip_prefix("model.diffusion_model.");
            let key = network.map_or(name.clone(), |name| format!("{prefix}{name}"));
            values.insert(key, golden.data(name));
        }
    }
    let scalar = || TensorData::new(vec![1.0_f32], [1]);
    values.extend(more.iter().map(|name| ((*name).to_owned(), scalar())));
    let configs = Value::Object(configs).to_string();
    let header = BTreeMap::from([("reclair.configs".to_owned(), configs)]);
    save_safetensors(path, &values, DType::F32, &header).expect("saves");
}

/// Whose names a network has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Stability,
    Diffusers,
}

/// diffusers' names and shapes of a golden.
fn converted(part: &str) -> Shapes {
    let path = format!("{FOLDER}/single_file_{part}.safetensors");
    let file = SafetensorsFile::open(Path::new(&path)).expect("opens");
    let converted = file.metadata("converted").expect("diffusers' names");
    serde_json::from_str(converted).expect("names and shapes")
}

/// Builds a part of a checkpoint, and compares every tensor with the golden's.
fn built(folder: &Folder, part: &str) -> Result<(), priors::Error> {
    let device = Device::flex();
    let file = Folder::weights_file(part);
    let config = format!("{part}/config.json");
    let (json, path) = (folder.json(&config)?, folder.path(&config));
    let w = folder.weights(&file, Precision::Stored, &device)?;
    match part {
        "unet" => drop(Unet::from_json(&json, &path, &w)?),
        "transformer" => drop(MmDit::from_json(&json, &path, &w)?),
        "vae" => drop(AutoencoderKl::from_json(&json, &path, &w)?),
        _ => drop(ClipText::from_json(&json, &path, &w)?),
    }
    w.finish()?;
    let (view, formula) = (folder.view(&file)?, Weights::formula(&device));
    for (name, shape) in converted(part) {
        let got = view.data(&name)?.expect("there");
        got.assert_eq(&golden::formula_value(&formula, &name, &shape), true);
    }
    Ok(())
}

/// What real checkpoints hold besides their parts.
const KNOWN_MORE: [&str; 5] = [
    "model_ema.decay",
    "denoiser.sigmas",
    "alphas_cumprod",
    "conditioner.embedders.0.unused",
    "v_pred",
];

#[test]
fn a_checkpoints_networks_are_built_with_and_without_a_prefix() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let path = place.path().join("one.safetensors");
    for part in ["unet", "transformer"] {
        for prefix in ["model.diffusion_model.", "diffusion_model.", ""] {
            for names in [Names::Stability, Names::Diffusers] {
                checkpoint(&path, part, prefix, names, &KNOWN_MORE);
                let folder = Folder::open(&path).expect("opens");
                for part in [part, "vae", "text_encoder_2"] {
                    built(&folder, part)
                        .unwrap_or_else(|why| panic!("{part} {prefix:?} {names:?}: {why}"));
                }
                let lines = folder.sources();
                assert_eq!(lines.len(), 1, "{prefix:?} {names:?}: {lines:?}");
            }
        }
    }
}

#[test]
fn what_is_of_no_part_of_a_checkpoint_is_said() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let path = place.path().join("one.safetensors");
    let more = ["odd.weight", "an\nother"];
    checkpoint(&path, "unet", "diffusion_model.", Names::Stability, &more);
    let folder = Folder::open(&path).expect("opens");
    built(&folder, "unet").expect("fits");
    let lines = folder.sources();
    let said = "one.safetensors: 2 of its tensors belong to no part of a prior and are not used (an\\nother, odd.weight)";
    assert!(lines.len() == 2 && lines[1].ends_with(said), "{lines:?}");
    // Without a prefix it could be the network's.
    checkpoint(&path, "unet", "", Names::Stability, &more[..1]);
    let folder = Folder::open(&path).expect("opens");
    let why = built(&folder, "unet").expect_err("refused").to_string();
    assert!(
        why.contains("odd.weight") && why.contains("not part of this network"),
        "{why}"
    );
    built(&folder, "vae").expect("fits");
}

/// A network built through a view says what the file lacks and what it has too much of.
#[test]
fn a_network_is_built_from_its_original_names() {
    let path = format!("{FOLDER}/single_file_vae.safetensors");
    let file = Arc::new(SafetensorsFile::open(Path::new(&path)).expect("opens"));
    let view = |levels| {
        let view = View::named(
            file.clone(),
            "first_stage_model.",
            Some(Arc::new(VaeNames { levels })),
        );
        Weights::from_view(view, Precision::Stored, &Device::flex())
    };
    let config = |layers: usize| {
        serde_json::json!({
            "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
            "block_out_channels": [2, 4, 4], "layers_per_block": layers, "norm_num_groups": 2, "scaling_factor": 1.0,
        })
    };
    let build =
        |w: &Weights, layers| AutoencoderKl::from_json(&config(layers), Path::new("config"), w);
    let w = view(3);
    build(&w, 2).expect("fits");
    w.finish().expect("every tensor is used");
    let w = view(3);
    build(&w, 1).expect("fits in part");
    let why = w.finish().expect_err("a third of it is left").to_string();
    assert!(
        why.contains("first_stage_model.") && why.contains("not part of this network"),
        "{why}"
    );
    let why = build(&view(3), 3).expect_err("too few").to_string();
    assert!(why.contains("is missing"), "{why}");
}

#[test]
fn clip_l_of_sd3_projects_by_a_unit_matrix() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("clip_l.safetensors");
    let data =
        |shape: &[usize]| TensorData::new(vec![0.5_f32; shape.iter().product()], shape.to_vec());
    let values = Values::from([
        (
            "text_model.embeddings.position_embedding.weight".to_owned(),
            data(&[4, 3]),
        ),
        ("text_projection.weight".to_owned(), data(&[3, 3])),
        ("logit_scale".to_owned(), data(&[])),
    ]);
    save_safetensors(&path, &values, DType::F16, &Default::default()).expect("saves");
    let file = Arc::new(SafetensorsFile::open(&path).expect("opens"));
    let view = View::named(file, "", Some(Arc::new(EncoderNames::UnitProjection)));
    let w = Weights::from_view(view, Precision::F32, &Device::flex());
    let projection = w
        .tensor("text_projection.weight", [3, 3], Init::Zeros)
        .expect("made");
    let unit = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    assert_eq!(
        projection.into_data().try_into_vec::<f32>().expect("f32"),
        unit
    );
    w.finish()
        .expect("the file's own projection and scale may be left over");
}
