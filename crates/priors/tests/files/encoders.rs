//! Text encoders and tokenizers as other versions of transformers save them.

use burn::tensor::Device;
use priors::{
    folder::Folder,
    tokenizer::learn,
    weights::{Init, Precision},
};
use serde_json::{Value, json};

use crate::{refused, write_header};

#[test]
fn a_text_encoder_may_hold_its_positions_ids() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tensors: [(&str, &[usize]); 2] = [
        ("text_model.embeddings.position_ids", &[1, 77]),
        ("text_model.final_layer_norm.bias", &[4]),
    ];
    for part in ["text_encoder", "unet"] {
        write_header(
            &folder.path().join(part).join("model.safetensors"),
            &tensors,
        );
        let found = Folder::Disk(folder.path().to_owned());
        let file = format!("{part}/model.safetensors");
        let w = found
            .weights(&file, Precision::F32, &Device::flex())
            .expect("opens");
        w.tensor::<1>("text_model.final_layer_norm.bias", [4], Init::Zeros)
            .expect("there");
        assert_eq!(w.finish().is_ok(), part == "text_encoder", "{part}");
    }
}

#[test]
fn a_clip_tokenizer_may_be_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let texts = vec!["a photo of a cat, low quality".to_owned(); 4];
    let (vocab, merges) = learn(&texts, 580).expect("learns");
    let found = Folder::Disk(folder.path().to_owned());
    let tokenizer = |part: &str, files: &[(&str, &str)]| {
        let place = folder.path().join(part);
        std::fs::create_dir_all(&place).expect("makes the folder");
        let config = ("tokenizer_config.json", "{}");
        for (name, contents) in files.iter().chain([&config]) {
            std::fs::write(place.join(name), contents).expect("writes");
        }
        found.clip_tokenizer(part, 32)
    };
    let two = tokenizer("two", &[("vocab.json", &vocab), ("merges.txt", &merges)]);
    let two = two.expect("fits together");
    let vocab: Value = serde_json::from_str(&vocab).expect("JSON");
    let lines: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert!(!lines.is_empty());
    let pairs: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
    let whole = |merges: Value| {
        let model = json!({
            "type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges
        });
        json!({ "version": "1.0", "model": model }).to_string()
    };
    for merges in [json!(lines), json!(pairs)] {
        let one = tokenizer("one", &[("tokenizer.json", &whole(merges))]);
        let one = one.expect("fits together");
        assert_eq!(one.largest_id(), two.largest_id());
        for text in [
            "a photo of a cat",
            "LOW quality,  photos",
            "žluťoučký 写真 42",
            "",
        ] {
            assert_eq!(one.encode(text).ids, two.encode(text).ids, "{text}");
        }
    }
    for bad in [
        "{}".to_owned(),
        "[1]".to_owned(),
        r#"{"model": {"type": "Unigram", "vocab": []}}"#.to_owned(),
        r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#.to_owned(),
        r#"{"model": {"vocab": [1], "merges": ["a b"]}}"#.to_owned(),
        whole(json!([["a"]])),
        whole(json!(["no such merge"])),
        whole(json!([7])),
    ] {
        let line = refused(tokenizer("bad", &[("tokenizer.json", &bad)]));
        assert!(line.contains("tokenizer.json"), "{line}");
    }
}
