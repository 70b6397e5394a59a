//! Where the goldens come from.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use priors::weights::SafetensorsFile;
use serde_json::{Value, json};

/// The files of a folder that no program runs, the folders' own among them.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let below = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let code = path.extension().is_some_and(|e| e == "py" || e == "rs");
        match path.is_dir() {
            true if path.ends_with("__pycache__") => vec![],
            true => files(&path),
            false if code => vec![],
            false => vec![path],
        }
    };
    entries.flat_map(below).collect()
}

/// What a golden says of itself; none of a file in another program's own form.
fn told(path: &Path) -> Option<Value> {
    let extension = path.extension().unwrap_or_default();
    if extension == "safetensors" {
        let file = SafetensorsFile::open(path).expect("a golden");
        let versions = file.metadata("versions").unwrap_or_default();
        let versions: Option<Value> = serde_json::from_str(versions).ok();
        return Some(json!({ "script": file.metadata("script"), "versions": versions }));
    }
    if extension != "json" {
        return None;
    }
    let text = std::fs::read(path).expect("a golden");
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    value.get("script").is_some().then_some(value)
}

/// Every golden names a script of its folder and the packages that it ran with; files in another program's form are named by
/// the golden that was made with them.
#[test]
fn every_golden_names_its_script_and_package_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut seen = 0;
    for (part, packages) in [
        (
            "pixels",
            &["torch", "numpy", "scipy", "pillow", "basicsr"][..],
        ),
        ("priors", &["torch", "diffusers", "transformers", "peft"]),
        ("restore", &["torch", "diffusers", "transformers", "peft"]),
        ("train", &["torch", "diffusers", "transformers", "peft"]),
    ] {
        let folder = format!("crates/{part}/tests/golden/");
        let (mut mute, mut covered) = (Vec::new(), BTreeSet::new());
        for path in files(&root.join(&folder)) {
            let Some(told) = told(&path) else {
                mute.push(path);
                continue;
            };
            let script = told["script"].as_str().unwrap_or_default();
            assert!(
                script.starts_with(&folder)
                    && script.ends_with(".py")
                    && root.join(script).is_file(),
                "{}: made by {:?}",
                path.display(),
                told["script"]
            );
            for package in packages {
                assert!(
                    told["versions"][package].is_string(),
                    "{}: no version of {package}",
                    path.display()
                );
            }
            let also = told["also"].as_array().into_iter().flatten();
            covered.extend(also.map(|name| path.with_file_name(name.as_str().expect("a name"))));
            seen += 1;
        }
        for path in mute {
            let named = covered.iter().any(|also| path.starts_with(also));
            assert!(named, "{}: nothing says what made it", path.display());
        }
    }
    assert!(seen > 55, "{seen} goldens");
}
