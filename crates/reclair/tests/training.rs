//! `train` from nothing to a restored picture, at toy size: every stage, the same bytes for any thread count.
//! What a run survives is in `survival.rs`.

mod program;

use std::path::Path;

use priors::weights::SafetensorsFile;

use program::{
    picture, reclair, refuses, save, text,
    toy::{config, for_transformer, model, photos, transformer, weights},
    works,
};

/// Changes the side of the crops.
fn crop(config: &Path, side: usize) {
    let toml = std::fs::read_to_string(config).expect("written");
    std::fs::write(
        config,
        toml.replace("crop_px = 32", &format!("crop_px = {side}")),
    )
    .expect("writes");
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
    the_average_is_written(&at.join("adapter"));
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

/// Checks that a run's adapter is the average over its steps, and that the last step's values are others.
fn the_average_is_written(run: &Path) {
    let open = |file: &str| SafetensorsFile::open(&run.join(file)).expect("written");
    let adapter = open("adapter/restoration_adapter/diffusion_pytorch_model.safetensors");
    let checkpoint = open("checkpoint.safetensors");
    let values = |file: &SafetensorsFile, name: &str| -> Vec<f32> {
        let data = file.data(name).unwrap_or_else(|| panic!("{name}"));
        data.try_into_vec().expect("f32")
    };
    let kept = |kind: &str, name: &str| {
        let name = format!("{kind}/restoration_adapter.{name}");
        values(&checkpoint, &name)
    };
    assert!(!adapter.names().is_empty());
    for name in adapter.names() {
        let written = values(&adapter, name);
        assert!(written == kept("average", name), "{name}");
        assert!(written != kept("value", name), "{name} moves in no step");
    }
}

#[test]
fn what_is_printed_is_the_self_test_the_log_and_how_fast_it_goes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let run = config(at, "run", "vae", &model(at), 4, "");
    let output = works(&["train", text(&run), "--json"]);
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let log = std::fs::read_to_string(at.join("run/log.jsonl")).expect("a log");
    assert_eq!(printed, log);
    // Four steps, two validations.
    assert_eq!(log.lines().count(), 6, "{log}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let at = |part: &str| said.find(part).unwrap_or_else(|| panic!("{part}: {said}"));
    assert!(at("self-test: gradients agree") < at("training "), "{said}");
    assert!(at("training ") < at("step 4/4"), "{said}");
    let progress = said.lines().find(|line| line.starts_with("step 4/4"));
    let words: Vec<&str> = progress.expect("a line").split_whitespace().collect();
    let before = |word: &str| {
        let at = words.iter().position(|other| *other == word);
        let number = words[at.unwrap_or_else(|| panic!("{word}: {words:?}")) - 1];
        number.parse::<f64>().expect("a number")
    };
    assert!(before("images/s") > 0.0);
    let losses: Vec<f64> = logged(&folder.path().join("run"), "loss");
    let loss = words
        .iter()
        .position(|word| *word == "loss")
        .expect("a loss");
    let loss: f64 = words[loss + 1].parse().expect("a number");
    let [least, most] = [f64::min, f64::max].map(|of| losses.iter().copied().reduce(of));
    let within = least.expect("losses") - 1e-5..=most.expect("losses") + 1e-5;
    assert!(within.contains(&loss), "{loss} of {losses:?}");
    assert!(words.ends_with(&["seconds", "to", "go"]), "{words:?}");
    // Without it nothing is printed.
    let again = config(
        folder.path(),
        "again",
        "vae",
        &folder.path().join("model"),
        1,
        "",
    );
    assert!(works(&["train", text(&again)]).stdout.is_empty());
}

#[test]
fn a_transformer_trains_with_its_text_encoder_over_another_models_autoencoder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let vae = config(at, "vae", "vae", &model, 3, "");
    works(&["train", text(&vae)]);
    transformer(&model);
    let joint = config(at, "joint", "joint", &model, 3, "");
    for_transformer(&joint, "");
    assert!(refuses(&["train", text(&joint)]).contains("vae"));
    let joint = config(at, "joint", "joint", &model, 3, "");
    for_transformer(&joint, "vae_model = \"vae/prior/vae\"");
    works(&["train", text(&joint)]);
    let vae_file = "prior/vae/diffusion_pytorch_model.safetensors";
    assert_eq!(weights(at, "vae", vae_file), weights(at, "joint", vae_file));
    let (input, out) = (save(at, "in.png", &picture(40, 24)), at.join("out.png"));
    works(&[
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--prior",
        text(&at.join("joint/prior")),
        "--adapter",
        text(&at.join("joint/adapter")),
        "--steps",
        "2",
        "--tile",
        "64",
    ]);
    assert!(out.is_file());
    // A further leg starts from what the first has made; the network must be one that listens to a single encoder.
    let next = config(at, "next", "joint", &at.join("joint/prior"), 1, "");
    for_transformer(&next, "adapter_model = \"joint/adapter\"");
    let toml = std::fs::read_to_string(&next).expect("written");
    std::fs::write(&next, toml.replace("\"fresh\"", "\"model\"")).expect("writes");
    works(&["train", text(&next)]);
    let config_file = at.join("joint/prior/text_encoder/config.json");
    let json = std::fs::read_to_string(&config_file).expect("written");
    let other = json.replace("\"hidden_size\": 16", "\"hidden_size\": 8");
    assert_ne!(json, other);
    std::fs::write(&config_file, other).expect("writes");
    assert!(refuses(&["train", text(&next)]).contains("single text encoder"));
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

/// A number of each step's line in the log.
fn logged(run: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).expect("a log");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line"));
    lines
        .filter_map(|line: serde_json::Value| line[key].as_f64())
        .collect()
}

#[test]
fn half_precision_follows_single_and_a_scale_that_overflows_is_halved() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let single = config(at, "single", "vae", &model, 30, "");
    works(&["train", text(&single)]);
    let half = config(at, "half", "vae", &model, 30, "precision = \"f16\"");
    works(&["train", text(&half)]);
    let [a, b] = ["single", "half"].map(|run| logged(&at.join(run), "loss"));
    assert_eq!((a.len(), b.len()), (30, 30));
    assert_ne!(a, b);
    assert!(
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 0.01 * a),
        "{a:?} {b:?}"
    );
    assert_eq!(logged(&at.join("half"), "loss_scale"), [65_536.0; 30]);
    assert!(logged(&at.join("single"), "loss_scale").is_empty());
    // A rate that throws the weights away: the scale falls to 1, and then the guard stops the run.
    let wild = config(at, "wild", "vae", &model, 60, "precision = \"f16\"");
    let toml = std::fs::read_to_string(&wild).expect("written");
    std::fs::write(&wild, toml.replace("lr = 1e-3", "lr = 1e38")).expect("writes");
    assert!(refuses(&["train", text(&wild)]).contains("no numbers"));
    let scales = logged(&at.join("wild"), "loss_scale");
    let halving = (0..=16).map(|i| 65_536.0 / f64::from(1 << i));
    let wanted: Vec<f64> = [65_536.0].into_iter().chain(halving).collect();
    assert_eq!(
        scales,
        wanted[..17],
        "one sound step, then one for each scale"
    );
    let log = std::fs::read_to_string(at.join("wild/log.jsonl")).expect("a log");
    assert_eq!(log.matches("the gradient overflowed").count(), 16);
    // Gone on with, it is at the scale it stopped at.
    assert!(refuses(&["train", text(&wild)]).contains("no numbers"));
    assert_eq!(logged(&at.join("wild"), "loss_scale"), scales);
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
