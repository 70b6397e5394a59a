//! `reclair.json` of an adapter's folder: written by `train`, checked by `restore`, shown by `info`.

mod priors_on_disk;
mod program;

use std::path::Path;

use priors::weights::{SafetensorsFile, Values, save_safetensors};
use priors_on_disk::sdxl;
use program::{picture, refuses, said, save, text, toy::photos, works};
use reclair::priors;
use serde_json::{Value, json};

const CONFIG: &str = "stage = \"adapter\"\nmodel = \"prior\"\nout = \"run\"\nstart = \"fresh\"\nlicence = \"CC-BY-4.0\"\n\
    [data]\nimages = \"photos\"\ncrop_px = 32\ndegradations = [{ preset = \"mild\", weight = 1.0 }]\n\
    [optimise]\nsteps = 2\nbatch = 1\nlr = 1e-3\n\
    [adapter]\n_class_name = \"UnetRestorationAdapter\"\nblock = \"D3\"\nafter = [0, 5]\nlq_channels = 4\nd_emb = 32\ngroups = 4\n";

/// Adds 1 to the values in the middle of one of the network's tensors.
fn change(prior: &Path) {
    let path = prior.join("unet/diffusion_pytorch_model.safetensors");
    let file = SafetensorsFile::open(&path).expect("opens");
    let tensor = |name: &String| (name.clone(), file.data(name).expect("floats"));
    let mut values: Values = file.names().iter().map(tensor).collect();
    let dtype = file.dtype("conv_out.weight").expect("there");
    drop(file);
    let data = values.get_mut("conv_out.weight").expect("there");
    let changed: Vec<f32> = data.clone().convert::<f32>().try_into_vec().expect("f32");
    let changed = changed.into_iter().map(|v| v + 1.0).collect::<Vec<_>>();
    *data = burn::tensor::TensorData::new(changed, data.shape().clone());
    save_safetensors(&path, &values, dtype, &Default::default()).expect("saves");
}

#[test]
fn an_adapter_knows_its_prior() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let (prior, adapter) = (at.join("prior"), at.join("run/adapter"));
    sdxl(&prior);
    std::fs::write(at.join("run.toml"), CONFIG).expect("writes");
    works(&["train", text(&at.join("run.toml"))]);
    let place = adapter.join("reclair.json");
    let written = std::fs::read_to_string(&place).expect("written");
    let about: Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!(about["prior"]["name"], "prior");
    assert_eq!(about["prior"]["network"], "unet");
    assert_eq!(about["licence"], "CC-BY-4.0");
    assert_eq!(about["training"]["stage"], "adapter");
    assert_eq!(about["training"]["steps"], 2);
    let run: Value =
        serde_json::from_slice(&std::fs::read(at.join("run/run.json")).expect("written"))
            .expect("JSON");
    assert_eq!(about["training"], run);

    let input = save(at, "in.png", &picture(24, 24));
    let out = at.join("out.png");
    let args = |prior: &Path| {
        [
            "restore",
            text(&input),
            "-o",
            text(&out),
            "--steps",
            "1",
            "--prior",
            text(prior),
            "--adapter",
            text(&adapter),
        ]
        .map(str::to_owned)
    };
    let notes = |prior: &Path| {
        let args = args(prior);
        said(&works(&args.each_ref().map(String::as_str)))
    };
    assert!(
        !notes(&prior).contains("reclair.json"),
        "it is the same prior"
    );
    for dtype in ["f32", "bf16"] {
        let other = at.join(dtype);
        works(&[
            "convert",
            text(&prior),
            "-o",
            text(&other),
            "--dtype",
            dtype,
        ]);
        assert!(
            !notes(&other).contains("reclair.json"),
            "{dtype} is another format of it"
        );
    }
    let other = at.join("other");
    program::copy(&prior, &other);
    change(&other);
    let said = notes(&other);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("reclair.json"))
        .collect();
    let hash = about["prior"]["sha256"][0].as_str().expect("a hash");
    assert!(
        lines.len() == 1
            && lines[0].contains("was trained for prior (")
            && lines[0].contains(&hash[..12]),
        "{said}"
    );

    let info = [
        "info",
        "--json",
        "--prior",
        text(&prior),
        "--adapter",
        text(&adapter),
    ];
    let shown: Value = serde_json::from_slice(&works(&info).stdout).expect("JSON");
    assert_eq!(shown["adapter"], about);
    let info = ["info", "--prior", text(&prior), "--adapter", text(&adapter)];
    let shown = String::from_utf8(works(&info).stdout).expect("text");
    assert!(
        shown.contains("trained for prior; licence: CC-BY-4.0"),
        "{shown}"
    );

    let mut more = about.clone();
    more["prior"]["sha256"] = json!(["0123"]);
    let mut none = about.clone();
    none["prior"]["sha256"] = json!([]);
    let mut key = about.clone();
    key["prior"]["hash"] = json!("stray");
    for bad in [
        more.to_string(),
        none.to_string(),
        key.to_string(),
        "[]".into(),
        "{}".into(),
        "{\"pri".into(),
        format!("{{\"{}\": 1}}", "k".repeat(10_000)),
    ] {
        std::fs::write(&place, &bad).expect("writes");
        let args = args(&prior);
        let line = refuses(&args.each_ref().map(String::as_str));
        assert!(line.contains("reclair.json") && line.len() < 600, "{line}");
    }
    std::fs::remove_file(&place).expect("removes it");
    assert!(
        !notes(&prior).contains("reclair.json"),
        "nothing is known of it"
    );
}

#[test]
fn minis_adapter_belongs_to_mini() {
    let info = works(&["info", "--json"]);
    let about: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(about["adapter"]["prior"]["name"], "mini");
    assert_eq!(about["adapter"]["licence"], "CC-BY-SA-4.0");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(24, 24));
    let out = folder.path().join("out.png");
    let output = works(&["restore", text(&input), "-o", text(&out)]);
    assert!(!said(&output).contains("reclair.json"), "{}", said(&output));
}
