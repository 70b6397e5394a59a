//! The degradation-robust encoder and the ControlNet from training to a restored picture, at toy size.

mod program;

use std::path::{Path, PathBuf};

use program::{
    picture, refuses,
    runs::{edit, lines, start},
    save, text,
    toy::{config, model, photos, shard, weights},
    works,
};
use serde_json::Value;

const ENCODER: &str = "degradation_robust_encoder/diffusion_pytorch_model.safetensors";

/// A trained toy prior with its adapter: the folders of `joint`'s run.
fn toy(at: &Path) -> (PathBuf, PathBuf) {
    photos(at);
    let vae = config(at, "vae", "vae", &model(at), 2, "");
    works(&["train", text(&vae)]);
    let joint = config(at, "joint", "joint", &at.join("vae/prior"), 2, "");
    works(&["train", text(&joint)]);
    let about = std::fs::read_to_string(at.join("joint/adapter/reclair.json")).expect("written");
    assert!(about.contains("the prior trained with it"), "{about}");
    (at.join("joint/prior"), at.join("joint/adapter"))
}

/// The configuration of an encoder's training.
fn encoder(at: &Path, name: &str, prior: &Path, steps: usize, more: &str) -> PathBuf {
    let path = config(at, name, "encoder", prior, steps, "");
    edit(
        &path,
        "start = \"fresh\"\n",
        &format!("start = \"model\"\n{more}"),
    );
    path
}

/// A picture of this size restored, in tiles where it is larger than one.
fn restored(at: &Path, name: &str, [width, height]: [usize; 2], of: [&Path; 2]) -> Vec<u8> {
    let (input, out) = (save(at, "in.png", &picture(width, height)), at.join(name));
    let [prior, adapter] = of.map(text);
    let options = [
        "--steps",
        "2",
        "--tile",
        "64",
        "--prior",
        prior,
        "--adapter",
        adapter,
    ];
    works(&[&["restore", text(&input), "-o", text(&out)][..], &options].concat());
    std::fs::read(out).expect("a picture")
}

#[test]
fn an_encoder_trains_resumes_and_is_used_and_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let (prior, adapter) = toy(at);
    let beside = format!("adapter_model = \"{}\"\n", adapter.display());
    let whole = encoder(at, "encoder", &prior, 12, &beside);
    works(&["train", text(&whole)]);
    let result = at.join("encoder/adapter");
    assert!(result.join("restoration_adapter/config.json").is_file());
    assert!(
        !at.join("encoder/prior").exists(),
        "a frozen prior stays where it is"
    );
    let trained = weights(at, "encoder", &format!("adapter/{ENCODER}"));
    // On shards as on the pictures in them.
    let packed = encoder(at, "packed", &prior, 12, &beside);
    std::fs::create_dir(at.join("shards")).expect("makes the folder");
    shard(at, "shards/one.tar", &[0, 1]);
    shard(at, "shards/two.tar", &[2]);
    edit(&packed, "images = \"photos\"", "images = \"shards\"");
    works(&["train", text(&packed)]);
    assert!(weights(at, "packed", &format!("adapter/{ENCODER}")) == trained);
    // Killed after its first steps and resumed it ends with the same bytes.
    let killed = encoder(at, "killed", &prior, 12, &beside);
    let mut child = start(&killed);
    while lines(&at.join("killed")) < 3 && child.try_wait().expect("a child").is_none() {}
    child.kill().expect("was started");
    child.wait().expect("ends");
    works(&["train", text(&killed), "--resume"]);
    assert!(weights(at, "killed", &format!("adapter/{ENCODER}")) == trained);

    // Also where the autoencoder goes over tiles.
    for size in [[40, 24], [200, 140]] {
        let plain = restored(at, "plain.png", size, [&prior, &adapter]);
        let robust = restored(at, "robust.png", size, [&prior, &result]);
        assert!(plain != robust, "{size:?}");
    }
    let args = ["--prior", text(&prior), "--adapter", text(&result)];
    let json = works(&[&["info", "--json"][..], &args].concat()).stdout;
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let count = json["parameters"]["degradation_robust_encoder"].as_u64();
    assert!(count.is_some_and(|n| n > 1000), "{json}");
    let said = works(&[&["info"][..], &args].concat()).stdout;
    assert!(String::from_utf8_lossy(&said).contains("degradation_robust_encoder"));

    // An adapter trained with the encoder carries it along.
    let toml = config(at, "with", "adapter", &prior, 2, "");
    let line = format!("encoder_model = \"{}\"\n", result.display());
    edit(&toml, "[data]\n", &format!("{line}[data]\n"));
    works(&["train", text(&toml)]);
    assert!(weights(at, "with", &format!("adapter/{ENCODER}")) == trained);
    assert!(
        !at.join("with/adapter/pytorch_lora_weights.safetensors")
            .exists()
    );
    restored(at, "c.png", [40, 24], [&prior, &at.join("with/adapter")]);
    // Another encoder is not gone on with, and a plan reads none.
    let file = result.join(ENCODER);
    let bytes = std::fs::read(&file).expect("trained");
    let mut other = bytes.clone();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    other[header..]
        .iter_mut()
        .step_by(4)
        .for_each(|byte| *byte ^= 1);
    std::fs::write(&file, other).expect("writes");
    assert!(refuses(&["train", text(&toml), "--resume"]).contains("`encoder_model`"));
    let frozen = |config: &Path| {
        let line = works(&["train", text(config), "--plan", "--json"]).stdout;
        let line: Value = serde_json::from_slice(&line).expect("JSON");
        line["plan"]["frozen"].as_u64().expect("a count")
    };
    let with = frozen(&toml);
    std::fs::remove_file(&file).expect("removes");
    assert_eq!(frozen(&toml), with, "without the encoder's weights");
    std::fs::remove_dir_all(&result).expect("removes");
    assert_eq!(frozen(&toml), with, "before the encoder is trained");
    edit(&toml, &line, "");
    assert_eq!(frozen(&toml) + count.expect("counted"), with);
}

#[test]
fn a_broken_encoder_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let (prior, adapter) = toy(at);
    let beside = format!("adapter_model = \"{}\"\n", adapter.display());
    works(&["train", text(&encoder(at, "encoder", &prior, 1, &beside))]);
    let result = at.join("encoder/adapter");
    let (file, json) = (
        result.join(ENCODER),
        result.join("degradation_robust_encoder/config.json"),
    );
    let (input, out) = (save(at, "in.png", &picture(24, 24)), at.join("out.png"));
    let why = || {
        let run = ["restore", text(&input), "-o", text(&out), "--prior"];
        refuses(&[&run[..], &[text(&prior), "--adapter", text(&result)]].concat())
    };
    let whole = std::fs::read(&file).expect("trained");
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("writes");
    assert!(why().contains(ENCODER), "cut short");
    std::fs::write(&file, &whole).expect("writes");
    let good = std::fs::read_to_string(&json).expect("written");
    let mut other: Value = serde_json::from_str(&good).expect("JSON");
    other["scaling_factor"] = 0.5.into();
    std::fs::write(&json, other.to_string()).expect("writes");
    assert!(why().contains("made for another autoencoder"));
    std::fs::remove_file(&json).expect("removes");
    assert!(why().contains("degradation_robust_encoder/config.json"));
    std::fs::write(&json, good).expect("writes");
    std::fs::remove_file(&file).expect("removes");
    assert!(why().contains(ENCODER), "missing");

    let fresh = config(at, "fresh", "encoder", &prior, 1, "");
    assert!(refuses(&["train", text(&fresh)]).contains("start = \"model\""));
    let none = config(at, "none", "adapter", &prior, 1, "");
    let line = format!("encoder_model = \"{}\"\n", adapter.display());
    edit(&none, "[data]\n", &format!("{line}[data]\n"));
    assert!(refuses(&["train", text(&none)]).contains("stage = \"encoder\""));
}

#[test]
fn a_controlnet_starts_as_a_copy_trains_and_restores() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let (prior, _) = toy(at);
    let toml = config(at, "control", "adapter", &prior, 2, "");
    let text_of = std::fs::read_to_string(&toml).expect("written");
    let (before, _) = text_of.split_once("[adapter]").expect("a section");
    let section = "[adapter]\n_class_name = \"UnetControlNet\"\nlq_channels = 4\n";
    std::fs::write(&toml, format!("{before}{section}")).expect("writes");
    // Without a step the copy is the prior's own part.
    let still = std::fs::read_to_string(&toml).expect("written");
    let still = still.replace("out = \"control\"", "out = \"still\"");
    let untrained = at.join("still.toml");
    std::fs::write(&untrained, still.replace("steps = 2", "steps = 0")).expect("writes");
    works(&["train", text(&untrained)]);
    let open = |path: PathBuf| priors::weights::SafetensorsFile::open(&path).expect("opens");
    let file = "diffusion_pytorch_model.safetensors";
    let copy = open(at.join("still/adapter/restoration_adapter").join(file));
    let unet = open(prior.join("unet").join(file));
    let mut copied = 0;
    for name in unet.names() {
        if name.starts_with("down_blocks.") || name.starts_with("mid_block.") {
            assert_eq!(copy.data(name), unet.data(name), "{name}");
            copied += 1;
        }
    }
    assert!(copied > 20, "{copied}");
    works(&["train", text(&toml)]);
    restored(at, "d.png", [40, 24], [&prior, &at.join("control/adapter")]);
}
