//! LoRA files and adapter folders that want to do harm: an error of one line each, no panic and no large allocation.
//!
//! They lie beside this, made by `make.py`; the prior is SDXL by its configuration, without weights.

#[path = "../../../priors/tests/hostile/harness.rs"]
mod harness;

use burn::tensor::Device;
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

use harness::{all_in, refused};

#[test]
fn hostile_loras_and_adapters_are_refused() {
    let prior = known::configs(Kind::SdxlBase).expect("known");
    let shapes = PriorShapes::of(&prior).expect("supported");
    let files = all_in("loras", 29);
    for path in &files {
        refused(path, |path| LoraFile::open(path, &shapes));
    }
    let device = Device::flex();
    let prior = AnyPrior::from_folder(&prior, &Weights::blank(&device)).expect("supported");
    let folders = all_in("adapters", 34);
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
