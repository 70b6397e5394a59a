//! The recipes are configurations of today, and those of the paper's priors say what the paper says.

use std::path::{Path, PathBuf};

use train::config::{Gradient, Stage, Timesteps, TrainConfig};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

#[test]
fn every_recipe_is_read() {
    let mut count = 0;
    for folder in std::fs::read_dir(recipes()).expect("recipes") {
        let folder = folder.expect("an entry").path();
        for file in std::fs::read_dir(&folder).expect("a folder") {
            let file = file.expect("an entry").path();
            if file.extension().is_some_and(|kind| kind == "toml") {
                TrainConfig::read(&file).unwrap_or_else(|why| panic!("{why}"));
                count += 1;
            }
        }
    }
    assert!(count >= 8, "{count} recipes");
}

#[test]
fn the_papers_settings() {
    for (prior, timesteps) in [
        ("sdxl", Timesteps::Continuous),
        ("sd3", Timesteps::Scheduler),
    ] {
        let path = recipes().join(prior).join("adapter.toml");
        let config = TrainConfig::read(&path).expect("a recipe");
        assert_eq!(config.stage, Stage::Adapter);
        assert_eq!((config.data.crop_px, config.optimise.lr), (512, 1e-5));
        assert!(matches!(config.optimise.gradient, Gradient::Cut(_)));
        assert_eq!(config.denoise.timesteps, timesteps);
        let lora = config.lora.expect("LoRA");
        assert_eq!((lora.rank, lora.alpha), (32, 32.0));
    }
}
