//! `degrade` and `eval`.

mod program;

use program::{picture, reclair, refuses, said, save, text, works};
use serde_json::Value;

#[test]
fn degrade_repeats_itself_and_says_what_it_drew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(96, 64));
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut args = vec![
            "degrade",
            text(&input),
            "-o",
            text(&out),
            "--preset",
            "mixture",
        ];
        args.extend(more);
        let line: Value = serde_json::from_slice(&works(&args).stdout).expect("a JSON line");
        (std::fs::read(&out).expect("written"), line)
    };
    let (first, line) = run("1.png", &["--seed", "3"]);
    assert!(first == run("2.png", &["--seed", "3"]).0);
    assert!(first != run("3.png", &["--seed", "4"]).0);
    let words: Vec<&str> = line["descriptors"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(
        words,
        [
            "low quality",
            "low resolution",
            "blurry",
            "noisy",
            "compressed"
        ]
    );
    let small = folder.path().join("small.png");
    works(&[
        "degrade",
        text(&input),
        "-o",
        text(&small),
        "--preset",
        "x8",
        "--small",
    ]);
    let small = pixels::io::open(&small).expect("a picture");
    assert_eq!((small.width, small.height), (12, 8));
    assert!(
        refuses(&[
            "degrade",
            text(&input),
            "-o",
            "x.png",
            "--preset",
            "nonsense"
        ])
        .contains("nonsense")
    );
}

#[test]
fn eval_prints_the_promised_json() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (restored, reference) = (
        folder.path().join("restored"),
        folder.path().join("reference"),
    );
    for (folder, bright) in [(&restored, 0.02), (&reference, 0.0)] {
        std::fs::create_dir(folder).expect("makes the folder");
        let mut image = picture(128, 128);
        image
            .rgb
            .iter_mut()
            .for_each(|v| *v = (*v + bright).min(1.0));
        save(folder, "a.png", &image);
        save(folder, "b.png", &picture(128, 112));
    }
    let args = [
        "eval",
        "--restored",
        text(&restored),
        "--reference",
        text(&reference),
        "--json",
    ];
    let json: Value = serde_json::from_slice(&works(&args).stdout).expect("JSON");
    assert_eq!(json["images"][0]["name"], "a");
    assert!((json["images"][1]["psnr"].as_f64().expect("a number") - 80.0).abs() < 1e-6);
    assert!((json["images"][1]["detail"].as_f64().expect("a number") - 1.0).abs() < 1e-9);
    let mean = (json["images"][0]["psnr"].as_f64().expect("a number") + 80.0) / 2.0;
    assert!((json["mean"]["psnr"].as_f64().expect("a number") - mean).abs() < 1e-9);
    for metric in ["psnr", "ssim", "niqe", "detail"] {
        assert!(json["mean"][metric].is_number(), "{metric}");
    }
    // What one metric cannot do the others do: NIQE needs 96 pixels.
    for folder in [&restored, &reference] {
        save(folder, "small.png", &picture(64, 64));
    }
    let output = reclair(args);
    assert!(!output.status.success());
    assert!(said(&output).contains("small"), "{}", said(&output));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(all["images"][2]["niqe"].is_null());
    assert!(all["images"][2]["psnr"].is_number());
    assert_eq!(all["mean"]["niqe"], json["mean"]["niqe"]);
    let line = refuses(&["eval", "--restored", text(&restored), "--metrics", "psnr"]);
    assert!(line.contains("--reference"), "{line}");
}
