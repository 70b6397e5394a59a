//! Runs of `train` that are watched, stopped and looked into.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    text,
    toy::{model, photos},
};

/// The autoencoder in a run's result.
pub(crate) const VAE: &str = "prior/vae/diffusion_pytorch_model.safetensors";

/// Changes a run's configuration.
pub(crate) fn edit(config: &Path, from: &str, to: &str) {
    let toml = std::fs::read_to_string(config).expect("written");
    assert!(toml.contains(from), "{from}");
    std::fs::write(config, toml.replace(from, to)).expect("writes");
}

/// A folder with pictures and a model.
pub(crate) fn toy() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    photos(folder.path());
    let model = model(folder.path());
    (folder, model)
}

pub(crate) fn start(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_reclair"))
        .args(["train", text(config)])
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Runs `train` to its end; its peak memory as the system saw it, bytes, where that tells it (Linux).
pub(crate) fn peak_of(config: &Path) -> Option<u64> {
    let mut child = start(config);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    loop {
        // It never falls, and is gone with the memory.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = kb.map(|kb| 1024 * kb).or(peak);
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "it fails");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of a run's log.
pub(crate) fn log(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).expect("a log");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a whole line"))
        .collect()
}

pub(crate) fn lines(run: &Path) -> usize {
    let log = std::fs::read(run.join("log.jsonl")).unwrap_or_default();
    log.iter().filter(|&&byte| byte == b'\n').count()
}

/// Waits until `happened`, or says that the program ended before.
pub(crate) fn until(child: &mut Child, mut happened: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !happened() {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "nothing happened in two minutes"
        );
    }
    true
}

/// The files in `run` that are being written.
pub(crate) fn half_written(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(".reclair-")
        })
        .collect()
}

/// Checks that each step was logged once, in order, and nothing half written is left.
pub(crate) fn is_tidy(run: &Path, steps: u64) {
    let logged: Vec<u64> = log(run)
        .iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(logged, (1..=steps).collect::<Vec<_>>());
    assert_eq!(half_written(run), Vec::<PathBuf>::new());
}

/// Runs `train` where no file can grow beyond so many bytes: what a full disk does to a large file.
pub(crate) fn train_with_room_for(config: &Path, bytes: u64) -> std::process::Output {
    // The signal would end the program; ignored, the write fails instead. `ulimit` counts in blocks of 512 bytes.
    let script = format!(
        "trap '' XFSZ; ulimit -f {}; exec \"$0\" train \"$1\"",
        bytes / 512
    );
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_reclair"), text(config)])
        .env("POSIXLY_CORRECT", "1")
        .output()
        .expect("a shell")
}
