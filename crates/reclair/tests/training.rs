//! `train` from nothing to a restored picture, at toy size: every stage, the same bytes for any thread
//! count and across a stop.

mod program;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use program::{mini, picture, reclair, refuses, save, text, works};

/// A toy model: mini's configurations with small networks.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    let write = |file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let json = std::fs::read(mini().join("prior").join(file)).expect("committed");
        let mut json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        change(&mut json);
        let to = model.join(file);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("makes the folder");
        std::fs::write(to, json.to_string()).expect("writes");
    };
    write("vae/config.json", &|json| {
        json["block_out_channels"] = [8].into();
        json["norm_num_groups"] = 2.into();
        json["latent_channels"] = 4.into();
    });
    write("unet/config.json", &|json| {
        json["block_out_channels"] = [8, 8, 16].into();
        json["attention_head_dim"] = [1, 1, 2].into();
        json["norm_num_groups"] = 4.into();
        json["in_channels"] = 4.into();
        json["out_channels"] = 4.into();
        json["cross_attention_dim"] = 16.into();
    });
    write("text_encoder/config.json", &|json| {
        json["hidden_size"] = 16.into();
        json["intermediate_size"] = 32.into();
        json["vocab_size"] = 600.into();
        json["eos_token_id"] = 2.into();
        json["num_hidden_layers"] = 1.into();
    });
    write("scheduler/scheduler_config.json", &|_| ());
    write("tokenizer/tokenizer_config.json", &|_| ());
    write("model_index.json", &|_| ());
    model
}

fn photos(folder: &Path) {
    let photos = folder.join("photos");
    std::fs::create_dir(&photos).expect("makes the folder");
    for (i, side) in [64, 72, 80].into_iter().enumerate() {
        save(&photos, &format!("{i}.png"), &picture(side, 64));
        std::fs::write(photos.join(format!("{i}.txt")), "a disc on waves").expect("writes");
    }
}

/// Changes the side of the crops.
fn crop(config: &Path, side: usize) {
    let toml = std::fs::read_to_string(config).expect("written");
    std::fs::write(
        config,
        toml.replace("crop_px = 32", &format!("crop_px = {side}")),
    )
    .expect("writes");
}

/// Writes a run's configuration.
fn config(
    folder: &Path,
    name: &str,
    stage: &str,
    model: &Path,
    steps: usize,
    more: &str,
) -> PathBuf {
    let adapter = if stage == "vae" {
        ""
    } else {
        "[adapter]\n_class_name = \"UnetRestorationAdapter\"\nblock = \"D1\"\nafter = [0, 4]\nlq_channels = 4\nd_emb = 32\ngroups = 4\n"
    };
    let degradations = if stage == "vae" {
        ""
    } else {
        "degradations = [{ preset = \"mild\", weight = 1.0 }]\n"
    };
    let toml = format!(
        "stage = \"{stage}\"\nmodel = \"{}\"\nout = \"{name}\"\nstart = \"fresh\"\n\
         [data]\nimages = \"photos\"\nvalidation = \"photos\"\ncrop_px = 32\n{degradations}\
         [optimise]\nsteps = {steps}\nbatch = 2\nlr = 1e-3\nema_halflife_images = 100\n{more}\n\
         [every]\ncheckpoint = 1\nvalidate = 2\n{adapter}",
        model.display()
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, toml).expect("writes");
    path
}

#[test]
fn every_stage_trains_and_the_result_restores() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let vae = config(at, "vae", "vae", &model(at), 3, "");
    works(&["train", text(&vae)]);
    let joint = config(at, "joint", "joint", &at.join("vae/prior"), 3, "");
    // The latent is a quarter of the crop and is halved twice.
    crop(&joint, 40);
    assert!(refuses(&["train", text(&joint)]).contains("try 48"));
    let joint = config(at, "joint", "joint", &at.join("vae/prior"), 3, "");
    works(&["train", text(&joint)]);
    let adapter = config(
        at,
        "adapter",
        "adapter",
        &at.join("joint/prior"),
        3,
        "gradient = { cut = 4 }",
    );
    let toml =
        std::fs::read_to_string(&adapter).expect("written") + "[lora]\nrank = 2\nalpha = 2.0\n";
    std::fs::write(&adapter, toml).expect("writes");
    works(&["train", text(&adapter)]);
    for file in [
        "log.jsonl",
        "run.json",
        "grid-0000002.png",
        "config.resolved.toml",
    ] {
        assert!(at.join("adapter").join(file).is_file(), "{file}");
    }
    let input = save(at, "in.png", &picture(40, 24));
    let out = at.join("out.png");
    let (prior, trained) = (at.join("joint/prior"), at.join("adapter/adapter"));
    works(&[
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--steps",
        "2",
        "--prior",
        text(&prior),
        "--adapter",
        text(&trained),
    ]);
    assert!(out.is_file());
    let line = refuses(&[
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--adapter",
        text(&trained),
    ]);
    assert!(
        line.contains("does not fit"),
        "an adapter for another prior: {line}"
    );
}

/// The trained weights of a run.
fn weights(folder: &Path, run: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(run).join(file)).expect("trained")
}

#[test]
fn three_steps_give_the_same_bytes_at_one_and_two_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let vae = |name: &str, threads: &str| {
        let config = config(at, name, "vae", &model, 3, "");
        works(&["train", text(&config), "--threads", threads]);
        weights(at, name, "prior/vae/diffusion_pytorch_model.safetensors")
    };
    assert!(vae("vae-1", "1") == vae("vae-2", "2"));
    let joint = |name: &str, threads: &str| {
        let config = config(at, name, "joint", &at.join("vae-1/prior"), 3, "");
        works(&["train", text(&config), "--threads", threads]);
        weights(at, name, "prior/unet/diffusion_pytorch_model.safetensors")
    };
    assert!(joint("joint-1", "1") == joint("joint-2", "2"));
}

#[test]
fn a_killed_and_resumed_run_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let file = "prior/vae/diffusion_pytorch_model.safetensors";
    let whole = config(at, "whole", "vae", &model, 60, "");
    works(&["train", text(&whole)]);
    let killed = config(at, "killed", "vae", &model, 60, "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_reclair"))
        .args(["train", text(&killed)])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program starts");
    let log = at.join("killed/log.jsonl");
    let started = Instant::now();
    while std::fs::read_to_string(&log).map_or(0, |log| log.lines().count()) < 5 {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no step in two minutes"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(
        !at.join("killed").join(file).exists(),
        "it was killed before its end"
    );
    works(&["train", text(&killed)]);
    assert!(weights(at, "whole", file) == weights(at, "killed", file));
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let unknown = config(at, "a", "vae", &model, 3, "speling = 1");
    assert!(refuses(&["train", text(&unknown)]).contains("speling"));
    let zero = config(at, "b", "vae", &model, 3, "");
    let toml = std::fs::read_to_string(&zero)
        .expect("written")
        .replace("batch = 2", "batch = 0");
    std::fs::write(&zero, toml).expect("writes");
    assert!(refuses(&["train", text(&zero)]).contains("batch"));
    let odd = config(at, "d", "vae", &model, 3, "");
    crop(&odd, 30);
    assert!(refuses(&["train", text(&odd)]).contains("try 32"));
    let nowhere = config(at, "c", "vae", &at.join("nothing"), 3, "");
    assert!(refuses(&["train", text(&nowhere)]).contains("vae/config.json"));
    assert!(refuses(&["train", text(&at.join("none.toml"))]).contains("none.toml"));
    let output = reclair(["train"]);
    assert_eq!(output.status.code(), Some(2), "usage");
}
