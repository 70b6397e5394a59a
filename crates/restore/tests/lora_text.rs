//! LoRA of text encoders: what diffusers makes of their weights, we make of them (`golden/lora_text.py`).

#[path = "../../priors/tests/golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use golden::{Golden, OP, formula_value};
use priors::{
    folder::Folder,
    weights::{SafetensorsFile, Values, Weights, save_safetensors},
};
use restore::lora::{Form, LoraFile, PriorShapes, merged, write_lora};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
const ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// The golden's prior as a diffusers folder, weights by the formula.
fn prior(golden: &Golden, root: &Path) -> Folder {
    let folder = Folder::Disk(root.to_owned());
    let formula = Weights::formula(&Device::flex());
    let parts = golden.config();
    for part in parts.as_object().expect("by part").keys() {
        std::fs::create_dir_all(root.join(part)).expect("makes the folder");
        let config = golden.config()[part].to_string();
        std::fs::write(root.join(part).join("config.json"), config).expect("writes");
        let shapes = folder.shapes(part).expect("supported").into_iter();
        let values: Values = shapes
            .map(|(name, shape)| (name.clone(), formula_value(&formula, &name, &shape)))
            .collect();
        let path = root.join(Folder::weights_file(part));
        save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    }
    folder
}

/// The tensors of one form, taken out of the golden.
fn tensors(golden: &Golden, form: &str) -> Values {
    let prefix = format!("{form}:");
    let own = |name: &String| {
        let key = name.strip_prefix(&prefix)?;
        Some((key.to_owned(), golden.data(name)))
    };
    let values: Values = golden.names().iter().filter_map(own).collect();
    assert!(!values.is_empty(), "{form}");
    values
}

/// The file of one form.
fn form(golden: &Golden, root: &Path, form: &str) -> PathBuf {
    let values = tensors(golden, form);
    let path = root.join(format!("{form}.safetensors"));
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    path
}

/// Every weight of the encoders: changed as in the golden, or as it was.
fn compare(golden: &Golden, folder: &Folder, which: &str, parts: &[&str], modules: usize) {
    let mut comparison = golden.compare();
    for part in parts {
        let (before, after) = (folder.below().stored(part), folder.stored(part));
        let (before, after) = (before.expect("fits"), after.expect("fits"));
        let mut changed = 0;
        for name in before.shapes().keys() {
            let after = after.tensor(name).expect("there");
            let wanted = format!("{which}.{part}:{name}");
            if golden.has(&wanted) {
                changed += 1;
                comparison.see_data(&wanted, after, OP);
            } else {
                after.assert_eq(&before.tensor(name).expect("there"), true);
            }
        }
        assert_eq!(changed, modules, "{which} {part}");
    }
    comparison.finish(|name| !name.starts_with(&format!("{which}.")));
}

#[test]
fn every_form_merges_into_the_text_encoders_as_in_diffusers() {
    let golden = Golden::open(FOLDER, "lora_text");
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(&golden, place.path());
    for (name, which, keys) in [
        ("kohya", "fused_alpha", 39),
        ("diffusers", "fused", 26),
        ("diffusers_old", "fused", 26),
        ("comfyui", "fused", 26),
    ] {
        let path = form(&golden, place.path(), name);
        let (edited, reports) = merged(folder.clone(), &[(&path, 1.0)]).expect("fits");
        let said = format!("{keys} of {keys} keys matched");
        assert_eq!(reports[0].to_string(), said, "{name}");
        compare(&golden, &edited, which, &ENCODERS, 6);
    }
}

#[test]
fn every_form_merges_into_t5_as_in_peft() {
    let golden = Golden::open(FOLDER, "lora_t5");
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(&golden, place.path());
    let shapes = PriorShapes::of(&folder).expect("supported");
    let check = |path: &Path| {
        let (edited, reports) = merged(folder.clone(), &[(path, 1.0)]).expect("fits");
        assert_eq!(reports[0].matched, reports[0].all, "{}", path.display());
        compare(&golden, &edited, "merged", &["text_encoder_3"], 7);
    };
    for name in ["kohya", "diffusers", "comfyui"] {
        check(&form(&golden, place.path(), name));
    }
    let read = LoraFile::open(&form(&golden, place.path(), "kohya"), &shapes).expect("fits");
    let path = place.path().join("written.safetensors");
    for form in [Form::Kohya, Form::Diffusers] {
        write_lora(&path, &read.updates, &shapes, form, DType::F32).expect("writes");
        check(&path);
        if form == Form::Kohya {
            let written = SafetensorsFile::open(&path).expect("opens");
            assert!(written.names().iter().eq(tensors(&golden, "kohya").keys()));
        }
    }
}

#[test]
fn encoders_that_a_prior_lacks_are_counted() {
    let golden = Golden::open(FOLDER, "lora_text");
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(&golden, place.path());
    std::fs::remove_dir_all(place.path().join(ENCODERS[1])).expect("removes it");
    let path = form(&golden, place.path(), "diffusers");
    let (_, reports) = merged(folder, &[(&path, 1.0)]).expect("fits");
    assert_eq!(
        reports[0].to_string(),
        "14 of 26 keys matched, 12 of text encoders that this prior does not have"
    );
}

#[test]
fn what_is_written_merges_alike() {
    let golden = Golden::open(FOLDER, "lora_text");
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(&golden, place.path());
    let shapes = PriorShapes::of(&folder).expect("supported");
    let file = LoraFile::open(&form(&golden, place.path(), "kohya"), &shapes).expect("fits");
    for (form, name) in [(Form::Kohya, "kohya"), (Form::Diffusers, "diffusers")] {
        let path = place.path().join(format!("{form:?}.safetensors"));
        write_lora(&path, &file.updates, &shapes, form, DType::F32).expect("writes");
        let (written, mut wanted) = (SafetensorsFile::open(&path), tensors(&golden, name));
        let written = written.expect("opens");
        // The golden's one module of the network has diffusers' block names in kohya's form, where we write Stability's.
        let of_network = |key: &&String| !key.starts_with("lora_unet_");
        let names = written.names().iter().filter(of_network);
        wanted.retain(|key, _| of_network(&key));
        assert!(names.eq(wanted.keys()), "{form:?}: {:?}", written.names());
        for (key, wanted) in &wanted {
            written.data(key).expect("there").assert_eq(wanted, true);
        }
        let (edited, reports) = merged(folder.clone(), &[(&path, 1.0)]).expect("fits");
        assert_eq!(reports[0].matched, reports[0].all, "{form:?}");
        compare(&golden, &edited, "fused_alpha", &ENCODERS, 6);
    }
    let path = place.path().join("peft");
    let why = write_lora(&path, &file.updates, &shapes, Form::Peft, DType::F32);
    let why = why.expect_err("one network's form").to_string();
    assert!(why.contains("text_encoder too"), "{why}");
}
