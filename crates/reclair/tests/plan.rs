//! `train --plan`.

mod program;

use std::path::Path;

use program::{
    mini, refuses,
    runs::{edit, log, peak_of},
    text,
    toy::{config, model, photos},
    works,
};
use serde_json::{Value, json};

/// The plan of a configuration.
fn plan(config: &Path) -> Value {
    let line = works(&["train", text(config), "--plan", "--json"]).stdout;
    let line: Value = serde_json::from_slice(&line).expect("one line of JSON");
    line["plan"].clone()
}

/// The size of a file, or of those in a folder.
fn bytes(path: &Path) -> u64 {
    match std::fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| bytes(&entry.expect("an entry").path()))
            .sum(),
        Err(_) => path.metadata().map_or(0, |about| about.len()),
    }
}

/// A run over mini, where weights and activations are most of the memory.
#[test]
fn a_plan_is_near_the_run_that_it_announces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let run = config(at, "run", "adapter", &mini().join("prior"), 6, "");
    edit(&run, "crop_px = 32", "crop_px = 64");
    edit(&run, "validate = 2", "validate = 0");
    let of_mini = "lq_channels = 16\nd_emb = 256\ngroups = 16";
    edit(&run, "lq_channels = 4\nd_emb = 32\ngroups = 4", of_mini);
    let planned = plan(&run);
    let number = |key: &str| {
        planned[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {planned}"))
    };
    let peak = peak_of(&run);
    let steps: Vec<f64> = log(&at.join("run"))
        .iter()
        .filter_map(|line| line["seconds"].as_f64())
        .collect();
    assert_eq!(steps.len(), 6);
    // The first waits for its pictures.
    let took = steps[1..].iter().sum::<f64>() / 5.0;
    let ratio = number("seconds_per_step") / took;
    // Other programs take their time of either.
    assert!((0.2..5.0).contains(&ratio), "{ratio} of {took} s");
    if cfg!(target_os = "linux") {
        let peak = peak.expect("Linux tells") as f64;
        let ratio = number("peak_bytes") / peak;
        // benches/plan/accuracy.py measures it; here it must not be another number altogether.
        assert!((0.6..1.4).contains(&ratio), "{ratio} of {peak} bytes");
        assert!(number("available_bytes") > 10e6);
    }
}

#[test]
fn a_plan_counts_what_trains_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let vae = config(at, "vae", "vae", &model, 3, "");
    let planned = plan(&vae);
    assert!(!at.join("vae").exists());
    let plain = String::from_utf8(works(&["train", text(&vae), "--plan"]).stdout).expect("UTF-8");
    assert!(
        plain.contains("over 0 frozen ones; 2 samples a step"),
        "{plain}"
    );
    let trains = |planned: &Value, config: &Path| {
        let said = works(&["train", text(config)]).stderr;
        let said = String::from_utf8(said).expect("UTF-8");
        let line = format!("training {} values from step 0", planned["trained"]);
        assert!(said.contains(&line), "{said} lacks {line}");
    };
    trains(&planned, &vae);
    assert!(planned["seconds_per_step"].as_f64().expect("a number") > 0.0);
    for (key, parts) in [
        ("checkpoint_bytes", &["checkpoint.safetensors"][..]),
        ("result_bytes", &["prior", "adapter"]),
    ] {
        let planned = planned[key].as_u64().expect("a number");
        let written: u64 = parts
            .iter()
            .map(|part| bytes(&at.join("vae").join(part)))
            .sum();
        assert!(
            planned.abs_diff(written) < written / 8,
            "{key}: {planned} {written}"
        );
    }
    let disk = plain.split("two checkpoints and the result take ").nth(1);
    assert!(disk.expect("said").contains(" GB on disk"), "{plain}");
    // Without any weights: the model folder of the toy has configurations only, and no tokenizer.
    let joint = config(at, "joint", "joint", &at.join("vae/prior"), 3, "");
    let planned = plan(&joint);
    assert!(!at.join("joint").exists());
    trains(&planned, &joint);
    let weights = at.join("joint/prior/unet/diffusion_pytorch_model.safetensors");
    let adapter = config(
        at,
        "adapter",
        "adapter",
        &at.join("joint/prior"),
        3,
        "gradient = { cut = 4 }",
    );
    let toml = std::fs::read_to_string(&adapter).expect("written");
    std::fs::write(&adapter, toml + "[lora]\nrank = 2\nalpha = 2.0\n").expect("writes");
    trains(&plan(&adapter), &adapter);
    let info = works(&[
        "info",
        "--prior",
        text(&at.join("joint/prior")),
        "--adapter",
        "none",
        "--json",
    ]);
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    let count = |part: &str| info["parameters"][part].as_u64().expect("a count");
    let frozen = count("unet") + count("vae") + count("text_encoder");
    std::fs::remove_file(weights).expect("removes");
    let planned = plan(&adapter);
    assert_eq!(planned["frozen"], json!(frozen));
    assert!(
        refuses(&["train", text(&adapter)]).contains("unet"),
        "a run needs them"
    );
}

#[test]
fn a_plan_refuses_what_the_run_refuses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let config = config(at, "vae", "vae", &model(at), 3, "");
    let toml = std::fs::read_to_string(&config).expect("written");
    std::fs::write(&config, toml.replace("crop_px = 32", "crop_px = 30")).expect("writes");
    assert!(refuses(&["train", text(&config), "--plan"]).contains("try 32"));
}
