//! PEFT's `adapter_config.json` beside a LoRA file.

use std::collections::BTreeMap;

use restore::lora::{LoraFile, PriorShapes, merged};
use serde_json::{Value, json};

use super::{form, open, prior};

#[test]
fn a_damaged_configuration_beside_the_file_is_refused() {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "unet", &golden.config());
    let beside = place.path().join("adapter");
    std::fs::create_dir(&beside).expect("makes the folder");
    let path = form(&file, place.path(), "peft");
    std::fs::rename(path, beside.join("adapter_model.safetensors")).expect("moves");
    std::fs::write(beside.join("adapter_config.json"), "{\"lora_alpha\":").expect("writes");
    let why = merged(folder, &[(&beside, 1.0)]).expect_err("its strength is unknown");
    assert!(why.to_string().contains("adapter_config.json"), "{why}");
}

/// The alphas of the form `peft` with an `adapter_config.json`, by module; or why it is refused.
fn alphas(config: &Value) -> Result<BTreeMap<String, f64>, String> {
    let (golden, file) = open();
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = prior(place.path(), "unet", &golden.config());
    let shapes = PriorShapes::of(&folder).expect("supported");
    let path = form(&file, place.path(), "peft");
    std::fs::write(
        path.with_file_name("adapter_config.json"),
        config.to_string(),
    )
    .expect("writes");
    let file = LoraFile::open(&path, &shapes).map_err(|why| why.to_string())?;
    let updates = file.updates.into_values().flatten();
    Ok(updates
        .map(|(module, update)| (module, update.alpha / update.rank() as f64))
        .collect())
}

#[test]
fn rank_stabilised_updates_are_scaled_by_the_root_of_the_rank() {
    let plain = alphas(&json!({ "lora_alpha": 6, "use_rslora": false })).expect("fits");
    let stabilised = alphas(&json!({ "lora_alpha": 6, "use_rslora": true })).expect("fits");
    for (module, scale) in &plain {
        // alpha / r = s makes alpha / sqrt(r) = sqrt(alpha s).
        let wanted = (6.0 * scale).sqrt();
        assert!((stabilised[module] - wanted).abs() < 1e-12, "{module}");
    }
    assert!(plain != stabilised);
}

#[test]
fn patterns_of_alpha_match_as_in_peft() {
    let all = alphas(&json!({ "lora_alpha": 6 })).expect("fits");
    let changed = |pattern: &str| -> Vec<String> {
        let some = alphas(&json!({ "lora_alpha": 6, "alpha_pattern": { pattern: 12 } }));
        let some = some.expect("fits");
        let twice = |module: &&String| (some[*module] - 2.0 * all[*module]).abs() < 1e-12;
        all.keys().filter(twice).cloned().collect()
    };
    let one = all.keys().find(|module| module.ends_with(".attn1.to_q"));
    let one = one.expect("an attention's");
    let ends: Vec<String> = all
        .keys()
        .filter(|module| module.ends_with(".attn1.to_q"))
        .cloned()
        .collect();
    assert_eq!(changed("attn1.to_q"), ends);
    assert_eq!(changed(one), std::slice::from_ref(one));
    assert_eq!(changed(&format!("^{one}")), std::slice::from_ref(one));
    assert!(changed("^attn1.to_q").is_empty() && changed("n1.to_q").is_empty());
    // The first of several.
    let both = json!({ "lora_alpha": 6, "alpha_pattern": { "to_q": 12, one: 18 } });
    assert!((alphas(&both).expect("fits")[one] - 2.0 * all[one]).abs() < 1e-12);
}

#[test]
fn what_a_configuration_says_wrongly_is_refused_in_one_line() {
    for (config, says) in [
        (json!({ "lora_alpha": "6" }), "lora_alpha"),
        (json!({ "lora_alpha": 6, "use_rslora": 1 }), "use_rslora"),
        (json!({ "use_rslora": true }), "no lora_alpha"),
        (json!({ "alpha_pattern": [1] }), "alpha_pattern"),
        (json!({ "alpha_pattern": { "to_q": "6" } }), "alpha_pattern"),
        (
            json!({ "alpha_pattern": { ".*to_q": 6 } }),
            "regular expression",
        ),
        (
            json!({ "alpha_pattern": { "(to_q|to_k)": 6 } }),
            "regular expression",
        ),
    ] {
        let why = alphas(&config).expect_err("refused");
        assert!(
            why.contains("adapter_config.json") && why.contains(says) && !why.contains('\n'),
            "{config}: {why}"
        );
    }
}
