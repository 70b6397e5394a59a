//! The recipes are configurations of today, and those of the paper's priors say what the paper says.

use std::path::{Path, PathBuf};

use train::config::{Gradient, Stage, Start, Timesteps, TrainConfig};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes")
}

/// The configurations below a folder, however deep.
fn configurations(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(configurations(&path));
        } else if path.extension().is_some_and(|kind| kind == "toml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_recipe_is_read() {
    let all = configurations(&recipes());
    for file in &all {
        TrainConfig::read(file).unwrap_or_else(|why| panic!("{why}"));
    }
    for name in [
        "mini/vae.toml",
        "mini/joint-4.toml",
        "mini/encoder.toml",
        "sdxl/encoder.toml",
        "sdxl/adapter.toml",
        "sd3/adapter.toml",
    ] {
        assert!(all.contains(&recipes().join(name)), "{name}");
    }
}

#[test]
fn the_recipes_for_sdxl_follow_each_other() {
    let read = |name: &str| TrainConfig::read(&recipes().join(name)).expect("a recipe");
    let (encoder, adapter) = (read("sdxl/encoder.toml"), read("sdxl/adapter.toml"));
    assert_eq!(
        (encoder.stage, encoder.start),
        (Stage::Encoder, Start::Model)
    );
    assert_eq!(adapter.encoder_model, Some(encoder.out.join("adapter")));
    assert_eq!(adapter.model, encoder.model);
    assert_eq!(adapter.data.images, encoder.data.images);
    assert_eq!(adapter.data.crop_px, encoder.data.crop_px);
    let drawn = |config: &TrainConfig| {
        let mixes = config.data.degradations.iter();
        mixes.map(|mix| mix.preset.clone()).collect::<Vec<_>>()
    };
    assert_eq!(drawn(&encoder), [Some("realesrgan".to_owned())]);
    assert_eq!(drawn(&adapter), drawn(&encoder));
}

/// A leg starts where the one before it ended, so that a stranger can run them in order.
#[test]
fn minis_legs_follow_each_other() {
    let read = |name: &str| TrainConfig::read(&recipes().join(format!("mini/{name}.toml")));
    let mut before = read("vae").expect("a recipe").out;
    let mut legs = 0;
    while let Ok(leg) = read(&format!("joint-{}", legs + 1)) {
        legs += 1;
        assert_eq!(leg.model, before.join("prior"), "joint-{legs}");
        let adapter = (legs > 1).then(|| before.join("adapter"));
        assert_eq!(leg.adapter_model, adapter, "joint-{legs}");
        before = leg.out;
    }
    assert!(legs >= 9, "{legs} legs");
    let last = read("adapter-2").expect("a recipe");
    let from = read("joint-8").expect("a recipe").out;
    assert_eq!(last.model, from.join("prior"));
    assert_eq!(last.adapter_model, Some(from.join("adapter")));
}

#[test]
fn what_would_be_ignored_or_makes_no_sense_is_refused() {
    let recipe = |name: &str| std::fs::read_to_string(recipes().join(name)).expect("a recipe");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("run.toml");
    for (name, from, to, word) in [
        ("mini/joint-1.toml", "lr = ", "clip = -1.0\nlr = ", "clip"),
        ("mini/joint-1.toml", "lr = ", "lr = -", "lr"),
        ("mini/joint-1.toml", "beta2 = 0.99", "beta2 = 1.0", "beta2"),
        (
            "mini/joint-1.toml",
            "null_text = 0.7",
            "null_text = 1.5",
            "null_text",
        ),
        ("mini/joint-1.toml", "weight = 0.", "weight = -0.", "weight"),
        (
            "mini/joint-1.toml",
            "[data]",
            "[lora]\nrank = 8\nalpha = 8\n[data]",
            "lora",
        ),
        (
            "mini/joint-1.toml",
            "[data]",
            "[data]\ncache_text = true",
            "cache_text",
        ),
        (
            "mini/joint-2.toml",
            "start = \"model\"",
            "start = \"fresh\"",
            "adapter_model",
        ),
        (
            "mini/encoder.toml",
            "[optimise]",
            "[optimise]\nprecision = \"f16\"",
            "f16",
        ),
    ] {
        let text = recipe(name);
        assert!(text.contains(from), "{name}: {from}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("writes");
        let why = TrainConfig::read(&path).expect_err(to).to_string();
        assert!(
            why.contains(word) && why.contains("run.toml"),
            "{to}: {why}"
        );
    }
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
        // For SDXL alone.
        assert_eq!(config.encoder_model.is_some(), prior == "sdxl");
        assert_eq!(config.denoise.timesteps, timesteps);
        let lora = config.lora.expect("LoRA");
        assert_eq!((lora.rank, lora.alpha), (32, 32.0));
    }
}
