use std::path::{Path, PathBuf};

use pixels::Image;
use priors::folder::Folder;

use super::*;
use crate::{priors_on_disk, ranks::Alone};

/// Deletes every file of weights.
fn without_weights(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            without_weights(&path);
        } else if path.extension().is_some_and(|end| end == "safetensors") {
            std::fs::remove_file(path).expect("removes");
        }
    }
}

/// A prior of SDXL's shape without weights, and a photograph.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prior = folder.path().join("prior");
    priors_on_disk::sdxl(&prior);
    without_weights(&prior);
    let photos = folder.path().join("photos");
    std::fs::create_dir(&photos).expect("makes the folder");
    let photo = Image::from_fn(48, 40, |c, y, x| ((c + x * y) % 7) as f32 / 7.0);
    pixels::io::save(&photo, photos.join("0.png")).expect("saves");
    (folder, prior)
}

fn config(folder: &Path, stage: &str, start: &str, data: &str, adapter: &str) -> TrainConfig {
    let text = format!(
        "stage = \"{stage}\"\nmodel = \"prior\"\nout = \"out\"\nstart = \"{start}\"\n[data]\nimages = \"photos\"\ncrop_px = 32\ndegradations = [{{ preset = \"mild\", weight = 1.0 }}]\n{data}\n[optimise]\nsteps = 1\nbatch = 1\nlr = 1e-3\n{adapter}\n"
    );
    let path = folder.join("run.toml");
    std::fs::write(&path, text).expect("writes");
    TrainConfig::read(&path).expect("a configuration")
}

const CONTROLNET: &str = "[adapter]\n_class_name = \"UnetControlNet\"\nlq_channels = 4";

#[test]
fn the_encoder_is_planned_without_weights() {
    let (folder, prior) = folder();
    let device = Device::flex();
    let config = config(folder.path(), "encoder", "model", "", "");
    let planned = plan(&config, &device, &Alone).expect("no weights are needed");
    let json = std::fs::read(prior.join("vae/config.json")).expect("written");
    let json = serde_json::from_slice(&json).expect("JSON");
    let w = Weights::blank(&device);
    AutoencoderKl::from_json(&json, &prior, &w).expect("an autoencoder");
    assert_eq!(planned.frozen, w.count());
    assert!(planned.trained > 0 && planned.trained < w.count());
    assert!(Encoder::new(&config, &device).is_err(), "a run needs them");
}

#[test]
fn a_controlnet_is_planned_without_weights() {
    let (folder, _) = folder();
    let config = config(folder.path(), "adapter", "fresh", "", CONTROLNET);
    let planned = plan(&config, &Device::flex(), &Alone).expect("no weights are needed");
    assert!(planned.trained > 0 && planned.trained < planned.frozen);
}

#[test]
fn text_encoders_count_before_the_steps_where_their_words_are_kept() {
    let (folder, _) = folder();
    let device = Device::flex();
    let of = |data: &str| {
        let config = config(folder.path(), "adapter", "fresh", data, CONTROLNET);
        frozen(&config, &device).expect("configurations")
    };
    let (kept, read) = (of("cache_text = true"), of(""));
    let [network, vae, text] = ["unet", "vae", "text_encoder"].map(|part| {
        let folder = Folder::Disk(folder.path().join("prior"));
        let count = |part: &str| {
            let w = Weights::blank(&device);
            let file = format!("{part}/config.json");
            let (json, path) = (folder.json(&file).expect("JSON"), folder.path(&file));
            match part {
                "unet" => drop(AnyPrior::from_folder(&folder, &w).expect("a network")),
                "vae" => drop(AutoencoderKl::from_json(&json, &path, &w).expect("a vae")),
                _ => drop(ClipText::from_json(&json, &path, &w).expect("an encoder")),
            }
            w.count()
        };
        match part {
            "text_encoder" => count(part) + count("text_encoder_2"),
            _ => count(part),
        }
    });
    // The autoencoder in f32, the others in the 16 bits they are published in.
    assert_eq!(kept.bytes, 2 * network + 4 * vae);
    assert_eq!(kept.reading_bytes, 4 * vae + 2 * text);
    assert_eq!((read.bytes, read.reading_bytes), (kept.bytes + 2 * text, 0));
    assert_eq!(kept.values, read.values);
}

#[test]
fn the_peak_is_the_larger_of_reading_prompts_and_stepping() {
    let frozen = |reading_bytes| Frozen {
        values: 0,
        bytes: 30,
        reading_bytes,
    };
    assert_eq!(frozen(0).peak_bytes((100, 150), 7), 187);
    assert_eq!(frozen(90).peak_bytes((100, 150), 0), 190);
    assert_eq!(frozen(70).peak_bytes((100, 150), 0), 180);
}
