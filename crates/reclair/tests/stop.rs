//! A training run that is asked to stop: once, and twice.

#![cfg(unix)]

mod program;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use program::{
    refuses,
    runs::{VAE, edit, is_tidy, lines, log, start, toy, until},
    text,
    toy::{config, weights},
    works,
};

/// Sends a signal.
fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill is there").success());
}

#[test]
fn a_run_asked_to_stop_writes_a_checkpoint_and_goes_on() {
    let (folder, model) = toy();
    let at = folder.path();
    let whole = config(at, "whole", "vae", &model, 200, "");
    works(&["train", text(&whole)]);
    let stopped = config(at, "stopped", "vae", &model, 200, "");
    // None of the checkpoints that are due anyway.
    edit(&stopped, "checkpoint = 1", "checkpoint = 1000");
    assert!(refuses(&["train", text(&stopped), "--resume"]).contains("leave --resume out"));
    let run = at.join("stopped");
    let mut step = 0;
    for (signal, enough) in [("TERM", 7), ("INT", 40)] {
        let mut child = start(&stopped);
        assert!(until(&mut child, || lines(&run) >= enough));
        send(signal, &child);
        assert!(child.wait().expect("ended").success(), "{signal}");
        let last = log(&run).last().expect("a line")["step"].as_u64();
        let last = last.expect("a step");
        assert!(step < last && last < 200, "{signal}: {step} {last}");
        step = last;
    }
    works(&["train", text(&stopped), "--resume"]);
    assert!(weights(at, "whole", VAE) == weights(at, "stopped", VAE));
    is_tidy(&run, 200);
}

#[test]
fn asked_twice_it_ends_at_once_and_the_last_checkpoint_is_whole() {
    let (folder, model) = toy();
    let at = folder.path();
    // Steps so long that the second signal comes within the one that the first waits for.
    let path = config(at, "run", "vae", &model, 3, "accumulate = 700");
    let run = at.join("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_reclair"))
        .args(["train", text(&path)])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
    let checkpoint = run.join("checkpoint.safetensors");
    // The first step is logged before its checkpoint is written.
    assert!(until(&mut child, || lines(&run) >= 1 && checkpoint.is_file()));
    let before = std::fs::read(&checkpoint).expect("written");
    let step = log(&run)[0]["seconds"].as_f64().expect("seconds");
    send("INT", &child);
    assert!(said.any(|line| line.expect("text").contains("again to stop at once")));
    let asked = Instant::now();
    send("INT", &child);
    let status = child.wait().expect("ended");
    let took = asked.elapsed().as_secs_f64();
    assert_eq!(status.code(), Some(130));
    assert!(took < 0.5 * step, "{took} s, and a step takes {step} s");
    assert_eq!(lines(&run), 1, "the step under way is not in the log");
    assert!(before == std::fs::read(&checkpoint).expect("still there"));
    // The same command goes on from it.
    let mut child = start(&path);
    assert!(until(&mut child, || lines(&run) >= 2));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(log(&run)[1]["step"], 2);
}
