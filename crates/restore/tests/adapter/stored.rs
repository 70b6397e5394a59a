//! Adapters and their LoRA in files.

use burn::tensor::{DType, Device, TensorData};
use priors::{
    folder::Folder,
    weights::{Precision, SafetensorsFile, Values, Weights, save_safetensors},
};
use restore::{
    adapter::{AdapterFolder, BlockKind, LORA_FILE, RestorationAdapter, Scale},
    lora::{Lora, LoraConfig, self_attention_targets},
};

use crate::{
    bits,
    unet::{config, run, unet},
};

#[test]
fn a_stored_adapter_is_the_same_and_a_wrong_file_is_named() {
    let device = Device::flex();
    let unet = unet(&Weights::formula(&device));
    let config = config(BlockKind::D3, vec![0, 4]);
    let seeded = Weights::seeded(5, &device);
    RestorationAdapter::new(config.clone(), &unet, &seeded).expect("fits");
    let mut values: Values = seeded.made();
    // Not zero, so that the adapter does something.
    for (name, value) in &mut values {
        if name.contains("zero_linear.weight") {
            *value = TensorData::new(vec![0.01_f32; value.num_elements()], value.shape().clone());
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("adapter.safetensors");
    let open = || {
        Weights::from_files(std::slice::from_ref(&path), Precision::Stored, &device).expect("opens")
    };
    let run_from = |w: &Weights| {
        let adapter = RestorationAdapter::new(config.clone(), &unet, w)?;
        w.finish()?;
        Ok::<_, restore::Error>(bits(run(&unet, &adapter, &Scale::All(1.0))))
    };
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    let before = run_from(&Weights::from_values(values.clone(), &device)).expect("runs");
    assert!(run_from(&open()).expect("runs") == before);

    let name = values.keys().next().expect("some").clone();
    let taken = values.remove(&name).expect("there");
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    let why = run_from(&open()).expect_err("one is missing").to_string();
    assert!(why.contains(&name) && why.contains("missing"), "{why}");
    values.insert(name, taken.clone());
    values.insert("stray".into(), taken);
    save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
    let why = run_from(&open()).expect_err("one is unused").to_string();
    assert!(why.contains("stray"), "{why}");
    assert_eq!(
        SafetensorsFile::open(&path)
            .expect("opens")
            .metadata("format"),
        Some("pt")
    );
}

#[test]
fn a_damaged_lora_of_an_adapter_is_refused_in_one_line() {
    let device = Device::flex();
    let place = tempfile::tempdir().expect("a temporary folder");
    let blank = Weights::blank(&device);
    unet(&blank);
    let prior = unet(&Weights::formula(&device));
    let (config, w) = (config(BlockKind::D1, vec![0]), Weights::seeded(3, &device));
    RestorationAdapter::new(config.clone(), &prior, &w).expect("fits");
    let lora = LoraConfig {
        rank: 4,
        alpha: 2.0,
    };
    let targets = self_attention_targets(&blank.shapes());
    let lora_w = Weights::seeded(4, &device);
    Lora::new(&lora, &targets, &lora_w.at("unet")).expect("fits");
    let (values, mut good) = (w.made(), lora_w.made());
    for data in good.values_mut() {
        let n = data.num_elements();
        *data = TensorData::new(vec![0.5_f32; n], data.shape().clone());
    }
    AdapterFolder::save(place.path(), &config, &values, None, &good, DType::F32).expect("saves");
    let open = |values: &Values, about: &str| {
        let metadata = [("lora_adapter_metadata".to_owned(), about.to_owned())];
        let path = place.path().join(LORA_FILE);
        save_safetensors(&path, values, DType::F32, &metadata.into()).expect("saves");
        let folder = Folder::Disk(place.path().to_owned());
        AdapterFolder::open(&folder, &prior, Precision::F32, &device)
    };
    let scale = |about: &str| {
        let lora = open(&good, about).expect("fits").lora.expect("there");
        let (name, delta) = lora.deltas().pop_first().expect("some");
        (name, delta.into_data())
    };
    // alpha / sqrt(r) of rank 4 is twice alpha / r.
    let stabilised = r#"{"unet.lora_alpha": 2, "unet.use_rslora": true}"#;
    assert_eq!(scale(stabilised), scale(r#"{"unet.lora_alpha": 4}"#));
    assert_eq!(scale("{}"), scale(r#"{"unet.lora_alpha": 4}"#));
    let changed = |shape: &[usize]| {
        let n = shape.iter().product();
        let data = TensorData::new(vec![0.5_f32; n], shape.to_vec());
        let mut values = good.clone();
        for (_, value) in values
            .iter_mut()
            .filter(|(name, _)| name.ends_with("lora_A.weight"))
        {
            *value = data.clone();
        }
        values
    };
    let other = Values::from([("a".to_owned(), TensorData::new(vec![0.5_f32], [1]))]);
    for (values, about, says) in [
        (changed(&[]), "{}", "no matrix"),
        (changed(&[0, 16]), "{}", "no matrix"),
        (changed(&[4]), "{}", "no matrix"),
        (other, "{}", "no LoRA"),
        (good.clone(), r#"{"unet.lora_alpha":"#, "is not JSON"),
        (good.clone(), r#"{"unet.lora_alpha": "2"}"#, "lora_alpha"),
        (
            good.clone(),
            r#"{"unet.alpha_pattern": {"to_q": 2}}"#,
            "different alphas",
        ),
    ] {
        let why = open(&values, about).expect_err("refused").to_string();
        assert!(
            why.contains(LORA_FILE) && why.contains(says) && !why.contains('\n'),
            "{about}: {why}"
        );
    }
}
