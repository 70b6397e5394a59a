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
    resident("RssAnon:")
}

/// A line of what the system knows of this process's memory, in bytes.
fn resident(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(what));
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
    let load = |path: &Path, precision| {
        let before = anonymous();
        let file = Arc::new(SafetensorsFile::open(path).expect("opens"));
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
    let before = resident("VmRSS:");
    let (stored, kept) = load(&path, Precision::Stored);
    assert!(
        stored <= size / 10,
        "{stored} bytes of anonymous memory for {size}"
    );
    let value = |w: &Tensor<2>| {
        let w = w.clone().cast(burn::tensor::FloatDType::F32);
        let values = w.into_data().try_into_vec::<f32>().expect("f32");
        assert!(values.iter().all(|&v| v == 0.5));
    };
    // Once read they are in memory, and nothing else is.
    kept.iter().for_each(value);
    let total = resident("VmRSS:").saturating_sub(before);
    assert!(
        (size..=size + size / 10).contains(&total),
        "{total} bytes of memory for {size}"
    );
    drop(kept);
    // Behind a header of odd length no value lies where values of its size do.
    let mut bytes = std::fs::read(&path).expect("reads");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) + 1;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    bytes.insert(7 + length as usize, b' ');
    let odd = folder.path().join("odd.safetensors");
    std::fs::write(&odd, bytes).expect("writes");
    let (copied, kept) = load(&odd, Precision::Stored);
    kept.iter().for_each(value);
    assert!(
        copied >= size - size / 50,
        "{copied} bytes copied of {size}"
    );
    drop(kept);
    // The measure sees a copy when there is one.
    let (widened, _kept) = load(&path, Precision::F32);
    assert!(widened > size, "{widened} bytes for {size} widened");
}
