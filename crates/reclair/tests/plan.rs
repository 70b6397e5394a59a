//! `train --plan`.

mod program;

use program::{
    refuses, text,
    toy::{config, model, photos},
    works,
};
use serde_json::{Value, json};

/// The plan of a configuration.
fn plan(config: &std::path::Path) -> Value {
    let line = works(&["train", text(config), "--plan", "--json"]).stdout;
    let line: Value = serde_json::from_slice(&line).expect("one line of JSON");
    line["plan"].clone()
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
    let trains = |planned: &Value, config: &std::path::Path| {
        let said = works(&["train", text(config)]).stderr;
        let said = String::from_utf8(said).expect("UTF-8");
        let line = format!("training {} values from step 0", planned["trained"]);
        assert!(said.contains(&line), "{said} lacks {line}");
    };
    trains(&planned, &vae);
    assert!(planned["seconds_per_step"].as_f64().expect("a number") > 0.0);
    if cfg!(target_os = "linux") {
        assert!(planned["peak_bytes"].as_u64().expect("a number") > 10_000_000);
        assert!(planned["available_bytes"].as_u64().expect("a number") > 10_000_000);
    }
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
