//! Parity with diffusers and transformers: every named output of tiny networks with formula weights.
//!
//! The goldens were computed in f64 (`golden/*.py`). A segment that gets the golden's input is held to the block tolerance,
//! whatever has gone through a whole network to the model tolerance.

#[path = "../golden/mod.rs"]
mod golden;

mod clip;
mod gradients;
mod layers;
mod mmdit;
mod provenance;
mod sizes;
mod t5;
mod text;
mod tokenizers;
mod unet;
mod vae;

use burn::tensor::Device;
use golden::Golden;
use priors::flow::Conditioning;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden(name: &str) -> Golden {
    Golden::open(FOLDER, name)
}

/// Token ids of a batch, from the golden's flat list.
fn ids(golden: &Golden, length: usize) -> Vec<Vec<u32>> {
    let ids: Vec<u32> = golden
        .integers("input.ids")
        .iter()
        .map(|&id| u32::try_from(id).expect("an id"))
        .collect();
    ids.chunks(length).map(<[u32]>::to_vec).collect()
}

fn conditioning(golden: &Golden, device: &Device) -> Conditioning {
    let optional = |name: &str| golden.has(name).then(|| golden.tensor(name, device));
    Conditioning {
        text: golden.tensor("input.text", device),
        pooled: optional("input.pooled"),
        time_ids: optional("input.time_ids"),
    }
}
