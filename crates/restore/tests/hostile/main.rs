//! LoRA files and adapter folders that want to do harm: an error of one line each, no panic and no large allocation.
//!
//! They lie beside this, made by `make.py`; the prior is SDXL by its configuration, without weights.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use peak_alloc::PeakAlloc;
use priors::{
    any::AnyPrior,
    folder::Folder,
    kind::Kind,
    known,
    weights::{Precision, Weights},
};
use restore::{
    adapter::{AdapterFolder, open_adapter_lora},
    lora::{LoraFile, PriorShapes},
};

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// More than any of these may take.
const LARGE: usize = 16 << 20;

fn all_in(folder: &str) -> Vec<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/hostile")
        .join(folder);
    let entries = std::fs::read_dir(place).expect("the folder");
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    all.sort();
    all
}

/// The error of `result`, which names the file in one line and cost little memory. One test at a time: the allocator is shared.
fn refused<T>(path: &Path, what: impl FnOnce(&Path) -> Result<T, restore::Error>) {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let name = path.file_name().expect("a name").to_string_lossy();
    let why = match what(path) {
        Ok(_) => panic!("{name} was not refused"),
        Err(why) => why.to_string(),
    };
    let took = PEAK.peak_usage().saturating_sub(before);
    assert!(took < LARGE, "{name} took {took} bytes");
    let lines = why.chars().filter(|c| c.is_control()).count();
    assert!(
        why.contains(&*name) && lines == 0 && why.len() < 1200,
        "{name}: {why}"
    );
}

#[test]
fn hostile_loras_and_adapters_are_refused() {
    let prior = known::configs(Kind::SdxlBase).expect("known");
    let shapes = PriorShapes::of(&prior).expect("supported");
    let files = all_in("loras");
    assert_eq!(
        files.len(),
        29,
        "files that are not in the repository test nothing"
    );
    for path in &files {
        refused(path, |path| LoraFile::open(path, &shapes));
    }
    let device = Device::flex();
    let prior = AnyPrior::from_folder(&prior, &Weights::blank(&device)).expect("supported");
    let folders = all_in("adapters");
    assert_eq!(
        folders.len(),
        34,
        "files that are not in the repository test nothing"
    );
    for path in &folders {
        let folder = Folder::Disk(path.clone());
        refused(path, |path| {
            if !path.join("restoration_adapter").is_dir() {
                return open_adapter_lora(&folder, &prior, Precision::Stored, &device).map(drop);
            }
            AdapterFolder::open(&folder, &prior, Precision::Stored, &device).map(drop)
        });
    }
}
