//! `restore` and `info` with tiny random priors of SDXL's and SD3's shape, bare and with an adapter.

mod priors_on_disk;
mod program;

use std::path::Path;

use priors_on_disk::{sd3, sd3_adapter, sdxl, sdxl_adapter};
use program::{picture, refuses, said, save, text, works};
use serde_json::Value;

/// Restores a small picture with these arguments; the picture's bytes and what was said.
fn restore(folder: &Path, name: &str, args: &[&str]) -> (Vec<f32>, String) {
    let input = save(folder, "in.png", &picture(50, 36));
    let out = folder.join(format!("{name}.png"));
    let fixed = ["restore", text(&input), "-o", text(&out), "--steps", "2"];
    let output = works(&[&fixed[..], args].concat());
    let restored = pixels::io::open(&out).expect("a picture");
    assert_eq!((restored.width, restored.height), (50, 36));
    (restored.rgb, said(&output))
}

/// Everything about the command line that changes what a prior is told or does.
fn every_way(prior: &Path, adapter: &Path) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (prior, adapter) = (text(prior), text(adapter));
    let run = |name: &str, more: &[&str]| {
        restore(folder.path(), name, &[&["--prior", prior], more].concat())
    };
    let (bare, _) = run("bare", &[]);
    let (again, _) = run("again", &["--threads", "1"]);
    assert!(bare == again, "the same command gives another picture");
    let (none, _) = run("none", &["--adapter", "none"]);
    assert!(bare == none);
    let (adapted, _) = run("adapted", &["--adapter", adapter]);
    assert!(adapted != bare, "the adapter does nothing");
    let off = ["--adapter", adapter, "--adapter-scale", "0"];
    let (lora, _) = run("lora", &off);
    assert!(lora != bare, "LoRA does nothing");
    assert!(lora != adapted, "the Restoration Adapter does nothing");
    let (prompt, _) = run("prompt", &["--prompt", "a photo"]);
    assert!(prompt != bare, "the prompt does nothing");
    let (guided, _) = run("guided", &["--prompt", "a photo", "--cfg", "4"]);
    assert!(guided != prompt, "the negative prompt does nothing");
    let (_, said) = run("long", &["--prompt", &"a photo of it ".repeat(30)]);
    assert!(said.contains("is read in"), "{said}");
    let noise = ["--start", "noise", "--adapter", adapter, "--tile", "32"];
    run("tiles", &noise);
}

#[test]
fn a_prior_of_the_shape_of_sdxl() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (prior, adapter) = (folder.path().join("prior"), folder.path().join("adapter"));
    sdxl(&prior);
    sdxl_adapter(&prior, &adapter);
    every_way(&prior, &adapter);
}

#[test]
fn a_prior_of_the_shape_of_sd3_with_and_without_t5() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (prior, adapter) = (folder.path().join("prior"), folder.path().join("adapter"));
    sd3(&prior);
    sd3_adapter(&prior, &adapter);
    every_way(&prior, &adapter);
    let run = |name: &str| {
        let args = ["--prior", text(&prior), "--prompt", "a photo"];
        restore(folder.path(), name, &args)
    };
    let (three, _) = run("three");
    let weights = prior.join("text_encoder_3/model.safetensors");
    std::fs::remove_file(weights).expect("removes T5's weights");
    let (two, said) = run("two");
    assert!(said.contains("T5 is left out"), "{said}");
    assert!(two != three, "T5 does nothing");
    std::fs::remove_dir_all(prior.join("text_encoder_3")).expect("removes T5");
    let (without, said) = run("without");
    assert!(without == two && !said.contains("left out"), "{said}");
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (xl, three) = (folder.path().join("sdxl"), folder.path().join("sd3"));
    let (adapter, other) = (folder.path().join("adapter"), folder.path().join("other"));
    sdxl(&xl);
    sd3(&three);
    sdxl_adapter(&xl, &adapter);
    sd3_adapter(&three, &other);
    let input = save(folder.path(), "in.png", &picture(24, 24));
    let out = folder.path().join("out.png");
    let refused = |prior: &Path, more: &[&str]| {
        let fixed = ["restore", text(&input), "-o", text(&out), "--steps", "1"];
        refuses(&[&fixed[..], &["--prior", text(prior)], more].concat())
    };
    let why = refused(&xl, &["--adapter", text(&other)]);
    assert!(why.contains("made for a transformer"), "{why}");
    let why = refused(&three, &["--adapter", text(&adapter)]);
    assert!(why.contains("made for a U-Net"), "{why}");
    // The table of positions has 16 tokens a side: 64 pixels here.
    let large = save(folder.path(), "large.png", &picture(200, 24));
    let args = ["restore", text(&large), "-o", text(&out), "--steps", "1"];
    let why = refuses(&[&args[..], &["--prior", text(&three)]].concat());
    assert!(why.contains("--tile") && why.contains("64"), "{why}");
    for layout in ["leading", "legacy"] {
        let why = refused(&three, &["--spacing", layout]);
        let says = format!("the {layout} layout");
        assert!(
            why.contains(&says) && why.contains("choose linspace"),
            "{why}"
        );
    }
    std::fs::remove_dir_all(xl.join("text_encoder_2")).expect("removes it");
    let why = refused(&xl, &[]);
    assert!(why.contains("text_encoder_2"), "{why}");
}

/// What a preset sets, an option sets otherwise.
#[test]
fn a_large_priors_tiles_have_gaussian_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prior = folder.path().join("prior");
    sdxl(&prior);
    let input = save(folder.path(), "in.png", &picture(48, 24));
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let args = [
            "restore",
            text(&input),
            "-o",
            text(&out),
            "--steps",
            "1",
            "--tile",
            "32",
        ];
        let prior = ["--prior", text(&prior), "--json"];
        let line = works(&[&args[..], &prior, more].concat()).stdout;
        let line: Value = serde_json::from_slice(&line).expect("JSON");
        line["options"]["tile_weights"].clone()
    };
    assert_eq!(run("paper.png", &[]), "gaussian");
    assert_eq!(run("other.png", &["--tile-weights", "cosine"]), "cosine");
    assert_eq!(run("quick.png", &["--preset", "quick"]), "gaussian");
    assert_eq!(run("mini.png", &["--preset", "mini"]), "cosine");
}

#[test]
fn info_counts_every_part() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (prior, adapter) = (folder.path().join("prior"), folder.path().join("adapter"));
    sd3(&prior);
    sd3_adapter(&prior, &adapter);
    let args = [
        "info",
        "--json",
        "--prior",
        text(&prior),
        "--adapter",
        text(&adapter),
    ];
    let about: Value = serde_json::from_slice(&works(&args).stdout).expect("JSON");
    for part in [
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "restoration_adapter",
        "lora",
    ] {
        let count = about["parameters"][part].as_u64();
        assert!(count.is_some_and(|count| count > 0), "{part}: {about}");
    }
    assert_eq!(about["prediction"], "flow");
    assert_eq!(about["sites"].as_array().map(Vec::len), Some(3));
}
