//! Finding a prior's files, and what a file is.

mod encoders;
mod parts;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, TensorData};
use priors::{
    folder::Folder,
    kind::Kind,
    model::PriorModel,
    scheduler::Prediction,
    weights::{Init, Precision, SafetensorsFile, Values, save_safetensors},
};
use serde_json::{Value, json};

/// Writes a safetensors file of this header and as many zeros as it speaks of, sparse where it is large.
fn write_header(path: &Path, tensors: &[(&str, &[usize])]) {
    let mut at = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes the folder");
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&text);
    std::fs::write(path, &bytes).expect("writes");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opens");
    file.set_len((bytes.len() + at) as u64).expect("grows");
}

fn refused<T: std::fmt::Debug>(result: Result<T, priors::Error>) -> String {
    let why = result.expect_err("refused").to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

const SDXL_UNET: [(&str, &[usize]); 2] = [
    ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
    (
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        &[640, 2048],
    ),
];

#[test]
fn a_header_says_what_a_file_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kind = |tensors: &[(&str, &[usize])]| {
        let path = folder.path().join("x.safetensors");
        write_header(&path, tensors);
        Kind::of_file(&SafetensorsFile::open(&path).expect("opens"))
    };
    assert_eq!(kind(&SDXL_UNET), Kind::SdxlBase);
    let unet = |first: &'static [usize], text: &'static [usize]| {
        kind(&[
            ("model.diffusion_model.input_blocks.0.0.weight", first),
            (
                "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
                text,
            ),
        ])
    };
    assert_eq!(unet(&[320, 4, 3, 3], &[1280, 2048]), Kind::SdxlBase);
    assert_eq!(unet(&[320, 9, 3, 3], &[1280, 2048]), Kind::SdxlInpaint);
    assert_eq!(unet(&[384, 4, 3, 3], &[1536, 1280]), Kind::SdxlRefiner);
    assert_eq!(unet(&[320, 4, 3, 3], &[1280, 768]), Kind::Sd1);
    assert_eq!(unet(&[320, 4, 3, 3], &[1280, 1024]), Kind::Sd2);
    let diffusers: [(&str, &[usize]); 2] = [
        ("conv_in.weight", &[320, 4, 3, 3]),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            &[1280, 768],
        ),
    ];
    assert_eq!(kind(&diffusers), Kind::Sd1);
    let sd3 = |width: usize, positions: usize| {
        let (qkv, table) = ([3 * width, width], [1, positions, width]);
        kind(&[
            ("joint_blocks.0.x_block.attn.qkv.weight", &qkv),
            ("pos_embed", &table),
        ])
    };
    assert_eq!(sd3(1536, 36_864), Kind::Sd3Medium);
    assert_eq!(sd3(1536, 147_456), Kind::Sd35Medium);
    assert_eq!(sd3(2432, 36_864), Kind::Sd35Large);
    assert_eq!(
        kind(&[("double_blocks.0.img_attn.qkv.weight", &[9216, 3072])]),
        Kind::Flux
    );
    assert_eq!(kind(&[("unet.a.lora_A.weight", &[4, 8])]), Kind::Lora);
    assert_eq!(
        kind(&[("lora_unet_a.lora_down.weight", &[4, 8])]),
        Kind::Lora
    );
    assert_eq!(
        kind(&[("controlnet_cond_embedding.conv_in.weight", &[16, 3, 3, 3])]),
        Kind::ControlNet
    );
    let vae: [(&str, &[usize]); 2] = [
        ("encoder.conv_in.weight", &[128, 3, 3, 3]),
        ("decoder.conv_in.weight", &[512, 4, 3, 3]),
    ];
    assert_eq!(kind(&vae), Kind::Vae);
    let clip = |width: usize| {
        kind(&[(
            "text_model.embeddings.token_embedding.weight",
            &[49_408, width],
        )])
    };
    assert_eq!((clip(768), clip(1280)), (Kind::ClipL, Kind::ClipG));
    assert_eq!(kind(&[("nonsense", &[4])]), Kind::Unknown);
    let mini = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/mini/prior/unet/diffusion_pytorch_model.safetensors");
    assert_eq!(
        Kind::of_file(&SafetensorsFile::open(&mini).expect("opens")),
        Kind::Mini
    );
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    for length in [640_usize, 896, 1152, 1408] {
        let mut header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
        header.resize(length, b' ');
        let mut bytes = (length as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 4]);
        let file = SafetensorsFile::from_bytes(bytes.into(), Path::new("x.safetensors"));
        assert!(file.expect("opens").has("a"), "{length}");
    }
}

#[test]
fn the_wrong_model_is_named_in_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let open = |path: PathBuf| refused(Folder::open(&path));
    let sd15: [(&str, &[usize]); 2] = [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            &[320, 4, 3, 3],
        ),
        (
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            &[1280, 768],
        ),
    ];
    write_header(&root.join("old.safetensors"), &sd15);
    let line = open(root.join("old.safetensors"));
    assert!(
        line.ends_with("this is an SD 1.5 U-Net; reclair restores with SDXL or SD3"),
        "{line}"
    );
    write_header(
        &root.join("lora.safetensors"),
        &[("lora_unet_a.lora_down.weight", &[4, 8])],
    );
    assert!(open(root.join("lora.safetensors")).contains("--lora"));
    std::fs::write(root.join("model.ckpt"), b"PK\x03\x04 and more").expect("writes");
    assert!(open(root.join("model.ckpt")).contains("pickle"));
    std::fs::copy(root.join("model.ckpt"), root.join("renamed.safetensors")).expect("copies");
    assert!(open(root.join("renamed.safetensors")).contains("pickle"));
    assert!(open(root.join("nothing")).contains("is no file"));
    // A diffusers folder of the same model.
    let unet = root.join("sd15/unet");
    write_header(
        &unet.join("diffusion_pytorch_model.fp16.safetensors"),
        &sd15,
    );
    std::fs::write(unet.join("config.json"), "{}").expect("writes");
    assert!(open(root.join("sd15")).contains("SD 1.5"));
    // And one with a pickle only.
    std::fs::create_dir_all(root.join("bin/unet")).expect("makes the folder");
    std::fs::write(root.join("bin/unet/config.json"), "{}").expect("writes");
    std::fs::write(root.join("bin/unet/diffusion_pytorch_model.bin"), "PK").expect("writes");
    let folder = Folder::open(&root.join("bin")).expect("a folder");
    assert!(refused(folder.view("unet/diffusion_pytorch_model.safetensors")).contains("pickle"));
}

#[test]
fn shards_variants_and_the_cache_are_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("models--someone--model");
    let snapshot = root.join("snapshots/abc123");
    let unet = snapshot.join("unet");
    std::fs::create_dir_all(&unet).expect("makes the folder");
    std::fs::create_dir_all(root.join("refs")).expect("makes the folder");
    std::fs::create_dir_all(root.join("snapshots/older")).expect("makes the folder");
    std::fs::write(root.join("refs/main"), "abc123").expect("writes");
    std::fs::write(unet.join("config.json"), "{}").expect("writes");
    let save = |name: &str, tensor: &str, value: f32| {
        let values = Values::from([(tensor.to_owned(), TensorData::new(vec![value; 2], [2]))]);
        save_safetensors(&unet.join(name), &values, DType::F16, &Default::default())
            .expect("saves");
    };
    let file = "unet/diffusion_pytorch_model.safetensors";
    let found = Folder::open(&root).expect("a repository in the cache");
    let line = refused(found.view(file));
    assert!(line.contains("is missing, and so are"), "{line}");
    let read = |tensor: &str| {
        let w = found
            .weights(file, Precision::F32, &Device::flex())
            .expect("opens");
        let tensor = w.tensor(tensor, [2], Init::Zeros).expect("there");
        tensor.into_data().try_into_vec::<f32>().expect("f32")
    };
    save("diffusion_pytorch_model.fp16.safetensors", "a", 1.0);
    assert_eq!(read("a"), [1.0; 2]);
    save("one.safetensors", "a", 2.0);
    save("two.safetensors", "b", 3.0);
    let index = |map: Value| {
        let index = json!({"metadata": {"total_size": 8}, "weight_map": map});
        let path = unet.join("diffusion_pytorch_model.safetensors.index.json");
        std::fs::write(path, index.to_string()).expect("writes");
    };
    index(json!({"a": "one.safetensors", "b": "two.safetensors"}));
    assert_eq!((read("a"), read("b")), (vec![2.0; 2], vec![3.0; 2]));
    index(json!({"a": "two.safetensors"}));
    assert!(refused(found.view(file)).contains("which it does not"));
    index(json!({"a": "../../../secret.safetensors"}));
    assert!(refused(found.view(file)).contains("no safetensors file beside it"));
    index(json!({"a": "gone.safetensors"}));
    assert!(refused(found.view(file)).contains("gone.safetensors"));
}

#[test]
fn a_checkpoint_says_what_its_network_predicts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sdxl.safetensors");
    let open = |key: &str| {
        write_header(&path, &[&SDXL_UNET[..], &[(key, &[])]].concat());
        Folder::open(&path)
    };
    let prediction = |key: &str| {
        let scheduler = PriorModel::open_scheduler(&open(key).expect("opens"));
        scheduler.expect("supported").prediction()
    };
    assert_eq!(prediction("another"), Prediction::Epsilon);
    assert_eq!(prediction("v_pred"), Prediction::VPrediction);
    for (key, says) in [
        ("edm_mean", "Playground 2.5"),
        ("edm_std", "Playground 2.5"),
        ("edm_vpred.sigma_max", "CosXL"),
        ("ztsnr", "ratio of zero"),
    ] {
        let line = refused(open(key));
        assert!(line.contains(key) && line.contains(says), "{line}");
    }
    // The key may be left over in a U-Net without a prefix.
    let w = open("v_pred").expect("opens");
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let unused = w.view(unet).expect("opens").unused(&Default::default());
    assert!(
        !unused.is_empty() && !unused.contains(&"v_pred".to_owned()),
        "{unused:?}"
    );
}
