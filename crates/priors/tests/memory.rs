//! Weights stay in the mapped file: what loading takes of anonymous memory. The only test of its process, which it measures.
#![cfg(target_os = "linux")]

use std::{path::Path, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};
use priors::{
    single_file::TransformerNames,
    weights::{Init, Precision, SafetensorsFile, Stored, View, Weights, write_safetensors},
};

/// Anonymous memory of this process in bytes.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    1024 * kilobytes
        .expect("a size")
        .parse::<usize>()
        .expect("a number")
}

#[test]
fn loading_takes_less_than_a_tenth_of_the_weights() {
    const D: usize = 1024;
    const BLOCKS: usize = 12;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sd3.safetensors");
    let dtype = burn::tensor::DType::F16;
    let stored = |shape: &[usize]| Stored {
        dtype,
        shape: shape.to_vec(),
    };
    let header = (0..BLOCKS)
        .flat_map(|i| {
            let name = |module: &str| format!("joint_blocks.{i}.x_block.{module}.weight");
            [
                (name("attn.qkv"), stored(&[3 * D, D])),
                (name("mlp.fc1"), stored(&[4 * D, D])),
            ]
        })
        .collect();
    write_safetensors(&path, &header, &Default::default(), |name| {
        let shape = header[name].shape.clone();
        let n = shape.iter().product();
        Ok(TensorData::new(
            vec![burn::tensor::f16::from_f32(0.5); n],
            shape,
        ))
    })
    .expect("writes");
    let size = std::fs::metadata(&path).expect("there").len() as usize;
    assert!(size > 150_000_000, "{size} bytes");
    let load = |precision| {
        let before = anonymous();
        let file = Arc::new(SafetensorsFile::open(Path::new(&path)).expect("opens"));
        let names = TransformerNames { layers: BLOCKS };
        let w = Weights::from_view(
            View::named(file, "", Some(Arc::new(names))),
            precision,
            &Device::flex(),
        );
        let mut kept: Vec<Tensor<2>> = Vec::new();
        for i in 0..BLOCKS {
            let w = w.at(format!("transformer_blocks.{i}"));
            for (name, rows) in [
                ("attn.to_q", D),
                ("attn.to_k", D),
                ("attn.to_v", D),
                ("ff.net.0.proj", 4 * D),
            ] {
                kept.push(
                    w.at(name)
                        .tensor("weight", [rows, D], Init::Zeros)
                        .expect("there"),
                );
            }
        }
        w.finish().expect("every tensor is used");
        (anonymous().saturating_sub(before), kept)
    };
    let (stored, kept) = load(Precision::Stored);
    assert!(
        stored <= size / 10,
        "{stored} bytes of anonymous memory for {size}"
    );
    let last = kept
        .last()
        .expect("some")
        .clone()
        .slice([0..1, 0..2])
        .cast(burn::tensor::FloatDType::F32);
    assert_eq!(
        last.into_data().try_into_vec::<f32>().expect("f32"),
        [0.5, 0.5]
    );
    drop(kept);
    // The measure sees a copy when there is one.
    let (widened, _kept) = load(Precision::F32);
    assert!(widened > size, "{widened} bytes for {size} widened");
}
