//! `info` of known priors, `--lora` and `export`.

mod program;

use std::path::{Path, PathBuf};

use priors::weights::{SafetensorsFile, Values, save_safetensors};
use program::{copy, mini, picture, refuses, said, save, text, works};
use reclair::priors;
use serde_json::Value;

/// A LoRA for mini in kohya's form, with a text encoder's key that is not used.
fn lora(folder: &Path) -> PathBuf {
    let tensor = |shape: &[usize], scale: f32| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|i| scale * ((i * 37 % 101) as f32 / 50.0 - 1.0))
            .collect();
        burn::tensor::TensorData::new(values, shape.to_vec())
    };
    let module =
        |name: &str| format!("lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_{name}");
    let mut values = Values::new();
    for name in ["to_q", "to_v", "to_out_0"] {
        values.insert(module(name) + ".lora_down.weight", tensor(&[2, 160], 0.3));
        values.insert(module(name) + ".lora_up.weight", tensor(&[160, 2], 0.3));
        values.insert(module(name) + ".alpha", tensor(&[], -4.0));
    }
    values.insert(
        "lora_te_text_model_encoder_layers_99_mlp_fc1.alpha".into(),
        tensor(&[], 1.0),
    );
    let path = folder.join("style.safetensors");
    save_safetensors(
        &path,
        &values,
        burn::tensor::DType::F32,
        &Default::default(),
    )
    .expect("saves");
    path
}

#[test]
fn info_prints_the_papers_table_from_configurations() {
    let json: Value = serde_json::from_slice(&works(&["info", "--prior", "sdxl", "--json"]).stdout)
        .expect("JSON");
    let row = &json["table3"];
    assert_eq!(
        (&row["base"], &row["total"]),
        (&2_567_463_684_u64.into(), &157_904_640.into())
    );
    assert_eq!(row["controlnet"]["paper"], 839_002_880);
    assert_eq!(row["controlnet"]["diffusers"], 1_251_014_160);
    assert_eq!(json["parameters"]["vae"], 83_653_863);
    assert_eq!(json["parameters"]["text_encoder"], 123_060_480);
    assert_eq!(json["parameters"]["text_encoder_2"], 694_659_840);
    let output = works(&["info", "--prior", "sd3"]);
    let table = String::from_utf8(output.stdout).expect("text");
    for count in [
        "2028328000",
        "80262144",
        "503987712",
        "538805760",
        "9437184",
        "83819683",
    ] {
        assert!(table.contains(count), "{count}: {table}");
    }
    let json: Value = serde_json::from_slice(&works(&["info", "--json"]).stdout).expect("JSON");
    assert!(json["table3"].is_null(), "mini is not in the paper");
}

#[test]
fn a_lora_changes_the_picture_as_its_exports_and_the_merged_prior_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let input = save(root, "in.png", &picture(64, 48));
    let style = lora(root);
    let run = |name: &str, more: &[&str]| {
        let out = root.join(name);
        let args = [
            &["restore", text(&input), "-o", text(&out), "--steps", "2"],
            more,
        ]
        .concat();
        let output = works(&args);
        (std::fs::read(&out).expect("written"), said(&output))
    };
    let half = format!("{}:0.5", text(&style));
    let (bare, _) = run("bare.png", &[]);
    let (styled, notes) = run("styled.png", &["--lora", &half]);
    assert!(
        notes.contains("9 of 10 keys matched, 1 of text encoders that this prior does not have"),
        "{notes}"
    );
    assert!(bare != styled, "the LoRA does nothing");
    let (none, _) = run("none.png", &["--lora", &format!("{}:0", text(&style))]);
    assert!(bare == none, "strength 0 changes the picture");
    let (twice, _) = run(
        "twice.png",
        &[
            "--lora",
            text(&style),
            "--lora",
            &format!("{}:-1", text(&style)),
        ],
    );
    assert!(bare != styled && twice != styled);
    for form in ["kohya", "diffusers", "peft"] {
        let out = root.join(form);
        works(&["export", "--lora", &half, "--form", form, "-o", text(&out)]);
        let (again, _) = run(&format!("{form}.png"), &["--lora", text(&out)]);
        assert!(again == styled, "{form}");
    }
    // An adapter's folder is a place for a LoRA too.
    let own = root.join("adapter/pytorch_lora_weights.safetensors");
    std::fs::create_dir_all(own.parent().expect("a folder")).expect("makes the folder");
    std::fs::copy(root.join("diffusers"), own).expect("copies");
    let out = root.join("own");
    works(&[
        "export",
        "--adapter",
        text(&root.join("adapter")),
        "--form",
        "kohya",
        "-o",
        text(&out),
    ]);
    assert!(
        run("own.png", &["--lora", text(&out)]).0 == styled,
        "of the adapter"
    );
    let merged = root.join("merged");
    works(&["export", "--lora", &half, "--merged", "-o", text(&merged)]);
    let adapter = mini().join("adapter");
    let (again, _) = run(
        "merged.png",
        &["--prior", text(&merged), "--adapter", text(&adapter)],
    );
    assert!(again == styled, "the merged prior gives another picture");
    let unet = merged.join("unet/diffusion_pytorch_model.safetensors");
    let unet = SafetensorsFile::open(&unet).expect("opens");
    assert_eq!(
        unet.dtype("conv_in.weight"),
        Some(burn::tensor::DType::F16),
        "stored as before"
    );
    let line = refuses(&["export", "--lora", &half, "--merged", "-o", text(&merged)]);
    assert!(line.contains("exists"), "{line}");
}

#[test]
fn what_export_and_lora_cannot_do_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let input = save(root, "in.png", &picture(16, 16));
    let out = root.join("out.png");
    let restore =
        |more: &[&str]| refuses(&[&["restore", text(&input), "-o", text(&out)], more].concat());
    let unet = mini().join("prior/unet/diffusion_pytorch_model.safetensors");
    let line = restore(&["--lora", text(&unet)]);
    assert!(line.contains("holds no LoRA of this prior"), "{line}");
    assert!(restore(&["--lora", text(&root.join("gone"))]).contains("gone"));
    let line = restore(&["--prior", "sdxl"]);
    assert!(line.contains("is not embedded"), "{line}");
    let line = restore(&["--prior", text(&unet)]);
    assert!(
        line.contains("a prior of mini's shape; give its whole folder"),
        "{line}"
    );
    let style = lora(root);
    let line = refuses(&[
        "export",
        "--prior",
        "sd3",
        "--lora",
        text(&style),
        "--form",
        "kohya",
        "-o",
        text(&out),
    ]);
    assert!(line.contains("0 of 10 keys matched"), "{line}");
    let two = [
        "export",
        "--lora",
        text(&style),
        "--lora",
        text(&style),
        "--form",
        "peft",
        "-o",
        text(&out),
    ];
    assert!(refuses(&two).contains("do not become one"));
}

/// A prior's folder whose weights are cut off at any place, or whose configuration is absurd, is an error.
#[test]
fn a_broken_prior_is_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let input = save(root, "in.png", &picture(16, 16));
    let out = root.join("out.png");
    let prior = root.join("prior");
    copy(&mini().join("prior"), &prior);
    let unet = prior.join("unet/diffusion_pytorch_model.safetensors");
    let whole = std::fs::read(&unet).expect("reads");
    let args = [
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--prior",
        text(&prior),
    ];
    for keep in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&unet, &whole[..keep]).expect("writes");
        let line = refuses(&args);
        assert!(
            line.contains("unet") && line.contains("safetensors"),
            "{line}"
        );
    }
    std::fs::write(&unet, &whole).expect("writes");
    let config = prior.join("unet/config.json");
    let good = std::fs::read_to_string(&config).expect("reads");
    let mut json: Value = serde_json::from_str(&good).expect("JSON");
    json["block_out_channels"] = serde_json::json!([1_u64 << 60, 96, 160]);
    std::fs::write(&config, json.to_string()).expect("writes");
    refuses(&args);
    refuses(&["info", "--prior", text(&prior)]);
    std::fs::write(&config, "[".repeat(100_000)).expect("writes");
    assert!(refuses(&args).contains("is not JSON"));
    assert!(!out.exists());
}

#[test]
fn a_prior_is_found_in_the_cache_by_its_name() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let snapshot = cache
        .path()
        .join("models--someone--mini/snapshots/0123abcd");
    copy(&mini().join("prior"), &snapshot);
    let info = |name: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_reclair"))
            .args(["info", "--json", "--prior", name])
            .env("HF_HUB_CACHE", cache.path())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .expect("the program starts")
    };
    let json: Value = serde_json::from_slice(&info("someone/mini").stdout).expect("JSON");
    let embedded: Value = serde_json::from_slice(&works(&["info", "--json"]).stdout).expect("JSON");
    assert_eq!(json["parameters"]["unet"], embedded["parameters"]["unet"]);
    let other = info("someone/else");
    let why = match cfg!(feature = "hub") {
        true => "HF_HUB_OFFLINE is set and Hugging Face's cache lacks this",
        false => "nothing in Hugging Face's cache",
    };
    assert!(!other.status.success() && said(&other).contains(why));
}

#[test]
fn info_counts_the_embedded_prior() {
    let json: Value = serde_json::from_slice(&works(&["info", "--json"]).stdout).expect("JSON");
    for part in ["unet", "vae", "text_encoder", "restoration_adapter", "lora"] {
        assert!(
            json["parameters"][part].as_u64().expect("a count") > 10_000,
            "{part}"
        );
    }
    assert!(!json["sites"].as_array().expect("a list").is_empty());
}
