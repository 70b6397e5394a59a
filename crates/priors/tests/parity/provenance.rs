//! Where the goldens come from.

use std::path::Path;

use priors::weights::SafetensorsFile;
use serde_json::Value;

/// Every golden of this crate and of `restore` names a script that is there, and the packages it ran with.
#[test]
fn every_golden_names_its_script_and_package_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut seen = 0;
    for folder in ["crates/priors/tests/golden", "crates/restore/tests/golden"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|e| e != "safetensors") {
                continue;
            }
            let file = SafetensorsFile::open(&path).expect("a golden");
            let told = |key: &str| {
                file.metadata(key)
                    .unwrap_or_else(|| panic!("{} has no {key}", path.display()))
            };
            let script = told("script");
            assert!(
                script.starts_with(folder) && root.join(script).is_file(),
                "{}: {script}",
                path.display()
            );
            let versions: Value = serde_json::from_str(told("versions")).expect("JSON");
            for package in ["torch", "diffusers", "transformers", "peft"] {
                assert!(
                    versions[package].is_string(),
                    "{}: no version of {package}",
                    path.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} goldens");
}
