//! What a training run survives: being killed in steps, in a checkpoint's write and while the result is written, a full disk,
//! numbers that go wrong; and what it does not go on with. Being asked to stop is in `stop.rs`.

#![cfg(unix)]

mod program;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use pixels::random::stream;
use priors::weights::SafetensorsFile;
use program::{
    refuses,
    runs::{VAE, edit, half_written, is_tidy, lines, log, start, toy, train_with_room_for, until},
    said, text,
    toy::{config, for_transformer, transformer, weights},
    works,
};
use rand::RngExt;

/// Whether a file that is being written is a checkpoint.
fn is_checkpoint(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.windows(8).take(4096).any(|part| part == b"average/")
}

/// The steps of a run that its log has and its checkpoint has not.
fn beyond_checkpoint(run: &Path) -> u64 {
    let file = SafetensorsFile::open(&run.join("checkpoint.safetensors"));
    let kept = file
        .ok()
        .and_then(|file| file.metadata("step")?.parse().ok());
    // The last line of a killed run may be torn.
    let log = std::fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let last = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["step"].as_u64())
        .max();
    last.unwrap_or(0).saturating_sub(kept.unwrap_or(0))
}

/// Kills the run of `config` at moments drawn from a seed, every second time in a checkpoint's write, until that hit
/// `writes` times and other moments `others` times; returns the most steps that a kill made it repeat.
fn kill(config: &Path, run: &Path, writes: usize, others: usize) -> u64 {
    let mut rng = stream(6, "moments");
    let (mut in_write, mut elsewhere, mut repeated) = (0, 0, 0);
    for round in 0..60 {
        if in_write >= writes && elsewhere >= others {
            return repeated;
        }
        let before = lines(run);
        let more = rng.random_range(0..5);
        let mut child = start(config);
        // Every fourth time while the program still loads; a resumed run shortens its log before it goes on.
        let mut runs = round % 4 == 2 || until(&mut child, || lines(run) > before + more);
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(rng.random_range(0..30_000)));
        } else {
            let writes = || half_written(run).iter().any(|path| is_checkpoint(path));
            runs = runs && until(&mut child, writes);
        }
        child.kill().expect("killed");
        let status = child.wait().expect("ended");
        assert!(runs || status.success(), "it fails by itself");
        if status.success() {
            // On a busy machine it may come to its end unseen: from the start again.
            std::fs::remove_dir_all(run).expect("removes");
            (in_write, elsewhere, repeated) = (0, 0, 0);
            continue;
        }
        repeated = repeated.max(beyond_checkpoint(run));
        if half_written(run).iter().any(|path| is_checkpoint(path)) {
            in_write += 1;
        } else {
            elsewhere += 1;
        }
    }
    panic!("killed in {in_write} writes and {elsewhere} other moments of sixty");
}

#[test]
fn a_killed_and_resumed_run_ends_with_the_same_bytes() {
    const STEPS: usize = 400;
    let (folder, model) = toy();
    let at = folder.path();
    let whole = config(at, "whole", "vae", &model, STEPS, "");
    works(&["train", text(&whole)]);
    is_tidy(&at.join("whole"), STEPS as u64);
    let killed = config(at, "killed", "vae", &model, STEPS, "");
    let run = at.join("killed");
    kill(&killed, &run, 2, 6);
    assert!(!run.join(VAE).exists(), "it was killed before its end");
    works(&["train", text(&killed), "--resume"]);
    assert!(weights(at, "whole", VAE) == weights(at, "killed", VAE));
    is_tidy(&run, STEPS as u64);
    // The optimiser, the average and what the guard remembers, too.
    let file = "checkpoint.safetensors";
    assert!(weights(at, "whole", file) == weights(at, "killed", file));
    let losses = |name: &str| -> Vec<_> {
        let line =
            |line: serde_json::Value| (line["loss"].clone(), line["validation_psnr"].clone());
        log(&at.join(name)).into_iter().map(line).collect()
    };
    assert_eq!(losses("whole"), losses("killed"));
}

/// Kills a run and checks that it ends with the bytes of one that was not; `config` makes one of a name, and `files` is what
/// it writes. Returns the most steps that a kill made it repeat.
fn killed_ends_as_whole(
    at: &Path,
    stage: &str,
    config: &dyn Fn(&str) -> PathBuf,
    steps: usize,
    files: &[&str],
) -> u64 {
    let [whole, killed] = ["whole", "killed"].map(|name| format!("{stage}-{name}"));
    works(&["train", text(&config(&whole))]);
    let path = config(&killed);
    let repeated = kill(&path, &at.join(&killed), 1, 2);
    let run = at.join(&killed);
    assert!(files.iter().all(|file| !run.join(file).exists()));
    kill_in_export(&path, &run, &at.join(&whole), files);
    works(&["train", text(&path), "--resume"]);
    for file in [files, &["checkpoint.safetensors", "run.json"]].concat() {
        assert!(
            weights(at, &whole, file) == weights(at, &killed, file),
            "{stage}: {file}"
        );
    }
    is_tidy(&run, steps as u64);
    repeated
}

/// Lets the run come to its end and kills it while the result is written, until that hit the writing of `files` twice. What is
/// there then is whole.
fn kill_in_export(config: &Path, run: &Path, whole: &Path, files: &[&str]) {
    let there = || files.iter().filter(|file| run.join(file).exists()).count();
    let mut hits = 0;
    for _ in 0..60 {
        if hits == 2 {
            return;
        }
        if there() == files.len() {
            files
                .iter()
                .for_each(|file| std::fs::remove_file(run.join(file)).expect("removes"));
        }
        let before = there();
        let mut child = start(config);
        let writes = until(&mut child, || {
            there() > before
                || ["prior", "adapter"]
                    .iter()
                    .any(|folder| !in_folders(run, folder).is_empty())
        });
        let _ = child.kill();
        let killed = !child.wait().expect("ended").success();
        assert!(writes || !killed, "it fails by itself");
        for file in files {
            let (now, then) = [run, whole]
                .map(|run| std::fs::read(run.join(file)).ok())
                .into();
            assert!(now.is_none() || now == then, "{file} is not whole");
        }
        hits += usize::from(killed && there() < files.len());
    }
    panic!("killed {hits} times of 60 while the result was written");
}

/// The files that are being written below a folder of the run.
fn in_folders(run: &Path, folder: &str) -> Vec<PathBuf> {
    let parts = std::fs::read_dir(run.join(folder)).into_iter().flatten();
    parts
        .filter_map(|part| Some(part.ok()?.path()))
        .flat_map(|part| half_written(&part))
        .collect()
}

#[test]
fn a_killed_run_of_prior_and_adapter_ends_with_the_same_bytes() {
    let (folder, model) = toy();
    let at = folder.path();
    let vae = config(at, "vae", "vae", &model, 2, "");
    works(&["train", text(&vae)]);
    let adapter = "adapter/restoration_adapter/diffusion_pytorch_model.safetensors";
    let files = [
        "prior/unet/diffusion_pytorch_model.safetensors",
        "prior/text_encoder/model.safetensors",
        adapter,
    ];
    let prior = at.join("vae/prior");
    let joint = |name: &str| config(at, name, "joint", &prior, 150, "");
    killed_ends_as_whole(at, "joint", &joint, 150, &files);
    let files = [adapter, "adapter/pytorch_lora_weights.safetensors"];
    let prior = at.join("joint-whole/prior");
    // Steps between two checkpoints are made, and logged, again.
    let adapter = |name: &str| {
        let path = config(at, name, "adapter", &prior, 200, "gradient = { cut = 4 }");
        edit(&path, "checkpoint = 1", "checkpoint = 7");
        let toml = std::fs::read_to_string(&path).expect("written");
        std::fs::write(&path, toml + "[lora]\nrank = 2\nalpha = 2.0\n").expect("writes");
        path
    };
    let repeated = killed_ends_as_whole(at, "adapter", &adapter, 200, &files);
    assert!(repeated > 1, "no kill between two checkpoints");
}

#[test]
fn a_killed_run_of_a_transformer_that_accumulates_ends_with_the_same_bytes() {
    let (folder, model) = toy();
    let at = folder.path();
    let vae = config(at, "vae", "vae", &model, 2, "");
    works(&["train", text(&vae)]);
    transformer(&model);
    let joint = |name: &str| {
        let path = config(at, name, "joint", &model, 150, "accumulate = 2");
        edit(&path, "checkpoint = 1", "checkpoint = 5");
        for_transformer(&path, "vae_model = \"vae/prior/vae\"");
        path
    };
    let files = [
        "prior/transformer/diffusion_pytorch_model.safetensors",
        "prior/text_encoder/model.safetensors",
        "adapter/restoration_adapter/diffusion_pytorch_model.safetensors",
    ];
    let repeated = killed_ends_as_whole(at, "joint", &joint, 150, &files);
    assert!(repeated > 1, "no kill between two checkpoints");
    let images = log(&at.join("joint-whole"))
        .iter()
        .filter_map(|line| line["images"].as_u64())
        .max();
    assert_eq!(images, Some(150 * 2 * 2), "two batches of two a step");
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let (folder, model) = toy();
    let at = folder.path();
    let whole = config(at, "whole", "vae", &model, 40, "");
    works(&["train", text(&whole)]);
    let size = weights(at, "whole", "checkpoint.safetensors").len() as u64;
    let full = config(at, "full", "vae", &model, 40, "");
    let run = at.join("full");
    let fails = || {
        let output = train_with_room_for(&full, size / 2);
        let said = said(&output);
        assert!(!output.status.success(), "{said}");
        let error = said.lines().find(|line| line.starts_with("error: "));
        let error = error.expect("an error");
        assert!(error.contains("checkpoint.safetensors") && error.contains("File too large"));
        assert_eq!(half_written(&run), Vec::<PathBuf>::new());
    };
    fails();
    assert!(!run.join("checkpoint.safetensors").exists());
    let mut child = start(&full);
    assert!(until(&mut child, || lines(&run) >= 8));
    child.kill().expect("killed");
    child.wait().expect("ended");
    let before = weights(at, "full", "checkpoint.safetensors");
    fails();
    assert!(before == weights(at, "full", "checkpoint.safetensors"));
    works(&["train", text(&full)]);
    assert!(weights(at, "whole", VAE) == weights(at, "full", VAE));
}

#[test]
fn numbers_that_go_wrong_stop_the_run_or_are_skipped_and_recorded() {
    let (folder, model) = toy();
    let at = folder.path();
    // A rate that throws the weights away at the first step.
    let wild = config(at, "wild", "vae", &model, 30, "");
    edit(&wild, "lr = 1e-3", "lr = 1e38");
    let line = refuses(&["train", text(&wild)]);
    assert!(
        line.contains("no numbers") && line.contains("[guard]"),
        "{line}"
    );
    let record = log(&at.join("wild"));
    let last = record.last().expect("a line");
    assert!(
        last["stopped"]
            .as_str()
            .expect("why")
            .contains("no numbers")
    );
    assert!(at.join("wild/checkpoint.safetensors").is_file());
    // The same run may pass over such steps, but not for ever.
    edit(
        &wild,
        "[every]",
        "[guard]\naction = \"skip\"\npatience = 3\n[every]",
    );
    let line = refuses(&["train", text(&wild)]);
    assert!(line.contains("in a row"), "{line}");
    let skipped = |run: &str| -> usize {
        let log = log(&at.join(run));
        log.iter()
            .filter(|line| line["skipped"].is_string())
            .count()
    };
    assert_eq!(skipped("wild"), 3);
    // A spike is here what is above the median of three by anything at all. Only losses that are not enter the median, so
    // that it falls and most steps are skipped: exactly those that the log says should be.
    let spiky = config(at, "spiky", "vae", &model, 60, "");
    let guard = "[guard]\naction = \"skip\"\nspike = 1.000001\nwindow = 3\npatience = 60\n[every]";
    edit(&spiky, "[every]", guard);
    works(&["train", text(&spiky)]);
    let plain = config(at, "plain", "vae", &model, 60, "");
    works(&["train", text(&plain)]);
    let steps = log(&at.join("spiky"));
    let step = |line: &serde_json::Value| line["step"].as_u64().expect("a step");
    let said: Vec<u64> = steps
        .iter()
        .filter(|line| line["skipped"].is_string())
        .map(step)
        .collect();
    let (mut sound, mut wanted) = (Vec::new(), Vec::new());
    for line in steps.iter().filter(|line| line["loss"].is_number()) {
        let loss = line["loss"].as_f64().expect("a loss");
        let mut last: Vec<f64> = sound.iter().rev().take(3).copied().collect();
        last.sort_by(f64::total_cmp);
        if last.len() == 3 && loss > 1.000_001 * last[1] {
            wanted.push(step(line));
        } else {
            sound.push(loss);
        }
    }
    assert_eq!(said, wanted);
    assert!(
        said.len() >= 5 && sound.len() >= 5,
        "{} skipped",
        said.len()
    );
    assert_eq!(skipped("plain"), 0);
    assert!(weights(at, "spiky", VAE) != weights(at, "plain", VAE));
    let page = std::fs::read_to_string(at.join("spiky/report.html")).expect("a report");
    assert!(page.contains("times the median"));
}

#[test]
fn changed_pictures_are_not_gone_on_with() {
    let (folder, model) = toy();
    let at = folder.path();
    let run = config(at, "run", "vae", &model, 2, "");
    works(&["train", text(&run)]);
    std::fs::write(at.join("photos/0.txt"), "another caption").expect("writes");
    assert!(refuses(&["train", text(&run)]).contains("other pictures or captions"));
}

/// Weights of which every value is a little different, as after some training.
fn trained_on(file: &[u8]) -> Vec<u8> {
    let header = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut other = file.to_vec();
    let values = other[header..].iter_mut().step_by(4);
    values.for_each(|byte| *byte ^= 1);
    other
}

#[test]
fn another_model_or_adapter_is_not_gone_on_with() {
    let (folder, model) = toy();
    let at = folder.path();
    let vae = config(at, "vae", "vae", &model, 2, "");
    works(&["train", text(&vae)]);
    let prior = at.join("vae/prior");
    let joint = config(at, "joint", "joint", &prior, 2, "");
    works(&["train", text(&joint)]);
    let first = config(at, "first", "adapter", &at.join("joint/prior"), 2, "");
    works(&["train", text(&first)]);
    let run = config(at, "run", "adapter", &at.join("joint/prior"), 2, "");
    let from = format!(
        "adapter_model = \"{}\"\nstart = \"model\"",
        at.join("first/adapter").display()
    );
    edit(&run, "start = \"fresh\"", &from);
    works(&["train", text(&run)]);
    // What no run reads does not matter, nor does the time a file was written.
    std::fs::write(at.join("joint/prior/README.md"), "words").expect("writes");
    let unet = at.join("joint/prior/unet/diffusion_pytorch_model.safetensors");
    let adapter = at.join("first/adapter/restoration_adapter/diffusion_pytorch_model.safetensors");
    let whole = [&unet, &adapter].map(|file| std::fs::read(file).expect("trained"));
    std::fs::write(&unet, &whole[0]).expect("writes");
    works(&["train", text(&run), "--resume"]);
    for (file, whole, what) in [
        (&unet, &whole[0], "`model`"),
        (&adapter, &whole[1], "`adapter_model`"),
    ] {
        std::fs::write(file, trained_on(whole)).expect("writes");
        let why = refuses(&["train", text(&run), "--resume"]);
        assert!(
            why.contains(what) && why.contains("put those back") && why.contains("another `out`"),
            "{why}"
        );
        std::fs::write(file, whole).expect("writes");
    }
    works(&["train", text(&run), "--resume"]);
    // A checkpoint of an earlier build, which has no fingerprints, is gone on from.
    let checkpoint = at.join("run/checkpoint.safetensors");
    let bytes = std::fs::read(&checkpoint).expect("written");
    let known = |name: &str| {
        bytes
            .windows(name.len())
            .position(|part| part == name.as_bytes())
    };
    let mut older = bytes.clone();
    for name in ["\"model_files\"", "\"adapter_model_files\""] {
        let at = known(name).expect("recorded");
        older[at + 1] = b'x';
    }
    std::fs::write(&checkpoint, older).expect("writes");
    std::fs::write(&unet, trained_on(&whole[0])).expect("writes");
    works(&["train", text(&run), "--resume"]);
}
