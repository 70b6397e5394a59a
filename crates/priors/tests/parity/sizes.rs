//! Names and shapes of every tensor at full size, against the published models', without allocating one.
//!
//! A model's list is here as its digest: SHA-256 of the lines `<name> <shape>`, sorted by name, the shape as `320x4x3x3`.

use std::{fmt::Write, path::Path};

use burn::tensor::Device;
use priors::{
    Error, clip::ClipText, mmdit::MmDit, t5::T5Encoder, unet::Unet, vae::AutoencoderKl,
    weights::Weights,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

type Build = fn(&Value, &Path, &Weights) -> Result<(), Error>;

/// Model and configuration, how many tensors and values it has, its digest.
const MODELS: [(&str, Build, usize, usize, &str); 10] = [
    (
        "sdxl_unet",
        |json, path, w| Unet::from_json(json, path, w).map(drop),
        1680,
        2_567_463_684,
        "1484a17899fbe66ce72b948d1cb20b4ac9dec501b657491baa1e29f2990d2ee5",
    ),
    (
        "sd3_medium_transformer",
        |json, path, w| MmDit::from_json(json, path, w).map(drop),
        683,
        2_084_951_104,
        "24414af1601dcaa8a2efd610fe39703c7f49dd305b30bce31a5f483fe21c8256",
    ),
    (
        "sd35_medium_transformer",
        |json, path, w| MmDit::from_json(json, path, w).map(drop),
        909,
        2_469_663_936,
        "c18c43f7368da08a03c7624c7e3badd3095eb47824e73ed4ba5cf93d7ebcfd76",
    ),
    (
        "sd35_large_transformer",
        |json, path, w| MmDit::from_json(json, path, w).map(drop),
        1227,
        8_146_280_768,
        "46f85179056be9e9608678fec9266404c0a2b33a47acd8c3d4c6e8c7e2bdd628",
    ),
    (
        "sdxl_vae",
        |json, path, w| AutoencoderKl::from_json(json, path, w).map(drop),
        248,
        83_653_863,
        "f7ac48fdd0003763c3556953106fb8832330e677539e73e3fbceb2f30203dde5",
    ),
    (
        "sd3_vae",
        |json, path, w| AutoencoderKl::from_json(json, path, w).map(drop),
        244,
        83_819_683,
        "129cf253774ad960a79a60ee4f77237459c2188175e44a698b55faf0cbb6b276",
    ),
    (
        "clip_l",
        |json, path, w| ClipText::from_json(json, path, w).map(drop),
        196,
        123_060_480,
        "502dbc9c96ade6ae4b4b18742d9f193193c443e25c85fd281090a464b9a26bb9",
    ),
    (
        "clip_l_withproj_sd3",
        |json, path, w| ClipText::from_json(json, path, w).map(drop),
        197,
        123_650_304,
        "1951195861b347324765001e9547aeeb0d5134906cbfdb447c3d5cf15e3ec5d9",
    ),
    (
        "clip_g",
        |json, path, w| ClipText::from_json(json, path, w).map(drop),
        517,
        694_659_840,
        "a739139d7941ecb0ca77596b4ffa908c46e2115a08fffa1cea2c454f46b1df03",
    ),
    (
        "t5xxl_encoder",
        |json, path, w| T5Encoder::from_json(json, path, w).map(drop),
        219,
        4_762_310_656,
        "1fa9a0cd5283ea089d775121c8250c2dd20eb0414ee1e3500f95e703687fa912",
    ),
];

#[test]
fn names_and_shapes_at_full_size() {
    for (name, build, tensors, values, digest) in MODELS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/configs/{name}.json"));
        let json = std::fs::read(&path).expect("a configuration");
        let json: Value = serde_json::from_slice(&json).expect("JSON");
        let w = Weights::blank(&Device::flex());
        build(&json, &path, &w).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(
            (w.shapes().len(), w.count()),
            (tensors, values),
            "tensors and values of {name}"
        );
        let mut lines = String::new();
        for (tensor, shape) in w.shapes() {
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            writeln!(lines, "{tensor} {}", shape.join("x")).expect("writes to memory");
        }
        let got: String = Sha256::digest(&lines)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(got, digest, "{name} is now\n{lines}");
    }
}
