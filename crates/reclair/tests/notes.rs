//! What `restore` and `train` say about pictures and prompts that they take otherwise than one may think.

mod priors_on_disk;
mod program;

use std::process::Command;

use priors_on_disk::sd3;
use program::{
    picture, said, save, text,
    toy::{config, model, photos},
    works,
};

#[test]
fn pure_noise_without_an_adapter_is_noted_and_nothing_else_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let (input, out) = (save(at, "in.png", &picture(24, 16)), at.join("out.png"));
    let notes = |more: &[&str]| {
        let fixed = ["restore", text(&input), "-o", text(&out), "--steps", "2"];
        said(&works(&[&fixed[..], more].concat()))
            .lines()
            .filter(|line| line.starts_with("note: "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let noise = notes(&["--start", "noise", "--adapter", "none"]);
    assert_eq!(noise.len(), 1, "{noise:?}");
    assert!(
        noise[0].contains("little to do with the picture") && noise[0].contains("--start lq"),
        "{noise:?}"
    );
    assert!(out.is_file(), "it is done all the same");
    assert!(
        notes(&["--start", "noise"]).is_empty(),
        "mini's own adapter"
    );
    assert!(notes(&["--start", "lq", "--adapter", "none"]).is_empty());
}

#[test]
fn captions_that_are_too_long_are_counted_in_training_and_in_its_log() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    sd3(&at.join("prior"));
    let long = "low quality ".repeat(200);
    std::fs::write(at.join("photos/0.txt"), &long).expect("writes");
    let run = |name: &str, data: &str| {
        let toml = format!(
            "stage = \"adapter\"\nmodel = \"prior\"\nout = \"{name}\"\nstart = \"fresh\"\n\
             [data]\nimages = \"photos\"\ncrop_px = 32\ndegradations = [{{ preset = \"mild\", weight = 1.0 }}]\n{data}\n\
             [optimise]\nsteps = 1\nbatch = 1\nlr = 1e-3\n\
             [adapter]\n_class_name = \"DitRestorationAdapter\"\nafter = [0, 2]\nwidth = 16\n"
        );
        let path = at.join(format!("{name}.toml"));
        std::fs::write(&path, toml).expect("writes");
        path
    };
    for (name, data) in [("read", ""), ("cached", "cache_text = true")] {
        let path = run(name, data);
        for _ in 0..2 {
            // Said by each start, kept once.
            let said = said(&works(&["train", text(&path)]));
            assert!(
                said.contains("1 of 3 captions are longer than the text encoder"),
                "{said}"
            );
            assert!(
                said.contains("T5 does not read 1 of 3 captions to their end"),
                "{said}"
            );
        }
        let log = std::fs::read_to_string(at.join(name).join("log.jsonl")).expect("a log");
        assert_eq!(
            log.matches("\"note\":\"1 of 3 captions").count(),
            1,
            "{log}"
        );
        assert_eq!(log.matches("\"note\":\"T5 does not").count(), 1, "{log}");
    }
    // Where no caption is read none is too long.
    let silent = said(&works(&["train", text(&run("null", "null_text = 1.0"))]));
    assert!(!silent.contains("captions"), "{silent}");
}

#[test]
fn what_the_environment_asks_in_vain_is_in_the_log_of_a_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let run = config(at, "run", "vae", &model(at), 1, "");
    let output = Command::new(env!("CARGO_BIN_EXE_reclair"))
        .args(["train", text(&run)])
        .env("RECLAIR_KERNELS", "of")
        .output()
        .expect("the program starts");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        said.matches("RECLAIR_KERNELS=of is not known").count(),
        1,
        "{said}"
    );
    let log = std::fs::read_to_string(at.join("run/log.jsonl")).expect("a log");
    assert_eq!(
        log.matches("\"note\":\"RECLAIR_KERNELS=of").count(),
        1,
        "{log}"
    );
}
