//! The CLIP text encoders.

use burn::tensor::Device;
use priors::{
    clip::ClipText,
    weights::{Values, Weights},
};

use crate::{
    golden,
    golden::{BLOCK, formula_values},
    ids,
};

fn text_encoder(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let clip = ClipText::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("supported");
    let n = clip.config().max_position_embeddings;
    let encoded = clip.forward(&ids(&golden, n));
    let mut comparison = golden.compare();
    for (i, hidden) in encoded.hidden.iter().enumerate() {
        comparison.see(&format!("hidden_states.{i}"), hidden, BLOCK);
    }
    comparison.see("last_hidden_state", &encoded.last, BLOCK);
    let pooled = if golden.has("text_embeds") {
        "text_embeds"
    } else {
        "pooled"
    };
    comparison.see(pooled, &encoded.pooled, BLOCK);
    comparison.finish(|name| name.starts_with("pooled"));
}

#[test]
fn a_text_encoder_with_quick_gelu_that_pools_at_the_largest_id() {
    text_encoder("clip_tiny_quick");
}

#[test]
fn a_text_encoder_with_projection_that_pools_at_the_end_token() {
    text_encoder("clip_tiny_projection");
}

#[test]
fn a_text_encoder_is_the_same_with_and_without_the_old_prefix() {
    let golden = golden("clip_tiny_quick");
    let device = Device::flex();
    let build =
        |w: &Weights| ClipText::from_json(&golden.config(), golden.path(), w).expect("supported");
    let values = formula_values(&device, |w| drop(build(w)));
    let bare: Values = values
        .iter()
        .map(|(name, data)| {
            (
                name.trim_start_matches("text_model.").to_owned(),
                data.clone(),
            )
        })
        .collect();
    assert_ne!(values, bare);
    let run = |values: Values| {
        let w = Weights::from_values(values, &device);
        let encoder = build(&w);
        w.finish().expect("every tensor is used");
        encoder.forward(&[vec![1, 5, 9]]).last.into_data()
    };
    run(values).assert_eq(&run(bare), true);
}
