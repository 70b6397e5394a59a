//! What the embedded mini makes of a real photograph with the default options.
//!
//! `pictures/friends.png` is a part of "friends" by Aitzol Berasategi, 2018, CC-BY-4.0, from Debian's package
//! `lomiri-wallpapers-16.04` (20.04.0), scaled down to a third. The bounds lie between what mini's sixth edition reached and
//! what its input has, so that an edition that does not restore fails; docs/quality.md has figures over many pictures.

mod program;

use std::{fs, path::Path};

use program::{text, works};
use serde_json::Value;

/// PSNR in dB, SSIM and NIQE of the picture in a folder.
fn scores(folder: &Path, reference: &Path) -> [f64; 3] {
    let args = [
        "eval",
        "--restored",
        text(folder),
        "--reference",
        text(reference),
        "--metrics",
        "psnr,ssim,niqe",
        "--json",
    ];
    let told: Value = serde_json::from_slice(&works(&args).stdout).expect("JSON");
    ["psnr", "ssim", "niqe"].map(|name| told["mean"][name].as_f64().expect("a number"))
}

/// Scores of the picture after `preset`, or as it is, and of what is restored from that.
fn input_and_result(preset: Option<&str>) -> [[f64; 3]; 2] {
    let work = tempfile::tempdir().expect("a temporary folder");
    let place = |folder: &str| {
        let folder = work.path().join(folder);
        fs::create_dir(&folder).expect("a folder");
        folder.join("friends.png")
    };
    let [clean, input, result] = ["clean", "input", "result"].map(place);
    let pictures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures/friends.png");
    fs::copy(pictures, &clean).expect("the photograph");
    match preset {
        Some(preset) => {
            let args = [
                "degrade",
                text(&clean),
                "-o",
                text(&input),
                "--preset",
                preset,
                "--seed",
                "0",
            ];
            works(&args);
        }
        None => {
            fs::copy(&clean, &input).expect("the photograph");
        }
    }
    works(&["restore", text(&input), "-o", text(&result)]);
    let folder = |file: &Path| file.parent().expect("a folder").to_owned();
    [input, result].map(|file| scores(&folder(&file), &folder(&clean)))
}

#[test]
fn a_mildly_degraded_photograph_looks_better_and_stays_as_near() {
    let [[psnr, _, niqe], [restored_psnr, _, restored_niqe]] = input_and_result(Some("mild"));
    assert!(restored_psnr >= psnr, "{restored_psnr} dB, {psnr} before"); // 23.34, 23.07
    assert!(
        restored_niqe <= 0.85 * niqe,
        "{restored_niqe}, {niqe} before"
    ); // 9.5, 11.3
}

#[test]
fn a_heavily_degraded_photograph_is_nearer_and_looks_better() {
    let [
        [psnr, ssim, niqe],
        [restored_psnr, restored_ssim, restored_niqe],
    ] = input_and_result(Some("mixture"));
    assert!(
        restored_psnr >= psnr + 0.5,
        "{restored_psnr} dB, {psnr} before"
    ); // 24.80, 23.90
    assert!(
        restored_ssim >= ssim + 0.05,
        "{restored_ssim}, {ssim} before"
    ); // 0.705, 0.626
    assert!(
        restored_niqe <= 0.85 * niqe,
        "{restored_niqe}, {niqe} before"
    ); // 7.4, 8.9
}

#[test]
fn a_clean_photograph_is_hardly_harmed() {
    let [_, [psnr, ssim, _]] = input_and_result(None);
    assert!(psnr >= 36.0, "{psnr} dB"); // 37.0
    assert!(ssim >= 0.965, "{ssim}"); // 0.974
}
