//! Token ids of both tokenizers.

use std::path::Path;

use priors::tokenizer::{ClipTokenizer, T5Tokenizer};
use serde_json::{Value, json};

use crate::FOLDER;

pub(crate) fn read(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(FOLDER).join(file)).expect("a file of this folder")
}

#[test]
fn token_ids_of_clip() {
    let cases: Value = serde_json::from_slice(&read("tokenizer_tiny.json")).expect("JSON");
    let tokenizer = |config: Value, n| {
        let (vocab, merges) = (
            read("tokenizer_tiny/vocab.json"),
            read("tokenizer_tiny/merges.txt"),
        );
        ClipTokenizer::new(&vocab, &merges, &config, n, Path::new(FOLDER)).expect("fits together")
    };
    let cases = cases["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("a string");
        let ids = |key: &str| -> Vec<u32> {
            serde_json::from_value(case[key].clone()).expect("a list of ids")
        };
        let whole = ids("ids");
        assert_eq!(
            tokenizer(json!({}), whole.len()).encode(prompt).ids,
            whole,
            "{prompt:?}"
        );
        let cut = tokenizer(json!({}), 16).encode(prompt);
        assert_eq!(cut.ids, ids("padded_16"), "{prompt:?} cut or padded to 16");
        assert_eq!(
            cut.dropped,
            whole.len().saturating_sub(16),
            "tokens of {prompt:?} that do not fit"
        );
        let zero = tokenizer(json!({ "pad_token": "!" }), 16).encode(prompt);
        if prompt.contains('!') {
            // transformers makes every "!" of a prompt the pad token, id 0. The network was trained with OpenCLIP's
            // tokenizer, where a "!" is a word; so it is here.
            let words = whole.len().min(16);
            let mut padded = cut.ids.clone();
            padded[words..].fill(0);
            assert_eq!(zero.ids, padded, "{prompt:?} padded with 0");
        } else {
            assert_eq!(zero.ids, ids("padded_16_pad_0"), "{prompt:?} padded with 0");
        }
    }
}

#[test]
fn token_ids_of_t5() {
    let cases: Value = serde_json::from_slice(&read("t5_tokenizer_cases.json")).expect("JSON");
    let tokenizer = |length| {
        T5Tokenizer::new(&read("t5_tokenizer_tiny.json"), length, Path::new(FOLDER))
            .expect("a tokenizer")
    };
    let length = cases["length"].as_u64().expect("a length") as usize;
    let cases = cases["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("a string");
        let ids = |key: &str| -> Vec<u32> {
            serde_json::from_value(case[key].clone()).expect("a list of ids")
        };
        let whole = ids("ids");
        assert_eq!(
            tokenizer(whole.len()).encode(prompt).ids,
            whole,
            "{prompt:?}"
        );
        let cut = tokenizer(length).encode(prompt);
        assert_eq!(cut.ids, ids("padded"), "{prompt:?} cut or padded");
        assert_eq!(
            cut.dropped,
            whole.len().saturating_sub(length),
            "{prompt:?}"
        );
    }
}

/// Needs the tokenizers of SD3-medium (a few megabytes): `RECLAIR_SD3` names the model's folder.
#[test]
fn token_ids_of_sd3s_own_tokenizers() {
    let Some(folder) = std::env::var_os("RECLAIR_SD3") else {
        eprintln!("skipped: RECLAIR_SD3 does not name a folder with SD3's tokenizers");
        return;
    };
    let folder = Path::new(&folder);
    let file = |name: &str| std::fs::read(folder.join(name)).expect("a file of SD3's folder");
    let clip = |name: &str| {
        let config = file(&format!("{name}/tokenizer_config.json"));
        let config = serde_json::from_slice(&config).expect("JSON");
        let [vocab, merges] =
            ["vocab.json", "merges.txt"].map(|part| file(&format!("{name}/{part}")));
        ClipTokenizer::new(&vocab, &merges, &config, 77, folder).expect("fits together")
    };
    let clips = ["tokenizer", "tokenizer_2"].map(|name| (name, clip(name)));
    let t5 = T5Tokenizer::new(&file("tokenizer_3/tokenizer.json"), 256, folder);
    let t5 = t5.expect("a tokenizer");
    let cases: Value = serde_json::from_slice(&read("tokenizers_sd3.json")).expect("JSON");
    for case in cases["cases"].as_array().expect("a list") {
        let prompt = case["prompt"].as_str().expect("a string");
        let wanted = |name: &str| -> Vec<u32> {
            serde_json::from_value(case[name].clone()).expect("a list of ids")
        };
        for (name, clip) in &clips {
            let (got, wanted) = (clip.encode(prompt).ids, wanted(name));
            assert_eq!(got[..wanted.len()], wanted, "{name}: {prompt:?}");
        }
        let (got, wanted) = (t5.encode(prompt).ids, wanted("tokenizer_3"));
        assert_eq!(got[..wanted.len()], wanted, "T5: {prompt:?}");
        assert!(got[wanted.len()..].iter().all(|&id| id == 0));
    }
}

#[test]
fn openais_vocabulary_is_in_the_program() {
    let tokenizer =
        |pad: &str| ClipTokenizer::embedded(&json!({ "pad_token": pad }), 8).expect("known");
    let end = 49_407;
    // The ids of CLIP's own tests: "hi there" is 1883 997.
    assert_eq!(
        tokenizer("<|endoftext|>").encode("Hi   THERE").ids,
        [49_406, 1883, 997, end, end, end, end, end]
    );
    assert_eq!(
        tokenizer("!").encode("hi there").ids,
        [49_406, 1883, 997, end, 0, 0, 0, 0]
    );
    assert_eq!(tokenizer("!").largest_id(), end);
    let long = tokenizer("!").encode("a a a a a a a a");
    assert_eq!((long.ids.len(), long.dropped), (8, 2));
    let golden: Value = serde_json::from_slice(&read("tokenizer_openai.json")).expect("JSON");
    let cases = golden["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        let prompt = case["prompt"].as_str().expect("text");
        let tokenizer = ClipTokenizer::embedded(&Value::Null, ids.len()).expect("known");
        let tokens = tokenizer.encode(prompt);
        assert_eq!((tokens.ids, tokens.dropped), (ids, 0), "{prompt:?}");
    }
    let why = ClipTokenizer::embedded(&json!({ "pad_token": "x" }), 8).expect_err("unknown");
    assert!(why.to_string().contains("pads with a token"));
}
