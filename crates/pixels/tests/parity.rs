//! Parity with torch, BasicSR, pyiqa and libjpeg-turbo: goldens of `golden/make_golden.py`, tolerance `atol + rtol
//! |y|` stated per test.

use std::f64::consts::PI;
use std::path::Path;

use pixels::colour::{Luma, adain, wavelet};
use pixels::degrade::kernel::Shape;
use pixels::degrade::{Degradation, Kernel, filter2d, jpeg, sharpen};
use pixels::resize::{Mode, Target, interpolate};
use pixels::score::{niqe, psnr, ssim};
use pixels::{Image, io};
use safetensors::SafeTensors;

struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
        Self(std::fs::read(path).expect("the golden is in the repository"))
    }

    fn names(&self) -> Vec<String> {
        self.file().names().into_iter().map(str::to_owned).collect()
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let data = file.tensor(name).expect(name).data();
        data.as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect()
    }

    fn double(&self, name: &str) -> f64 {
        let file = self.file();
        f64::from_le_bytes(
            file.tensor(name)
                .expect(name)
                .data()
                .try_into()
                .expect("one number"),
        )
    }

    /// A float tensor [3, h, w].
    fn image(&self, name: &str) -> Image {
        let shape = self.file().tensor(name).expect(name).shape().to_vec();
        Image::new(shape[2], shape[1], self.floats(name))
    }

    /// A byte tensor [h, w, 3].
    fn bytes(&self, name: &str) -> Image {
        let file = self.file();
        let tensor = file.tensor(name).expect(name);
        Image::from_u8(tensor.shape()[1], tensor.shape()[0], tensor.data())
    }
}

/// Fails with count, worst place and both values.
fn close(what: &str, got: &[f32], expected: &[f32], atol: f32, rtol: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: another size");
    let excess = |i: usize| (got[i] - expected[i]).abs() - atol - rtol * expected[i].abs();
    let wrong: Vec<usize> = (0..got.len())
        .filter(|&i| excess(i).is_nan() || excess(i) > 0.0)
        .collect();
    if let Some(&worst) = wrong
        .iter()
        .max_by(|&&a, &&b| excess(a).total_cmp(&excess(b)))
    {
        let (n, all) = (wrong.len(), got.len());
        panic!(
            "{what}: {n} of {all} differ, worst at {worst}: got {}, expected {}",
            got[worst], expected[worst]
        );
    }
}

#[test]
fn interpolate_is_torchs() {
    let golden = Golden::open("interpolate");
    let input = golden.image("input");
    let mut seen = 0;
    for name in golden.names().iter().filter(|name| *name != "input") {
        let (mode, rest) = name.split_once('.').expect("mode.kind.value");
        let mode = match mode {
            "area" => Mode::Area,
            "bilinear" => Mode::Bilinear,
            _ => Mode::Bicubic,
        };
        let target = match rest.split_once('.').expect("kind.value") {
            ("factor", factor) => Target::Factor(factor.parse().expect("a number")),
            (_, size) => {
                let (width, height) = size.split_once('x').expect("WxH");
                Target::Size {
                    width: width.parse().expect("a number"),
                    height: height.parse().expect("a number"),
                }
            }
        };
        let (got, expected) = (interpolate(&input, target, mode), golden.image(name));
        assert_eq!(
            (got.width, got.height),
            (expected.width, expected.height),
            "{name}"
        );
        close(name, &got.rgb, &expected.rgb, 1e-6, 1e-5);
        seen += 1;
    }
    assert_eq!(seen, 36);
}

#[test]
fn colour_fixes_are_stablesrs() {
    let golden = Golden::open("colour");
    let (image, reference) = (golden.image("image"), golden.image("reference"));
    let got = wavelet(&image, &reference).expect("same size");
    close("wavelet", &got.rgb, &golden.floats("wavelet"), 1e-6, 1e-5);
    let got = adain(&image, &reference).expect("same size");
    close("adain", &got.rgb, &golden.floats("adain"), 1e-6, 1e-5);
}

#[test]
fn kernels_are_basicsrs() {
    let golden = Golden::open("degrade");
    let round = |sigma: f64| [sigma; 2];
    for (name, size, shape) in [
        (
            "gaussian.21.2.2.0",
            21,
            Shape::Gaussian {
                sigma: round(2.0),
                rotation: 0.0,
            },
        ),
        (
            "gaussian.15.2.5.0.7.0.6",
            15,
            Shape::Gaussian {
                sigma: [2.5, 0.7],
                rotation: 0.6,
            },
        ),
        (
            "generalized.13.1.5.0.7",
            13,
            Shape::Generalized {
                sigma: round(1.5),
                rotation: 0.0,
                beta: 0.7,
            },
        ),
        (
            "generalized.aniso",
            11,
            Shape::Generalized {
                sigma: [2.2, 0.9],
                rotation: -2.1,
                beta: 3.1,
            },
        ),
        (
            "plateau.iso",
            9,
            Shape::Plateau {
                sigma: round(1.1),
                rotation: 0.0,
                beta: 1.7,
            },
        ),
        (
            "plateau.aniso",
            19,
            Shape::Plateau {
                sigma: [2.9, 0.4],
                rotation: 1.2,
                beta: 1.3,
            },
        ),
        ("sinc.7", 7, Shape::Sinc { cutoff: PI / 3.0 }),
        ("sinc.21", 21, Shape::Sinc { cutoff: 2.4 }),
    ] {
        close(
            name,
            &Kernel::new(size, shape).taps,
            &golden.floats(&format!("kernel.{name}")),
            1e-8,
            1e-6,
        );
    }
}

#[test]
fn filtering_and_sharpening_are_basicsrs() {
    let golden = Golden::open("degrade");
    let input = golden.image("input");
    let kernel = Kernel::new(21, Shape::Sinc { cutoff: 2.4 });
    close(
        "filter2D",
        &filter2d(&input, &kernel).rgb,
        &golden.floats("filtered.sinc.21"),
        1e-6,
        1e-5,
    );
    let law = Degradation::preset("realesrgan")
        .expect("known")
        .sharpen
        .expect("it sharpens");
    close(
        "USM",
        &sharpen(&input, &law).rgb,
        &golden.floats("sharpened"),
        2e-6,
        1e-5,
    ); // two blurs deep
}

#[test]
fn compression_is_that_of_a_real_codec() {
    let golden = Golden::open("jpeg");
    let input = golden.bytes("input");
    for quality in [30, 50, 90] {
        let theirs = golden.bytes(&format!("quality.{quality}"));
        let ours = jpeg(&input, quality);
        let (between, loss) = (
            psnr(&ours, &theirs, Luma::Rgb),
            psnr(&theirs, &input, Luma::Rgb),
        );
        let (between, loss) = (between.expect("same size"), loss.expect("same size"));
        // Two codecs round differently in their transforms and chroma filters; they must agree far better
        // than either keeps the picture.
        assert!(
            between > 40.0 && between > loss + 6.0,
            "quality {quality}: {between} dB apart, {loss} dB lost"
        );
    }
}

#[test]
fn scores_are_pyiqas() {
    let golden = Golden::open("score");
    let (distorted, reference) = (golden.bytes("distorted"), golden.bytes("reference"));
    for (name, luma) in [
        ("rgb", Luma::Rgb),
        ("yiq", Luma::Yiq),
        ("ycbcr", Luma::Ycbcr),
    ] {
        let (got, expected) = (
            psnr(&distorted, &reference, luma).expect("same size"),
            golden.double(&format!("psnr.{name}")),
        );
        assert!(
            (got - expected).abs() < 1e-4,
            "psnr {name}: {got}, expected {expected}"
        );
        let (got, expected) = (
            ssim(&distorted, &reference, luma).expect("same size"),
            golden.double(&format!("ssim.{name}")),
        );
        assert!(
            (got - expected).abs() < 1e-5,
            "ssim {name}: {got}, expected {expected}"
        );
    }
}

#[test]
fn niqe_is_pyiqas() {
    let golden = Golden::open("niqe");
    let picture = golden.bytes("picture");
    for (name, luma) in [("yiq", Luma::Yiq), ("ycbcr", Luma::Ycbcr)] {
        for (part, width, height) in [
            ("", 300, 200),
            (".one_block", 150, 120),
            (".two_blocks", 300, 120),
        ] {
            let got = niqe(&picture.crop(0, 0, width, height), luma).expect("large enough");
            let expected = golden.double(&format!("niqe.{name}{part}"));
            // Luma ties at one half fall differently (facts/metrics.md 1): up to 0.02 on real pictures.
            assert!(
                (got / expected - 1.0).abs() < 2e-3,
                "niqe {name}{part}: {got}, expected {expected}"
            );
        }
    }
}

/// TID2013 pictures are for research use and not in the repository: set RECLAIR_CALIBRA to pyiqa's `ResultsCalibra`
/// folder to run this.
#[test]
fn calibration_pairs_of_pyiqa() {
    let Some(folder) = std::env::var_os("RECLAIR_CALIBRA") else {
        return;
    };
    let open = |kind: &str, name: &str| {
        let folder = Path::new(&folder).join(kind);
        let mut files = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|f| f.expect("an entry").path());
        io::open(
            files
                .find(|f| f.to_string_lossy().contains(name))
                .expect(name),
        )
        .expect("a picture")
    };
    for (name, db, similarity, naturalness) in [
        ("I04", 20.987_191, 0.997_755_05, 3.654_908),
        ("I06", 27.013_849, 0.998_908_23, 3.234_191),
        ("I08", 23.300_246, 0.967_093_02, 3.191_708),
    ] {
        let (distorted, reference) = (open("dist_dir", name), open("ref_dir", name));
        assert!(
            (psnr(&distorted, &reference, Luma::Rgb).expect("same size") - db).abs() < 1e-4,
            "{name}"
        );
        assert!(
            (ssim(&distorted, &reference, Luma::Yiq).expect("same size") - similarity).abs() < 1e-5,
            "{name}"
        );
        assert!(
            (niqe(&distorted, Luma::Yiq).expect("large") / naturalness - 1.0).abs() < 1e-2,
            "{name}"
        );
    }
}
