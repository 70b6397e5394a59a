//! Files and configurations that want to do harm: an error of one line each, no panic and no large allocation.
//!
//! They lie beside this, made by `make.py`.

mod harness;

use std::path::Path;

use burn::tensor::Device;
use priors::{
    clip::ClipText,
    folder::{Folder, NETWORK_FILE},
    kind::Kind,
    mmdit::MmDit,
    scheduler::SchedulerConfig,
    t5::T5Encoder,
    tokenizer::{ClipTokenizer, T5Tokenizer},
    unet::Unet,
    vae::{AutoencoderKl, VaeConfig},
    weights::{Init, Precision, SafetensorsFile, Weights},
};
use serde_json::Value;

use harness::{all_in, cheap, name_of, refused};

#[test]
fn hostile_files_are_refused() {
    let files = all_in("files", 36);
    for path in &files {
        let name = name_of(path);
        // As a checkpoint that someone names.
        refused(path, Folder::open);
        let Some(dtype) = name.strip_prefix("opens_") else {
            let why = refused(path, SafetensorsFile::open);
            assert_eq!(
                why.contains("pickle"),
                name.starts_with("pickle"),
                "{name}: {why}"
            );
            continue;
        };
        // A valid file of what is no parameter.
        let why = refused(path, |path| {
            let w = Weights::from_files(&[path.to_owned()], Precision::Stored, &Device::flex())?;
            w.tensor::<1>("a", [2], Init::Zeros)
        });
        let dtype = dtype.trim_end_matches(".safetensors");
        assert!(why.contains(dtype) || dtype.starts_with("F16"), "{why}");
    }
    configurations_are_refused();
    indexes_are_refused();
    tokenizers_are_refused();
    any_byte_may_be_changed();
    any_byte_of_json_may_be_changed();
}

fn indexes_are_refused() {
    let folders = all_in("indexes", 21);
    for path in &folders {
        let network = format!("{}/{NETWORK_FILE}", name_of(path));
        let above = path.parent().expect("indexes").to_owned();
        refused(path, |_| Folder::Disk(above.clone()).view(&network));
    }
}

/// A tokenizer that is read although it lies gives ids that the encoder may not have, which the model refuses.
fn tokenizers_are_refused() {
    let files = all_in("tokenizers", 30);
    let vocab = br#"{"<|startoftext|>":0,"<|endoftext|>":1,"a":2,"b":3,"ab</w>":4,"b</w>":5}"#;
    let clip = |vocab: &[u8], merges: &[u8], path: &Path| {
        ClipTokenizer::new(vocab, merges, &Value::Null, 8, path)
    };
    assert!(clip(vocab, b"a b</w>\n", Path::new("good")).is_ok());
    for path in &files {
        let name = name_of(path);
        let contents = std::fs::read(path).expect("reads");
        if name.starts_with("vocab.id_beyond_the_encoder") {
            let read = clip(&contents, b"", path).expect("32 bits hold it");
            assert_eq!(read.largest_id(), u32::MAX);
            continue;
        }
        refused(path, |path| match name.split('.').next() {
            Some("vocab") => clip(&contents, b"a b</w>\n", path).map(drop),
            Some("merges") => clip(vocab, &contents, path).map(drop),
            Some("clip") => ClipTokenizer::from_json(&contents, &Value::Null, 8, path).map(drop),
            Some("t5") => T5Tokenizer::new(&contents, 8, path).map(drop),
            _ => panic!("whose is {name}?"),
        });
    }
}

fn configurations_are_refused() {
    let files = all_in("configs", 76);
    let device = Device::flex();
    for path in &files {
        let name = name_of(path);
        let value: Value =
            serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON");
        let w = Weights::blank(&device);
        refused(path, |path| match name.split('.').next() {
            Some("unet") => Unet::from_json(&value, path, &w).map(drop),
            Some("vae") => AutoencoderKl::from_json(&value, path, &w).map(drop),
            Some("transformer") => MmDit::from_json(&value, path, &w).map(drop),
            Some("text_encoder") => ClipText::from_json(&value, path, &w).map(drop),
            Some("text_encoder_3") => T5Encoder::from_json(&value, path, &w).map(drop),
            Some("scheduler") => SchedulerConfig::from_json(&value, path).map(drop),
            _ => panic!("whose is {name}?"),
        });
    }
}

/// Any byte of a configuration or an index changed is another one or an error, not a panic.
fn any_byte_of_json_may_be_changed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("src/known/sdxl/vae.json");
    let config = std::fs::read(&path).expect("reads");
    let changes = |text: &[u8], read: &mut dyn FnMut(&[u8])| {
        for i in 0..text.len() {
            for byte in *b"\0\n\"09-eE.,:{}[]x\xff" {
                let mut changed = text.to_vec();
                changed[i] = byte;
                read(&changed);
            }
            read(&text[..i]);
        }
    };
    cheap("vae.json", || {
        changes(&config, &mut |text| {
            if let Ok(value) = serde_json::from_slice::<Value>(text) {
                drop(VaeConfig::from_json(&value, &path));
            }
        });
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(format!("{NETWORK_FILE}.index.json"));
    let index = br#"{"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors"}}"#;
    cheap("index.json", || {
        changes(index, &mut |text| {
            std::fs::write(&file, text).expect("writes");
            assert!(
                Folder::Disk(folder.path().to_owned())
                    .view(NETWORK_FILE)
                    .is_err(),
                "there are no shards"
            );
        });
    });
}

/// Any byte changed is another file or an error, not a panic; so is any shorter file.
fn any_byte_may_be_changed() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut whole = (header.len() as u64).to_le_bytes().to_vec();
    whole.extend(header.as_bytes());
    whole.extend([0; 8]);
    let path = Path::new("x.safetensors");
    assert!(SafetensorsFile::from_bytes(whole.clone().into(), path).is_ok());
    cheap("x.safetensors", || {
        for i in 0..whole.len() {
            for byte in 0..=255 {
                let mut changed = whole.clone();
                changed[i] = byte;
                let Ok(file) = SafetensorsFile::from_bytes(changed.into(), path) else {
                    continue;
                };
                Kind::of_file(&file);
                for name in file.names() {
                    drop((file.data(name), file.float(name)));
                }
            }
            assert!(SafetensorsFile::from_bytes(whole[..i].to_vec().into(), path).is_err());
        }
    });
}
