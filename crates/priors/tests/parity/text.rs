//! What SDXL's and SD3's text encoders make of a prompt, and prompts that are too long for them.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use priors::{
    clip::ClipText,
    flow::Conditioning,
    t5::T5Encoder,
    text::{Clip, Null, T5, T5_TOKENS, TextEncoders},
    tokenizer::{ClipTokenizer, T5Tokenizer},
    weights::Weights,
};
use serde_json::json;

use crate::{
    FOLDER, golden,
    golden::{BLOCK, Comparison, Golden, MODEL, Tolerance},
    tokenizers::read,
};

/// Positions of the goldens' CLIP encoders.
const LENGTH: usize = 12;

fn clip(golden: &Golden, part: &str, pad: &str) -> Clip {
    let w = Weights::formula(&Device::flex());
    let config = &golden.config()[part];
    let encoder = ClipText::from_json(config, golden.path(), &w).expect("supported");
    let tokenizer = ClipTokenizer::new(
        &read("tokenizer_tiny/vocab.json"),
        &read("tokenizer_tiny/merges.txt"),
        &json!({ "pad_token": pad }),
        LENGTH,
        Path::new(FOLDER),
    );
    Clip {
        encoder,
        tokenizer: tokenizer.expect("fits together"),
    }
}

fn clips(golden: &Golden) -> Box<[Clip; 2]> {
    let first = clip(golden, "text_encoder", "<|endoftext|>");
    Box::new([first, clip(golden, "text_encoder_2", "!")])
}

fn sdxl(golden: &Golden, null: Null) -> TextEncoders {
    let clips = clips(golden);
    TextEncoders::Sdxl { clips, null }
}

fn t5(golden: &Golden) -> T5 {
    let w = Weights::formula(&Device::flex());
    let config = &golden.config()["text_encoder_3"];
    let json = read("t5_tokenizer_tiny.json");
    T5 {
        encoder: T5Encoder::from_json(config, golden.path(), &w).expect("supported"),
        tokenizer: T5Tokenizer::new(&json, T5_TOKENS, Path::new(FOLDER)).expect("a tokenizer"),
    }
}

fn sd3(golden: &Golden, t5: Option<T5>) -> TextEncoders {
    TextEncoders::Sd3 {
        clips: clips(golden),
        t5: t5.map(Box::new),
        width: 44,
    }
}

fn encode(encoders: &TextEncoders, prompt: &str) -> Conditioning {
    let (conditioning, notes) = encoders.conditioning(&[prompt], [64, 96]);
    assert!(notes.is_empty(), "{notes:?}");
    conditioning
}

fn see(comparison: &mut Comparison<'_>, run: &str, got: &Conditioning, tolerance: Tolerance) {
    comparison.see(&format!("{run}.text"), &got.text, tolerance);
    let pooled = got.pooled.as_ref().expect("pooled text");
    comparison.see(&format!("{run}.pooled"), pooled, tolerance);
}

#[test]
fn prompts_of_sdxl() {
    let golden = golden("text_sdxl_tiny");
    let zero = sdxl(&golden, Null::Zero);
    let mut comparison = golden.compare();
    let prompt = encode(&zero, "a photo of a cat");
    see(&mut comparison, "prompt", &prompt, BLOCK);
    see(&mut comparison, "null", &encode(&zero, ""), BLOCK);
    see(
        &mut comparison,
        "negative",
        &encode(&zero, "low quality, noisy"),
        BLOCK,
    );
    let encoded = sdxl(&golden, Null::Encoded);
    see(&mut comparison, "empty", &encode(&encoded, ""), BLOCK);
    comparison.finish(|_| false);
    let sizes = prompt.time_ids.expect("sizes").into_data();
    let sizes: Vec<f32> = sizes.try_into_vec().expect("f32");
    assert_eq!(sizes, [64.0, 96.0, 0.0, 0.0, 64.0, 96.0]);
}

#[test]
fn prompts_of_sd3() {
    let golden = golden("text_sd3_tiny");
    let long = sd3(&golden, Some(t5(&golden)));
    let mut comparison = golden.compare();
    let prompt = encode(&long, "a photo of a cat");
    // T5's logits are not scaled: torch's own f32 is 3e-5 off at the same token as ours.
    see(&mut comparison, "prompt", &prompt, MODEL);
    see(&mut comparison, "null", &encode(&long, ""), MODEL);
    comparison.finish(|_| false);
    assert!(prompt.time_ids.is_none());
    // Without T5: zeros in its place.
    let short = encode(&sd3(&golden, None), "a photo of a cat");
    let clip = |x: &Conditioning| x.text.clone().narrow(1, 0, LENGTH).into_data();
    assert_eq!(clip(&short), clip(&prompt));
    let rest = short.text.narrow(1, LENGTH, T5_TOKENS);
    assert_eq!(rest.abs().max().into_scalar::<f32>().to_bits(), 0);
}

#[test]
fn a_long_prompt_is_read_in_pieces_and_said_so() {
    let golden = golden("text_sdxl_tiny");
    let encoders = sdxl(&golden, Null::Zero);
    // Ten words a piece: every "a" is one.
    let (first, second) = ("a a a a a a a a a a", "photo a");
    let (long, notes) = encoders.conditioning(&[&format!("{first} {second}")], [64, 64]);
    assert!(
        notes.len() == 1 && notes[0].contains("2 pieces"),
        "{notes:?}"
    );
    let pieces = [first, second].map(|piece| encode(&encoders, piece));
    let text = Tensor::cat(pieces.each_ref().map(|piece| piece.text.clone()).into(), 1);
    // Sums are made in another order for more rows.
    let apart = |a: Tensor<1>, b: Tensor<1>| (a - b).abs().max().into_scalar::<f32>();
    assert!(apart(long.text.flatten(0, 2), text.flatten(0, 2)) < 1e-5);
    let pooled = |x: &Conditioning| x.pooled.clone().expect("pooled").flatten(0, 1);
    let whole = long.pooled.expect("pooled").flatten(0, 1);
    assert!(apart(whole.clone(), pooled(&pieces[0])) < 1e-5);
    assert!(apart(whole, pooled(&pieces[1])) > 1e-2);
    // A batch of a long and a short prompt is as long as the long one.
    let (batch, _) = encoders.conditioning(&[&format!("{first} {second}"), "a"], [64, 64]);
    assert_eq!(batch.text.dims(), [2, 2 * LENGTH, 40]);
    assert_eq!(batch.time_ids.expect("sizes").dims(), [2, 6]);
}

#[test]
fn a_prompt_too_long_for_t5_is_said() {
    let golden = golden("text_sd3_tiny");
    let encoders = sd3(&golden, Some(t5(&golden)));
    let (long, notes) = encoders.conditioning(&[&"a ".repeat(300)], [64, 64]);
    let pieces = 300_usize.div_ceil(LENGTH - 2);
    assert_eq!(long.text.dims(), [1, pieces * LENGTH + T5_TOKENS, 44]);
    assert!(
        notes.len() == 2 && notes[1].contains("without the last 45"),
        "{notes:?}"
    );
}
