//! Files and configurations that want to do harm.

use std::path::Path;

use burn::tensor::Device;
use priors::{
    clip::ClipText,
    kind::Kind,
    known,
    mmdit::MmDit,
    t5::T5Encoder,
    unet::Unet,
    vae::AutoencoderKl,
    weights::{Init, Precision, SafetensorsFile, Weights},
};
use serde_json::{Value, json};

use super::refused;

/// Small files, each wrong in its own way: an error each, no panic and no large allocation.
#[test]
fn hostile_safetensors_files_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x.safetensors");
    let open = |length: u64, header: &str, data: usize| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(&path, &bytes).expect("writes");
        SafetensorsFile::open(&path)
    };
    let with = |header: &str, data: usize| open(header.len() as u64, header, data);
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(with(one, 8).is_ok());
    let bad = [
        (open(0, "", 0), "nothing"),
        (open(u64::MAX, one, 8), "a header of 2^64 bytes"),
        (open(1 << 40, one, 8), "a header beyond the file"),
        (with(one, 7), "a cut file"),
        (with(one, 9), "more than the header says"),
        (with("[1,2", 0), "no JSON"),
        (with("{}x", 0), "more than JSON"),
        (
            with(
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#,
                8,
            ),
            "a product beyond 64 bits",
        ),
        (
            with(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
                8,
            ),
            "offsets backwards",
        ),
        (
            with(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                12,
            ),
            "an overlap",
        ),
        (
            with(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}"#,
                16,
            ),
            "a hole",
        ),
        (
            with(
                r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#,
                8,
            ),
            "an unknown type",
        ),
        (
            with(
                r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
                8,
            ),
            "a negative side",
        ),
    ];
    for (result, what) in bad {
        let why = match result {
            Ok(_) => panic!("{what} was not refused"),
            Err(why) => why.to_string(),
        };
        assert!(
            why.contains("x.safetensors") && !why.contains('\n'),
            "{what}: {why}"
        );
    }
    std::fs::write(&path, []).expect("writes");
    assert!(SafetensorsFile::open(&path).is_err());
    // Any byte changed is another file or an error, not a panic.
    drop(with(one, 8).expect("a valid file"));
    let whole = std::fs::read(&path).expect("reads");
    for i in 0..whole.len() {
        for byte in 0..=255 {
            let mut changed = whole.clone();
            changed[i] = byte;
            let Ok(file) = SafetensorsFile::from_bytes(changed.into(), &path) else {
                continue;
            };
            Kind::of_file(&file);
            for name in file.names() {
                drop((file.data(name), file.float(name)));
            }
        }
        assert!(SafetensorsFile::from_bytes(whole[..i].to_vec().into(), &path).is_err());
    }
    // Types that are no parameters.
    for dtype in ["I64", "U8", "F8_E4M3", "BOOL"] {
        let width = if dtype == "I64" { 8 } else { 1 };
        let header = format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{}]}}}}"#,
            2 * width
        );
        drop(with(&header, 2 * width).expect("a valid file"));
        let paths = std::slice::from_ref(&path);
        let w = Weights::from_files(paths, Precision::Stored, &Device::flex()).expect("opens");
        let why = refused(w.tensor("a", [2], Init::Zeros));
        assert!(why.contains(dtype) && why.contains("16-bit file"), "{why}");
    }
}

#[test]
fn absurd_configurations_are_refused() {
    let device = Device::flex();
    let sdxl = known::configs(Kind::SdxlBase).expect("known");
    let change = |file: &str, key: &str, value: Value| {
        let mut config = sdxl.json(file).expect("there");
        config[key] = value;
        config
    };
    let huge = 1_u64 << 40;
    let unets = [
        ("block_out_channels", json!([huge, 640, 1280])),
        ("cross_attention_dim", json!(huge)),
        ("layers_per_block", json!(huge)),
        ("transformer_layers_per_block", json!([1, huge, 10])),
        ("in_channels", json!(u64::MAX)),
        ("norm_num_groups", json!(0)),
        ("block_out_channels", json!([])),
        ("attention_head_dim", json!([0, 0, 0])),
        ("in_channels", json!(-4)),
    ];
    for (key, value) in unets {
        let config = change("unet/config.json", key, value);
        refused(Unet::from_json(
            &config,
            Path::new("config"),
            &Weights::blank(&device),
        ));
    }
    for (key, value) in [
        ("block_out_channels", json!([huge, huge])),
        ("layers_per_block", json!(huge)),
        ("latent_channels", json!(huge)),
    ] {
        let config = change("vae/config.json", key, value);
        refused(AutoencoderKl::from_json(
            &config,
            Path::new("config"),
            &Weights::blank(&device),
        ));
    }
    let sd3 = known::configs(Kind::Sd3Medium).expect("known");
    for key in [
        "num_layers",
        "num_attention_heads",
        "pos_embed_max_size",
        "patch_size",
    ] {
        let mut config = sd3.json("transformer/config.json").expect("there");
        config[key] = json!(huge);
        refused(MmDit::from_json(
            &config,
            Path::new("config"),
            &Weights::blank(&device),
        ));
    }
    for key in ["num_layers", "d_model", "d_ff", "vocab_size"] {
        let mut config = sd3.json("text_encoder_3/config.json").expect("there");
        config[key] = json!(huge);
        refused(T5Encoder::from_json(
            &config,
            Path::new("config"),
            &Weights::blank(&device),
        ));
    }
    for key in ["num_hidden_layers", "hidden_size", "vocab_size"] {
        let mut config = sd3.json("text_encoder/config.json").expect("there");
        config[key] = json!(huge);
        refused(ClipText::from_json(
            &config,
            Path::new("config"),
            &Weights::blank(&device),
        ));
    }
}
