//! `train` with stage `adapter` on tiny priors of SDXL's and SD3's shape: the result restores, cached encodings and accumulated
//! batches change nothing, a frozen prior is not copied.

mod priors_on_disk;
mod program;

use std::path::{Path, PathBuf};

use priors::weights::SafetensorsFile;
use priors_on_disk::{sd3, sdxl};
use program::{
    picture, refuses,
    runs::train_with_room_for,
    said, save, text,
    toy::{photos, weights},
    works,
};

const SDXL: &str = "[adapter]\n_class_name = \"UnetRestorationAdapter\"\nblock = \"D3\"\nafter = [0, 1, 2, 3, 4, 5]\n\
                    lq_channels = 4\nd_emb = 32\ngroups = 4\n";
const SD3: &str = "timesteps = \"scheduler\"\n[adapter]\n_class_name = \"DitRestorationAdapter\"\nafter = [0, 2]\nwidth = 16\n";
const TRAINED: &str = "adapter/restoration_adapter/diffusion_pytorch_model.safetensors";

/// Writes a run's configuration; `data` and `optimise` are further lines of these sections.
fn config(at: &Path, name: &str, adapter: &str, data: &str, optimise: &str) -> PathBuf {
    let toml = format!(
        "stage = \"adapter\"\nmodel = \"prior\"\nout = \"{name}\"\nstart = \"fresh\"\n\
         [data]\nimages = \"photos\"\nvalidation = \"photos\"\ncrop_px = 32\nnull_text = 0.5\n\
         degradations = [{{ preset = \"mild\", weight = 1.0 }}]\n{data}\n\
         [optimise]\nsteps = 3\nlr = 1e-3\ngradient = {{ cut = 40 }}\n{optimise}\n\
         [every]\nvalidate = 2\n[denoise]\nlq_target = 0.3\n{adapter}[lora]\nrank = 2\nalpha = 2.0\n"
    );
    let path = at.join(format!("{name}.toml"));
    std::fs::write(&path, toml).expect("writes");
    path
}

/// Loss and gradient norm of each step.
fn log(run: &Path) -> Vec<[f64; 2]> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).expect("a log");
    let lines = text
        .lines()
        .map(|line| -> serde_json::Value { serde_json::from_str(line).expect("a whole line") });
    let number = |line: &serde_json::Value, key: &str| line[key].as_f64();
    lines
        .filter_map(|line| Some([number(&line, "loss")?, number(&line, "gradient_norm")?]))
        .collect()
}

fn trains(prior: fn(&Path), adapter: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    prior(&at.join("prior"));
    let run = |name: &str, data: &str, optimise: &str| {
        let config = config(at, name, adapter, data, optimise);
        works(&["train", text(&config)]);
    };
    run("plain", "", "batch = 4");
    assert_eq!(log(&at.join("plain")).len(), 3);
    assert!(
        !at.join("plain/prior").exists(),
        "a frozen prior stays where it is"
    );
    assert!(!at.join("plain/text").exists(), "nothing asked for a cache");

    run("cached", "cache_text = true", "batch = 4");
    assert!(weights(at, "plain", TRAINED) == weights(at, "cached", TRAINED));
    let lora = "adapter/pytorch_lora_weights.safetensors";
    assert!(weights(at, "plain", lora) == weights(at, "cached", lora));
    // The empty prompt, the two captions (one of them in JSON), and sixteen descriptions of a degradation.
    let cached = std::fs::read_dir(at.join("cached/text")).expect("encodings");
    assert_eq!(cached.count(), 19);

    run("two", "", "batch = 2\naccumulate = 2");
    run("one", "", "batch = 1\naccumulate = 4");
    for other in ["two", "one"] {
        let (whole, parts) = (log(&at.join("plain")), log(&at.join(other)));
        for (step, (whole, parts)) in whole.iter().zip(&parts).enumerate() {
            for (a, b) in whole.iter().zip(parts) {
                // The steps after the first start from values that differ by rounding.
                let most = if step == 0 { 1e-5 } else { 1e-3 };
                assert!((a - b).abs() <= most * a, "{other}, step {step}: {a} {b}");
            }
        }
        let open = |run: &str| SafetensorsFile::open(&at.join(run).join(TRAINED)).expect("trained");
        let (whole, parts) = (open("plain"), open(other));
        let (mut wrong, mut all) = (0.0, 0.0);
        for name in whole.names() {
            let of = |file: &SafetensorsFile| -> Vec<f32> {
                let data = file.data(name).expect("a tensor");
                data.try_into_vec().expect("f32")
            };
            for (a, b) in of(&whole).into_iter().zip(of(&parts)) {
                wrong += f64::from(a - b).powi(2);
                all += f64::from(a).powi(2);
            }
        }
        assert!(wrong.sqrt() <= 1e-4 * all.sqrt(), "{other}: {wrong} {all}");
    }

    let input = save(at, "in.png", &picture(40, 24));
    let (out, prior, adapter) = (
        at.join("out.png"),
        at.join("prior"),
        at.join("plain/adapter"),
    );
    let fixed = ["restore", text(&input), "-o", text(&out), "--steps", "2"];
    let models = ["--prior", text(&prior), "--adapter", text(&adapter)];
    works(&[&fixed[..], &models].concat());
    assert!(out.is_file());
}

#[test]
fn an_adapter_of_the_shape_of_sdxl() {
    trains(sdxl, SDXL);
}

#[test]
fn an_adapter_of_the_shape_of_sd3() {
    trains(sd3, SD3);
}

#[test]
fn what_sdxl_is_told_about_sizes_matters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    sdxl(&at.join("prior"));
    // A fresh network's ResNets add nothing, so that the first loss does not know of it; the adapters' embeddings do.
    let trained = |name: &str, sizes: &str| {
        let adapter = format!("sizes = \"{sizes}\"\n{SDXL}");
        let config = config(at, name, &adapter, "", "batch = 1");
        works(&["train", text(&config)]);
        weights(at, name, TRAINED)
    };
    assert!(trained("photo", "photo") != trained("crop", "crop"));
}

#[test]
fn a_text_encoder_that_is_given_is_read_in_place_of_the_priors_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let prior = at.join("prior");
    sdxl(&prior);
    let trained = |name: &str, given: &str| {
        // Fresh adapters say nothing at first, so that only their gradients know the text.
        let config = config(at, name, SDXL, "", "batch = 1");
        let toml = std::fs::read_to_string(&config).expect("written");
        std::fs::write(&config, format!("{given}\n{toml}")).expect("writes");
        works(&["train", text(&config)]);
        weights(at, name, TRAINED)
    };
    let own = trained("own", "");
    let elsewhere = at.join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        let from = prior.join("text_encoder_2").join(file);
        std::fs::copy(&from, elsewhere.join(file)).expect("copies");
    }
    let spoilt = prior.join("text_encoder_2/model.safetensors");
    let mut bytes = std::fs::read(&spoilt).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle..].rotate_left(64);
    std::fs::write(&spoilt, bytes).expect("writes");
    assert!(trained("spoilt", "") != own);
    assert!(trained("given", "text_encoder_models = [\"elsewhere\"]") == own);
}

#[test]
fn latents_are_read_once_and_whatever_is_there_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    sdxl(&at.join("prior"));
    let run = |name: &str, data: &str| config(at, name, SDXL, data, "batch = 2");
    works(&["train", text(&run("plain", ""))]);
    let first = run("first", "cache_latents = 3");
    let plan = works(&["train", text(&first), "--plan", "--json"]).stdout;
    let plan: serde_json::Value = serde_json::from_slice(&plan).expect("JSON");
    let announced = plan["plan"]["latent_cache_bytes"].as_u64();
    works(&["train", text(&first)]);
    let place = |name: &str| {
        let found = std::fs::read_dir(at.join(name).join("latents")).expect("kept");
        let found: Vec<_> = found.map(|entry| entry.expect("an entry").path()).collect();
        assert_eq!(found.len(), 1, "one key");
        found[0].clone()
    };
    let kept = place("first");
    let files = || -> Vec<PathBuf> {
        let found = std::fs::read_dir(&kept).expect("kept");
        let mut files: Vec<_> = found.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    };
    assert_eq!(files().len(), 3);
    // Three latents of four channels, of half the crop.
    let values: u64 = 3 * 4 * 16 * 16;
    assert_eq!(announced, Some(3 * 4 * values));
    let file = SafetensorsFile::open(&files()[0]).expect("latents");
    assert_eq!(file.shape("hq"), Some(&[4, 16, 16][..]));
    // The first pass sees what a run without sees, up to the rounding of a batch; the second comes back to the first sample.
    let (plain, cached) = (log(&at.join("plain")), log(&at.join("first")));
    assert!((plain[0][0] - cached[0][0]).abs() <= 1e-5 * plain[0][0]);
    assert!((plain[2][0] - cached[2][0]).abs() > 1e-4 * plain[2][0]);
    // A run that finds two of the three, and one that finds all and no photograph that could be opened.
    for (name, found) in [("second", 2), ("third", 3)] {
        let next = run(name, "cache_latents = 3");
        let to = at
            .join(name)
            .join("latents")
            .join(kept.file_name().expect("a key"));
        std::fs::create_dir_all(&to).expect("makes the folder");
        for file in &files()[..found] {
            std::fs::copy(file, to.join(file.file_name().expect("a name"))).expect("copies");
        }
        works(&["train", text(&next)]);
        assert_eq!(place(name), to);
        assert!(
            weights(at, "first", TRAINED) == weights(at, name, TRAINED),
            "{name}"
        );
    }
    // Another key where samples are drawn otherwise.
    let other = run("other", "cache_latents = 3\nreduce = [1.0, 2.0]");
    works(&["train", text(&other)]);
    assert_ne!(place("other").file_name(), kept.file_name());
    let damaged = run("damaged", "cache_latents = 3");
    let to = at
        .join("damaged/latents")
        .join(kept.file_name().expect("a key"));
    std::fs::create_dir_all(&to).expect("makes the folder");
    let wrong = at.join("prior/unet/diffusion_pytorch_model.safetensors");
    std::fs::copy(wrong, to.join("00000000.safetensors")).expect("copies");
    let why = refuses(&["train", text(&damaged)]);
    assert!(
        why.contains("holds no sample's latents; delete it"),
        "{why}"
    );
}

#[test]
fn a_cached_encoding_that_is_none_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    sdxl(&at.join("prior"));
    let run = |name: &str| config(at, name, SDXL, "cache_text = true", "batch = 1");
    works(&["train", text(&run("first"))]);
    let second = run("second");
    let place = at.join("second/text");
    std::fs::create_dir_all(&place).expect("makes the folder");
    for entry in std::fs::read_dir(at.join("first/text")).expect("encodings") {
        let name = entry.expect("an entry").file_name();
        std::fs::write(place.join(name), b"broken").expect("writes");
    }
    let why = refuses(&["train", text(&second)]);
    assert!(why.contains("second/text"), "{why}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_whole_encodings_and_the_plan_says_their_size() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    sdxl(&at.join("prior"));
    works(&["train", text(&config(at, "plain", SDXL, "", "batch = 1"))]);
    let full = config(at, "full", SDXL, "cache_text = true", "batch = 1");
    let plan = works(&["train", text(&full), "--plan", "--json"]).stdout;
    let plan: serde_json::Value = serde_json::from_slice(&plan).expect("JSON");
    let announced = plan["plan"]["text_cache_bytes"].as_u64().expect("a number");
    let said_plan = works(&["train", text(&full), "--plan"]).stdout;
    let said_plan = String::from_utf8(said_plan).expect("UTF-8");
    assert!(
        said_plan.contains("encoded prompts take 0.000 GB on disk"),
        "{said_plan}"
    );
    // Each encoding has 77 tokens of 40 values and a pooled one.
    let place = at.join("full/text");
    let output = train_with_room_for(&full, 8 << 10);
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: "));
    let error = error.expect("an error");
    assert!(
        error.contains("full/text") && error.contains("File too large"),
        "{error}"
    );
    assert_eq!(
        std::fs::read_dir(&place).expect("made").count(),
        0,
        "nothing half written"
    );
    assert!(!at.join("full/checkpoint.safetensors").exists());
    // With room again it goes on, and ends as without a cache.
    works(&["train", text(&full)]);
    assert!(weights(at, "plain", TRAINED) == weights(at, "full", TRAINED));
    let files: Vec<u64> = std::fs::read_dir(&place)
        .expect("encodings")
        .map(|file| file.expect("an entry").metadata().expect("metadata").len())
        .collect();
    assert_eq!(files.len(), 19);
    let blocks: u64 = files.iter().map(|bytes| bytes.next_multiple_of(4096)).sum();
    assert_eq!(announced, blocks, "what the plan announced");
}
