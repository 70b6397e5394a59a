//! LoRA files of other trainers: what diffusers makes of the weights, we make of them (`golden/lora_files.py`).

mod configuration;
#[path = "../../../priors/tests/golden/mod.rs"]
mod golden;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, TensorData};
use golden::{Golden, OP, formula_value};
use priors::{
    folder::{Folder, NETWORK_FILE},
    weights::{SafetensorsFile, Values, Weights, save_safetensors},
};
use restore::lora::{Form, LoraFile, PriorShapes, Update, Updates, merged, write_lora};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// The prior of a golden as a diffusers folder, weights by the formula.
fn prior(root: &Path, part: &str, config: &Value) -> Folder {
    std::fs::create_dir_all(root.join(part)).expect("makes the folder");
    std::fs::write(root.join(part).join("config.json"), config.to_string()).expect("writes");
    let folder = Folder::Disk(root.to_owned());
    let formula = Weights::formula(&Device::flex());
    let values: Values = folder
        .shapes(part)
        .expect("supported")
        .into_iter()
        .map(|(name, shape)| (name.clone(), formula_value(&formula, &name, &shape)))
        .collect();
    let path = root.join(part).join(NETWORK_FILE);
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    folder
}

fn sd3_config(golden: &SafetensorsFile) -> Value {
    serde_json::from_str(golden.metadata("sd3_config").expect("a config")).expect("JSON")
}

/// The tensors of one form, taken out of the golden.
fn tensors(golden: &SafetensorsFile, form: &str) -> Values {
    let prefix = format!("{form}:");
    let values: Values = golden
        .names()
        .iter()
        .filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), golden.data(name)?)))
        .collect();
    assert!(!values.is_empty(), "{form}");
    values
}

/// The file of one form.
fn form(golden: &SafetensorsFile, root: &Path, form: &str) -> PathBuf {
    let values = tensors(golden, form);
    let path = root.join(format!("{form}.safetensors"));
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    path
}

/// Every weight of the merged prior: changed as in the golden, or as it was.
fn compare(golden: &Golden, folder: &Folder, part: &str, which: &str) {
    let file = format!("{part}/{NETWORK_FILE}");
    let (view, edit) = (
        folder.view(&file).expect("opens"),
        folder.edit(&file).expect("edited"),
    );
    let mut comparison = golden.compare();
    let mut changed = 0;
    for name in folder.shapes(part).expect("supported").keys() {
        let before = view.data(name).expect("floats").expect("there");
        let after = edit.edit(name, before.clone());
        let wanted = format!("{which}:{name}");
        if golden.has(&wanted) {
            changed += 1;
            comparison.see_data(&wanted, after, OP);
        } else {
            after.assert_eq(&before, true);
        }
    }
    assert!(changed > 10, "{which}: {changed} weights changed");
    comparison.finish(|name| !name.starts_with(&format!("{which}:")));
}

fn open() -> (Golden, SafetensorsFile) {
    let path = format!("{FOLDER}/lora_files.safetensors");
    let file = SafetensorsFile::open(Path::new(&path)).expect("opens");
    (Golden::open(FOLDER, "lora_files"), file)
}

#[test]
fn every_form_merges_as_in_diffusers() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let root = place.path();
    let folder = prior(root, "unet", &golden.config());
    let forms = [
        ("kohya", "fused_alpha"),
        ("kohya_diffusers", "fused_alpha"),
        ("diffusers", "fused"),
        ("diffusers_old", "fused"),
        ("diffusers_processor", "fused"),
        ("peft", "fused"),
        ("comfyui", "fused"),
    ];
    for (name, which) in forms {
        let path = form(&file, root, name);
        let (edited, reports) = merged(folder.clone(), &[(&path, 1.0)]).expect("fits");
        compare(&golden, &edited, "unet", which);
        let said = reports[0].to_string();
        match name {
            "kohya" => assert_eq!(
                said,
                "39 of 42 keys matched, 3 of text encoders that this prior does not have"
            ),
            "kohya_diffusers" => assert_eq!(said, "39 of 39 keys matched"),
            _ => assert_eq!(said, "26 of 26 keys matched"),
        }
    }
}

#[test]
fn fused_projections_of_sd3_merge_as_in_the_original_weights() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "transformer", &sd3_config(&file));
    for name in ["sd3_kohya", "sd3_comfyui"] {
        let path = form(&file, place.path(), name);
        let (edited, reports) = merged(folder.clone(), &[(&path, 1.0)]).expect("fits");
        assert_eq!(reports[0].to_string(), "21 of 21 keys matched", "{name}");
        compare(&golden, &edited, "transformer", "sd3");
    }
}

#[test]
fn strengths_add_up_and_zero_is_none() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "unet", &golden.config());
    let path = form(&file, place.path(), "diffusers");
    let (edited, _) = merged(folder.clone(), &[(&path, 0.75), (&path, 0.25)]).expect("fits");
    compare(&golden, &edited, "unet", "fused");
    let (edited, _) = merged(folder, &[(&path, 0.0)]).expect("fits");
    let name = "mid_block.resnets.1.conv2.weight";
    let of = |folder: &Folder| folder.stored("unet").expect("fits").tensor(name);
    let before = of(edited.below()).expect("there");
    of(&edited).expect("there").assert_eq(&before, true);
}

/// What the golden's `form` says beside its tensors: diffusers' header or PEFT's `adapter_config.json`.
fn told<'a>(golden: &'a SafetensorsFile, form: &str) -> &'a str {
    golden.metadata(form).expect("what the program says")
}

#[test]
fn adapters_of_sd3_merge_as_in_diffusers_and_peft() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "transformer", &sd3_config(&file));
    let check = |path: &Path| {
        let (edited, reports) = merged(folder.clone(), &[(path, 1.0)]).expect("fits");
        assert_eq!(reports[0].to_string(), "28 of 28 keys matched");
        compare(&golden, &edited, "transformer", "sd3_merged");
    };
    // diffusers says ranks and alphas in the header, PEFT in a file beside.
    let values = tensors(&file, "sd3_diffusers");
    let path = place.path().join("pytorch_lora_weights.safetensors");
    let header = told(&file, "sd3_diffusers").to_owned();
    let header = BTreeMap::from([("lora_adapter_metadata".to_owned(), header)]);
    save_safetensors(&path, &values, DType::F32, &header).expect("saves");
    check(&path);
    let beside = place.path().join("peft");
    std::fs::create_dir(&beside).expect("makes the folder");
    let path = form(&file, place.path(), "sd3_peft");
    std::fs::rename(path, beside.join("adapter_model.safetensors")).expect("moves");
    let config = told(&file, "sd3_peft");
    std::fs::write(beside.join("adapter_config.json"), config).expect("writes");
    check(&beside);
}

/// The keys of a JSON object.
fn keys(text: &str) -> BTreeSet<String> {
    let about: BTreeMap<String, Value> = serde_json::from_str(text).expect("an object");
    about.into_keys().collect()
}

/// What is written has the keys and the tensors of the file that it was read from, which others made or understand; our own reader
/// takes more names than they do.
#[test]
fn what_is_written_has_the_names_that_other_programs_give() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let sets = [
        ("unet", golden.config(), ["kohya", "diffusers", "peft"]),
        (
            "transformer",
            sd3_config(&file),
            ["sd3_kohya", "sd3_diffusers", "sd3_peft"],
        ),
    ];
    for (part, config, names) in sets {
        let root = place.path().join(part);
        let shapes = PriorShapes::of(&prior(&root, part, &config)).expect("supported");
        for (name, form_of) in names
            .into_iter()
            .zip([Form::Kohya, Form::Diffusers, Form::Peft])
        {
            let read = LoraFile::open(&form(&file, &root, name), &shapes).expect("fits");
            let path = root.join("written");
            write_lora(&path, &read.updates, &shapes, form_of, DType::F32).expect("writes");
            let weights = match form_of {
                Form::Peft => path.join("adapter_model.safetensors"),
                _ => path.clone(),
            };
            let written = SafetensorsFile::open(&weights).expect("opens");
            let mut wanted = tensors(&file, name);
            // This prior has no text encoder.
            wanted.retain(|key, _| !key.starts_with("lora_te1_"));
            let both = (written.names().iter(), wanted.keys());
            assert!(both.0.eq(both.1), "{name}: {:?}", written.names());
            for (key, wanted) in &wanted {
                let got = written.data(key).expect("there");
                if form_of == Form::Kohya && key.contains("_qkv.") {
                    // Three updates become one of three times the rank.
                    let one = |&side: &usize| if side == 2 { 6 } else { side };
                    let shape: Vec<usize> = wanted.shape().iter().map(one).collect();
                    assert_eq!(got.shape().to_vec(), shape, "{key}");
                } else {
                    got.assert_eq(wanted, true);
                }
            }
            match name {
                "sd3_diffusers" => {
                    let header = written.metadata("lora_adapter_metadata");
                    let header = keys(header.expect("ranks and alphas"));
                    assert!(header.is_subset(&keys(told(&file, name))), "{header:?}");
                    assert!(header.contains("transformer.lora_alpha"), "{header:?}");
                }
                "sd3_peft" => {
                    let config = std::fs::read_to_string(path.join("adapter_config.json"));
                    let config = keys(&config.expect("beside it"));
                    assert!(config.is_subset(&keys(told(&file, name))), "{config:?}");
                    assert!(config.contains("lora_alpha"), "{config:?}");
                }
                _ => {}
            }
            match form_of {
                Form::Peft => std::fs::remove_dir_all(&path).expect("removes it"),
                _ => std::fs::remove_file(&path).expect("removes it"),
            }
        }
    }
}

/// `alpha / r * B A`, flat.
fn delta(update: &Update) -> Vec<f64> {
    let values = |data: &TensorData| data.as_slice::<f32>().expect("f32").to_vec();
    let (down, up, r) = (values(&update.down), values(&update.up), update.rank());
    let row = down.len() / r;
    let entry = |i: usize| {
        let (i, j) = (i / row, i % row);
        let sum: f64 = (0..r)
            .map(|k| f64::from(up[i * r + k]) * f64::from(down[k * row + j]))
            .sum();
        update.alpha / r as f64 * sum
    };
    (0..up.len() / r * row).map(entry).collect()
}

/// What is written in a form and read again has the same effect.
#[test]
fn every_form_is_written_and_read_again() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let sets = [
        ("unet", golden.config(), "kohya"),
        ("transformer", sd3_config(&file), "sd3_kohya"),
    ];
    for (part, config, name) in sets {
        let root = place.path().join(part);
        let shapes = PriorShapes::of(&prior(&root, part, &config)).expect("supported");
        let first = LoraFile::open(&form(&file, &root, name), &shapes).expect("fits");
        let mut updates: Updates = first.updates[part].clone();
        // One module differs from the others in alpha, one is alone of its fused projection.
        updates.values_mut().next().expect("some").alpha = 0.5;
        updates.retain(|module, _| !module.ends_with("transformer_blocks.1.attn2.to_k"));
        for form in [Form::Kohya, Form::Diffusers, Form::Peft] {
            let path = root.join(format!("{form:?}.safetensors"));
            let parts = BTreeMap::from([(part, updates.clone())]);
            write_lora(&path, &parts, &shapes, form, DType::F32).expect("writes");
            let again = LoraFile::open(&path, &shapes).expect("fits");
            assert_eq!(again.report.matched, again.report.all, "{form:?}");
            for (module, update) in &updates {
                let (a, b) = (delta(update), delta(&again.updates[part][module]));
                let close = a
                    .iter()
                    .zip(&b)
                    .all(|(a, b)| (a - b).abs() <= 1e-6 + 1e-6 * a.abs());
                assert!(a.len() == b.len() && close, "{form:?} {module}");
            }
            // A part of a fused projection that had no update has one of zeros.
            let others = again.updates[part]
                .iter()
                .filter(|(module, _)| !updates.contains_key(*module));
            for (module, update) in others {
                assert!(
                    form == Form::Kohya && delta(update).iter().all(|&v| v == 0.0),
                    "{module}"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "unet", &golden.config());
    let shapes = PriorShapes::of(&folder).expect("supported");
    let key =
        |end: &str| format!("unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_v.{end}");
    let tensor = |shape: [usize; 2]| TensorData::new(vec![0.5_f32; shape[0] * shape[1]], shape);
    let refused = |values: &[(String, TensorData)]| {
        let path = place.path().join("bad.safetensors");
        let values: Values = values.iter().cloned().collect();
        save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
        let why = LoraFile::open(&path, &shapes)
            .expect_err("refused")
            .to_string();
        assert!(
            why.contains("bad.safetensors") && !why.contains('\n'),
            "{why}"
        );
        why
    };
    let (a, b) = (key("lora_A.weight"), key("lora_B.weight"));
    assert!(refused(&[(a.clone(), tensor([2, 4]))]).contains("only a part of"));
    let wrong = [(a.clone(), tensor([2, 5])), (b.clone(), tensor([4, 2]))];
    assert!(refused(&wrong).contains("does not fit the prior's"));
    let ranks = [(a.clone(), tensor([2, 4])), (b.clone(), tensor([4, 3]))];
    assert!(refused(&ranks).contains("does not fit the prior's"));
    let flat = TensorData::new(vec![0.5_f32], Vec::<usize>::new());
    let scalars = [(a.clone(), flat.clone()), (b.clone(), flat)];
    assert!(refused(&scalars).contains("does not fit the prior's"));
    let good = [(a, tensor([2, 4])), (b, tensor([4, 2]))];
    let nan = (
        key("alpha"),
        TensorData::new(vec![f32::NAN], Vec::<usize>::new()),
    );
    assert!(refused(&[&good[..], &[nan]].concat()).contains("one finite number"));
    let magnitude = (key("dora_scale"), tensor([4, 1]));
    assert!(refused(&[&good[..], &[magnitude]].concat()).contains("is DoRA"));
    let sd3 = form(&file, place.path(), "sd3_kohya");
    let why = LoraFile::open(&sd3, &shapes)
        .expect_err("another prior's")
        .to_string();
    assert!(why.contains("0 of 21 keys matched"), "{why}");
    // A file with any byte of its header changed is read or refused, without a panic.
    let whole = std::fs::read(form(&file, place.path(), "kohya")).expect("reads");
    let path = place.path().join("changed.safetensors");
    for i in (0..whole.len().min(4000)).step_by(7) {
        for byte in [0, b'9', b'"', 0xFF] {
            let mut changed = whole.clone();
            changed[i] = byte;
            std::fs::write(&path, changed).expect("writes");
            drop(LoraFile::open(&path, &shapes));
        }
    }
}
