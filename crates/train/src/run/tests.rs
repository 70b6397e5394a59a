use std::path::PathBuf;

use burn::tensor::Tensor;
use pixels::Image;

use super::*;
use crate::{checkpoint, priors_on_disk, ranks::Alone};

/// The configuration of a run that trains the autoencoder of an SDXL-shaped prior on one photograph.
fn config(folder: &Path) -> TrainConfig {
    priors_on_disk::sdxl(&folder.join("prior"));
    std::fs::create_dir(folder.join("photos")).expect("makes the folder");
    let photo = Image::from_fn(48, 40, |c, y, x| ((c + x * y) % 7) as f32 / 7.0);
    pixels::io::save(&photo, folder.join("photos/0.png")).expect("saves");
    let text = "stage = \"vae\"\nmodel = \"prior\"\nout = \"out\"\nstart = \"fresh\"\n[data]\nimages = \"photos\"\n\
                crop_px = 32\n[optimise]\nsteps = 2\nbatch = 1\nlr = 1e-3\n";
    let path = folder.join("run.toml");
    std::fs::write(&path, text).expect("writes");
    TrainConfig::read(&path).expect("a configuration")
}

/// Runs `config` on a machine; how it ended, and what was told.
fn told(machine: &Machine, config: &TrainConfig) -> (Result<(), Error>, Vec<Event>) {
    let mut events = Vec::new();
    let stop = AtomicBool::new(false);
    let ended = run_on(
        machine,
        config,
        &Device::flex(),
        &Alone,
        &stop,
        &mut |event| events.push(event),
    );
    (ended, events)
}

/// Bytes of the files in these parts of a folder.
fn written(folder: &Path, parts: &[&str]) -> u64 {
    let mut open: Vec<PathBuf> = parts.iter().map(|part| folder.join(part)).collect();
    let mut bytes = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).expect("a folder");
            open.extend(entries.map(|entry| entry.expect("readable").path()));
        } else if path.exists() {
            bytes += path.metadata().expect("a file").len();
        }
    }
    bytes
}

#[test]
fn a_device_with_wrong_gradients_trains_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = config(folder.path());
    let machine = Machine {
        gradients: |device, how, products| {
            // The forward pass is right.
            let doubled = |y: Tensor<4>| y.clone() * 2.0 - y.without_autodiff();
            self_test::check_through(device, how, products, doubled)
        },
        free_bytes: |_| None,
    };
    let (ended, events) = told(&machine, &config);
    let why = ended.expect_err("refused").to_string();
    for part in ["this device computes wrong gradients", "--device cpu"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(events.is_empty(), "{events:?}");
    assert!(!config.out.exists());
}

#[test]
fn a_run_without_room_for_its_checkpoints_and_result_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = config(folder.path());
    let machine = |free_bytes| Machine {
        gradients: |_, _, _| Ok(0.0),
        free_bytes,
    };
    let (ended, events) = told(&machine(|_| Some(10_000)), &config);
    let why = ended.expect_err("refused").to_string();
    for part in [
        "two checkpoints",
        "the result take",
        "the disk has 0.01 MB left",
        "give `out` on another disk",
    ] {
        assert!(why.contains(part), "{why}");
    }
    let started = |event: &Event| matches!(event, Event::Start { .. });
    assert!(!events.iter().any(started));
    assert!(!config.out.exists());
    // Room that the prompts took, after the folder was made.
    let shrinking = machine(|out| out.exists().then_some(10_000));
    let (ended, events) = told(&shrinking, &config);
    assert!(
        ended
            .expect_err("refused")
            .to_string()
            .contains("0.01 MB left")
    );
    assert!(!events.iter().any(started));
    // What is announced is what is written, headers and configurations aside.
    let (ended, _) = told(&machine(|_| None), &config);
    ended.unwrap_or_else(|why| panic!("{why}"));
    let device = Device::flex();
    let objective = Vae::new(&config, &device).expect("a model");
    let shapes = shapes_of(&objective.initial().expect("values"));
    let output = Output::of(&config, &shapes).expect("sizes");
    let near = |announced: u64, written: u64| {
        assert!(
            announced.abs_diff(written) < written / 10,
            "{announced} {written}"
        );
    };
    near(output.checkpoint, checkpoint::bytes(&config.out));
    near(output.result, written(&config.out, &["prior", "adapter"]));
    // What is there needs no more room, but a checkpoint is always written beside another.
    let free = |bytes| output.check_room(&config.out, 0, Some(bytes));
    assert!(free(output.checkpoint + output.checkpoint / 5).is_ok());
    assert!(free(output.checkpoint - 1).is_err());
    let elsewhere =
        |latents, bytes| output.check_room(&folder.path().join("new"), latents, Some(bytes));
    let all = 2 * output.checkpoint + output.result;
    assert!(elsewhere(0, all).is_ok());
    assert!(elsewhere(0, all - 1).is_err());
    // Latents lie on the same disk, and are there together with both checkpoints.
    assert!(elsewhere(5000, all + 5000).is_ok());
    let why = elsewhere(5000, all + 4999).expect_err("too little");
    assert!(
        why.to_string().contains("the result and latents take"),
        "{why}"
    );
}
