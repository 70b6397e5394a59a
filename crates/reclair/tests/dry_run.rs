//! `restore --dry-run`.

mod program;

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

#[test]
fn a_dry_run_refuses_what_the_run_refuses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(20, 20));
    let out = folder.path().join("out.png");
    let args = ["restore", text(&input), "-o", text(&out), "--dry-run"];
    let said = refuses(&[&args[..], &["--scale", "17"]].concat());
    assert!(said.contains("scale 17"), "{said}");
}
