//! The T5 encoder.

use burn::tensor::Device;
use priors::{t5::T5Encoder, weights::Weights};

use crate::{golden, golden::BLOCK, ids};

#[test]
fn every_block_of_a_t5_encoder() {
    let golden = golden("t5_tiny");
    let device = Device::flex();
    let t5 = T5Encoder::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("supported");
    let n = golden.integers("input.ids").len();
    let mut comparison = golden.compare();
    let mut see = |i: usize, x: &_| comparison.see(&format!("hidden_states.{i}"), x, BLOCK);
    let last = t5.forward_seen(&ids(&golden, n), &mut see);
    comparison.see("last_hidden_state", &last, BLOCK);
    comparison.finish(|_| false);
}
