//! What the embedded mini makes of a real photograph with the default options.
//!
//! `pictures/friends.png` is a part of "friends" by Aitzol Berasategi, 2018, CC-BY-4.0, from Debian's package
//! `lomiri-wallpapers-16.04` (20.04.0), scaled down to a third. The bounds lie between what mini's sixth edition reached and
//! what its input has, so that an edition that does not restore fails; docs/quality.md has figures over many pictures.

mod program;

use std::{fs, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use pixels::{Image, colour::Luma, score::psnr};
use priors::{model::PriorModel, vae::AutoencoderKl, weights::Precision};
use program::{text, works};
use reclair::embedded::mini_prior;
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

/// PSNR in dB of the picture after mini's autoencoder.
fn after_the_autoencoder(vae: &AutoencoderKl, picture: &Image) -> f64 {
    let f = vae.downscale();
    let [width, height] = [picture.width, picture.height].map(|side| side / f * f);
    let picture = picture.crop(0, 0, width, height);
    let values = picture.rgb.iter().map(|v| 2.0 * v - 1.0).collect();
    let x = TensorData::new::<f32, _>(values, [1, 3, height, width]);
    let z = vae.latent_from_image(Tensor::from_data(x, &Device::flex()));
    let y = vae.image_from_latent(z).into_data().try_into_vec::<f32>();
    let rgb = y.expect("f32").iter().map(|v| 0.5 * v + 0.5).collect();
    let result = Image::new(width, height, rgb).clamped();
    psnr(&result, &picture, Luma::Rgb).expect("same size")
}

#[test]
fn the_autoencoder_keeps_pictures() {
    let vae = PriorModel::open_vae(&mini_prior(), Precision::F32, &Device::flex());
    let vae = vae.expect("embedded");
    let of = |path: &Path| after_the_autoencoder(&vae, &pixels::io::open(path).expect("opens"));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let one = of(&manifest.join("tests/pictures/friends.png"));
    assert!(one >= 36.0, "{one:.2} dB");
    let Ok(val) = fs::read_dir(manifest.join("../../../shared/data/val")) else {
        eprintln!("skipped: the validation pictures are not here");
        return;
    };
    let files = val.map(|entry| entry.expect("an entry").path());
    let all: Vec<f64> = files
        .filter(|path| pixels::io::is_picture_name(path))
        .map(|path| of(&path))
        .collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    eprintln!("{mean:.2} dB, mean of {} pictures", all.len());
    assert!(mean >= 36.0, "{mean:.2} dB");
}
