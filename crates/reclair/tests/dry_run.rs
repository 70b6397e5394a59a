//! `restore --dry-run`.

mod program;

#[cfg(target_os = "linux")]
use std::{
    process::{Command, Stdio},
    time::Duration,
};

use program::{picture, refuses, save, text, works};
use serde_json::{Value, json};

#[test]
fn a_dry_run_tells_sizes_tiles_calls_time_and_memory_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(150, 101));
    let out = folder.path().join("out.png");
    let plan = |more: &[&str]| -> Value {
        let mut args = vec!["restore", text(&input), "-o", text(&out)];
        args.extend(["--dry-run", "--scale", "2", "--tile", "128"]);
        args.extend(more);
        let line = works(&[&args[..], &["--json"]].concat()).stdout;
        let line: Value = serde_json::from_slice(&line).expect("one line of JSON");
        let plain = String::from_utf8(works(&args).stdout).expect("UTF-8");
        assert!(plain.contains("300x202"), "{plain}");
        line["plan"].clone()
    };
    // Heun asks twice at every step but the last, with the prompt and without.
    let heun = plan(&[
        "--sampler",
        "heun",
        "--steps",
        "3",
        "--start",
        "noise",
        "--cfg",
        "2",
    ]);
    assert_eq!(heun["result_px"], json!([300, 202]));
    assert_eq!(heun["tile_px"], json!([128, 128]));
    assert_eq!(heun["calls"], json!(10));
    // Tiles of 128 that share 32: three over 304 columns, two over 208 rows.
    assert_eq!(heun["tiles"], json!(6));
    assert!(heun["seconds"].as_f64().expect("a number") > 0.0);
    if cfg!(target_os = "linux") {
        assert!(heun["peak_bytes"].as_u64().expect("a number") > 10_000_000);
    }
    let euler = plan(&["--sampler", "euler", "--steps", "3", "--start", "noise"]);
    assert_eq!(euler["calls"], json!(3));
    assert!(!out.exists());
}

/// The peak memory of a run, which the kernel tells as long as it lives.
#[cfg(target_os = "linux")]
fn peak_bytes(args: &[&str]) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reclair"));
    command.args(args).stdout(Stdio::null());
    let mut child = command.spawn().expect("starts");
    let status = format!("/proc/{}/status", child.id());
    let told = || {
        let text = std::fs::read_to_string(&status).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(1024 * kilobytes)
    };
    let mut peak = 0;
    loop {
        let done = child.try_wait().expect("is ours");
        peak = peak.max(told().unwrap_or(0));
        if let Some(status) = done {
            assert!(status.success(), "{args:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The announced peak is that of the run: mini, one tile, and forty, where a third of the peak is what the decoder adds.
#[cfg(target_os = "linux")]
#[test]
fn the_announced_peak_is_the_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.png");
    for (size, tile, tiles) in [((256, 192), "256", 1), ((1536, 1024), "256", 40)] {
        let input = save(folder.path(), "in.png", &picture(size.0, size.1));
        let mut args = vec!["restore", text(&input), "-o", text(&out), "--json"];
        args.extend(["--steps", "1", "--tile", tile]);
        let told = works(&[&args[..], &["--dry-run"]].concat()).stdout;
        let plan: Value = serde_json::from_slice(&told).expect("one line of JSON");
        let plan = &plan["plan"];
        assert_eq!(plan["tiles"], json!(tiles), "{plan}");
        let announced = plan["peak_bytes"].as_u64().expect("a number") as f64;
        let measured = peak_bytes(&args) as f64;
        let off = announced / measured - 1.0;
        assert!(
            off.abs() < 0.25,
            "{size:?}: announced {announced:.3e} bytes, measured {measured:.3e}, {:+.0} %",
            100.0 * off
        );
    }
}

#[test]
fn a_dry_run_refuses_what_the_run_refuses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(20, 20));
    let out = folder.path().join("out.png");
    let args = ["restore", text(&input), "-o", text(&out), "--dry-run"];
    let said = refuses(&[&args[..], &["--scale", "17"]].concat());
    assert!(said.contains("scale 17"), "{said}");
}
