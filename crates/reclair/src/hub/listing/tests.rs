//! Listings of repositories, and what is taken of them.

use serde_json::json;

use super::*;

fn files(paths: &[&str]) -> Vec<RemoteFile> {
    let file = |path: &&str| RemoteFile {
        path: (*path).to_owned(),
        size: Some(1),
        hash: "0".repeat(40),
    };
    paths.iter().map(file).collect()
}

fn chosen(paths: &[&str]) -> Vec<String> {
    let mut paths: Vec<String> = needed(&files(paths))
        .expect("a prior")
        .into_iter()
        .map(|f| f.path)
        .collect();
    paths.sort();
    paths
}

#[test]
fn of_a_folder_only_what_a_prior_needs_is_fetched_in_16_bits() {
    let sdxl = [
        ".gitattributes",
        "01.png",
        "LICENSE.md",
        "README.md",
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/flax_model.msgpack",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.onnx",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/model.onnx_data",
        "unet/diffusion_pytorch_model.bin",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ];
    let want = [
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(chosen(&sdxl), want);
}

#[test]
fn shards_come_with_their_index_and_of_one_variant() {
    let all = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ];
    assert_eq!(chosen(&all), all);
    let both = [
        &all[..],
        &[
            "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        ],
    ]
    .concat();
    let want = ["model_index.json", "unet/config.json", both[5], both[6]];
    assert_eq!(chosen(&both), want);
}

#[test]
fn a_checkpoint_alone_is_taken_and_pickles_and_choices_are_refused() {
    assert_eq!(
        chosen(&["README.md", "one.safetensors", "vae/x.safetensors"]),
        ["one.safetensors"]
    );
    let refused = |paths: &[&str]| needed(&files(paths)).expect_err("refused");
    assert!(refused(&["a.safetensors", "b.safetensors"]).contains("a.safetensors, b.safetensors"));
    assert!(refused(&["model.ckpt"]).contains("pickle"));
    assert!(refused(&["README.md"]).contains("no prior"));
    assert!(
        refused(&[
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin"
        ])
        .contains("pickle")
    );
    assert!(
        refused(&[
            "model_index.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors"
        ])
        .contains("neither")
    );
}

#[test]
fn paths_and_hashes_that_lead_elsewhere_are_dropped() {
    let hash = "a".repeat(40);
    let file = |path: &str, hash: &str| {
        remote_file(&json!({"rfilename": path, "blobId": hash, "size": 3}))
    };
    assert!(file("unet/config.json", &hash).is_some());
    for path in ["../x", "/x", "a/../b", "a//b", "", "a\\b", ".hidden"] {
        assert!(file(path, &hash).is_none(), "{path}");
    }
    assert!(file("x", "../../x").is_none() && file("x", "abc").is_none());
    let large = remote_file(
        &json!({"rfilename": "x", "blobId": hash, "lfs": {"sha256": "B".repeat(64), "size": 7}}),
    );
    assert_eq!(
        large.map(|f| (f.hash, f.size)),
        Some(("b".repeat(64), Some(7)))
    );
}

#[test]
fn the_card_says_the_licence() {
    let of = |card: Value| stated(&json!({"cardData": card, "tags": ["x", "license:mit"]}));
    assert_eq!(
        of(json!({"license": "openrail++"})).name.as_deref(),
        Some("openrail++")
    );
    let other = of(
        json!({"license": "other", "license_name": "own\u{1b}[2J", "license_link": "https://x"}),
    );
    assert_eq!(other.name.as_deref(), Some("own[2J"));
    assert_eq!(other.link.as_deref(), Some("https://x"));
    assert_eq!(of(json!({})).name.as_deref(), Some("mit"));
    assert_eq!(stated(&json!({})), Licence::default());
}
