//! Laws of whole degradations: reproducible, within their ranges, described by what was drawn.

use std::collections::BTreeMap;

use pixels::degrade::{Degradation, Degraded, Drawn, OutputSize, degrade};
use pixels::random::stream;
use pixels::resize::{Mode, Target, interpolate};
use pixels::score::detail;
use pixels::{Image, io};

fn photo(width: usize, height: usize) -> Image {
    Image::from_fn(width, height, |c, y, x| {
        let (x, y) = (x as f32, y as f32);
        let wave = (x / 7.0 + c as f32).sin() * (y / 5.0).cos() + 0.5 * (x * y / 300.0).sin();
        (0.5 + 0.25 * wave + if (x + y) % 40.0 < 3.0 { 0.2 } else { 0.0 }).clamp(0.0, 1.0)
    })
}

fn run(name: &str, seed: u64, size: OutputSize) -> Degraded {
    let law = Degradation::preset(name).expect("known");
    degrade(&photo(96, 80), &law, &mut stream(seed, "degrade"), size)
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for name in Degradation::PRESETS {
        let once = run(name, 11, OutputSize::Input);
        assert!(run(name, 11, OutputSize::Input) == once, "{name}");
        let threads: Vec<_> = (0..3)
            .map(|_| std::thread::spawn(move || run(name, 11, OutputSize::Input)))
            .collect();
        for thread in threads {
            assert!(
                thread.join().expect("no panic") == once,
                "{name}: another thread"
            );
        }
        if name != "x8" {
            assert!(
                run(name, 12, OutputSize::Input).image != once.image,
                "{name}: another seed"
            );
        }
    }
}

#[test]
fn sizes_are_those_asked_for_and_small_pictures_are_bytes() {
    for (name, width, height) in [
        ("realesrgan", 24, 20),
        ("mild", 24, 20),
        ("mixture", 24, 20),
        ("x8", 12, 10),
    ] {
        for seed in 0..8 {
            let small = run(name, seed, OutputSize::Small);
            if name != "mild" || !small.drawn.is_empty() {
                assert_eq!(
                    (small.image.width, small.image.height),
                    (width, height),
                    "{name}"
                );
            }
            assert!(
                small
                    .image
                    .rgb
                    .iter()
                    .all(|v| (v * 255.0 - (v * 255.0).round()).abs() < 1e-4),
                "{name}: whole bytes"
            );
            let full = run(name, seed, OutputSize::Input);
            assert_eq!((full.image.width, full.image.height), (96, 80), "{name}");
            assert_eq!((full.target.width, full.target.height), (96, 80), "{name}");
            assert!(
                full.image.rgb.iter().all(|v| (0.0..=1.0).contains(v)),
                "{name}"
            );
            let mode = if name == "x8" {
                Mode::Bilinear
            } else {
                Mode::Bicubic
            };
            let size = Target::Size {
                width: 96,
                height: 80,
            };
            assert!(
                interpolate(&small.image, size, mode).clamped() == full.image,
                "{name}: brought back"
            );
            assert_eq!(
                full.drawn, small.drawn,
                "{name}: the size asked for changes no draw"
            );
        }
    }
    for side in [1, 2, 5, 13] {
        for name in Degradation::PRESETS {
            let law = Degradation::preset(name).expect("known");
            let tiny = degrade(
                &photo(side, 7),
                &law,
                &mut stream(1, "tiny"),
                OutputSize::Input,
            );
            assert_eq!((tiny.image.width, tiny.image.height), (side, 7), "{name}");
        }
    }
}

#[test]
fn only_the_sharpening_presets_change_the_target() {
    for name in Degradation::PRESETS {
        let target = run(name, 3, OutputSize::Input).target;
        let share = detail(&target, &photo(96, 80)).expect("same size");
        if matches!(name, "realesrgan" | "mild") {
            assert!(share > 1.02, "{name}: {share}");
        } else {
            assert!(target == photo(96, 80), "{name}");
        }
    }
}

/// What 400 runs of a preset drew, by their numbers.
#[derive(Default)]
struct Seen {
    sigma: Vec<f64>,
    gaussian: Vec<f64>,
    poisson: Vec<f64>,
    grey: usize,
    quality: Vec<f64>,
    first_kernel: BTreeMap<String, usize>,
    first_resize: Vec<f64>,
    jpeg_last: usize,
}

fn seen(name: &str) -> Seen {
    let mut seen = Seen::default();
    let law = Degradation::preset(name).expect("known");
    let photo = photo(48, 48);
    for seed in 0..400 {
        let drawn = degrade(&photo, &law, &mut stream(seed, name), OutputSize::Small).drawn;
        seen.jpeg_last += usize::from(matches!(drawn.last(), Some(Drawn::Jpeg { .. })));
        for (i, drawn) in drawn.into_iter().enumerate() {
            match drawn {
                Drawn::Blur { kernel, sigma, .. } => {
                    seen.sigma.extend(sigma.into_iter().flatten());
                    if i == 0 {
                        *seen.first_kernel.entry(kernel).or_default() += 1;
                    }
                }
                Drawn::Noise {
                    law,
                    strength,
                    grey,
                    ..
                } => {
                    if law == "gaussian" {
                        seen.gaussian.push(strength)
                    } else {
                        seen.poisson.push(strength)
                    }
                    seen.grey += usize::from(grey);
                }
                Drawn::Jpeg { quality } => seen.quality.push(f64::from(quality)),
                Drawn::Resize { of_input, .. } if i == 1 => seen.first_resize.push(of_input),
                Drawn::Resize { .. } => {}
            }
        }
    }
    seen
}

/// Inside [low, high], and reaching both ends within a tenth.
fn spans(what: &str, values: &[f64], low: f64, high: f64) {
    let (min, max) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(a, b), &v| (v.min(a), v.max(b)));
    let slack = 0.1 * (high - low);
    assert!(
        low <= min && min <= low + slack && high - slack <= max && max <= high,
        "{what}: {min} to {max}"
    );
}

#[test]
fn realesrgan_draws_what_its_paper_says() {
    let seen = seen("realesrgan");
    spans("sigma", &seen.sigma, 0.2, 3.0);
    spans("gaussian", &seen.gaussian, 1.0, 30.0);
    spans("poisson", &seen.poisson, 0.05, 3.0);
    spans("quality", &seen.quality, 30.0, 95.0);
    spans("first resize", &seen.first_resize, 0.14, 1.5);
    let noises = seen.gaussian.len() + seen.poisson.len();
    assert_eq!((noises, seen.quality.len()), (800, 800));
    let share = |what: &str, n: usize, of: usize, expected: f64| {
        let share = n as f64 / of as f64;
        assert!(
            (share - expected).abs() < 0.06,
            "{what}: {share}, expected {expected}"
        );
    };
    share("gaussian", seen.gaussian.len(), noises, 0.5);
    share("grey", seen.grey, noises, 0.4);
    for (kernel, expected) in [
        ("sinc", 0.1),
        ("iso", 0.9 * 0.45),
        ("aniso", 0.9 * 0.25),
        ("generalized_iso", 0.9 * 0.12),
        ("generalized_aniso", 0.9 * 0.03),
        ("plateau_iso", 0.9 * 0.12),
        ("plateau_aniso", 0.9 * 0.03),
    ] {
        share(kernel, seen.first_kernel[kernel], 400, expected);
    }
    let up = seen.first_resize.iter().filter(|f| **f > 1.0).count();
    let down = seen.first_resize.iter().filter(|f| **f < 1.0).count();
    share("up", up, 400, 0.2);
    share("down", down, 400, 0.7);
    share("the other order", seen.jpeg_last, 400, 0.5);
}

#[test]
fn mild_and_light_stay_within_their_ranges() {
    let mild = seen("mild");
    spans("sigma", &mild.sigma, 0.2, 1.5);
    spans("gaussian", &mild.gaussian, 1.0, 15.0);
    spans("poisson", &mild.poisson, 0.05, 2.0);
    spans("quality", &mild.quality, 60.0, 100.0);
    let light = seen("light");
    spans("sigma", &light.sigma, 0.0, 1.0);
    spans("gaussian", &light.gaussian, 0.0, 6.0);
    spans("quality", &light.quality, 70.0, 98.0);
    assert!(light.poisson.is_empty());
}

#[test]
fn fixed_presets_draw_their_constants() {
    let mixture = seen("mixture");
    assert!(mixture.sigma.iter().all(|s| *s == 2.0) && mixture.gaussian.iter().all(|s| *s == 20.0));
    assert!(
        mixture.quality.len() == 400
            && mixture.quality.iter().all(|q| *q == 50.0)
            && mixture.grey == 0
    );
    let x8 = run("x8", 1, OutputSize::Small);
    assert!(
        matches!(
            x8.drawn[..],
            [Drawn::Resize {
                width: 12,
                height: 10,
                ..
            }]
        ),
        "{:?}",
        x8.drawn
    );
}

#[test]
fn words_say_what_was_drawn() {
    assert_eq!(
        run("x8", 1, OutputSize::Input).descriptors,
        ["low quality", "low resolution"]
    );
    let all = [
        "low quality",
        "low resolution",
        "blurry",
        "noisy",
        "compressed",
    ];
    assert_eq!(run("mixture", 1, OutputSize::Input).descriptors, all);
    let mut counts = [0; 5];
    for seed in 0..200 {
        let light = run("light", seed, OutputSize::Small);
        for (count, word) in counts.iter_mut().zip(all) {
            *count += usize::from(light.descriptors.contains(&word));
        }
        let worst = light
            .drawn
            .iter()
            .filter_map(|d| {
                if let Drawn::Jpeg { quality } = d {
                    Some(*quality)
                } else {
                    None
                }
            })
            .min();
        assert_eq!(
            light.descriptors.contains(&"compressed"),
            worst.is_some_and(|q| q <= 75)
        );
    }
    assert!(
        counts[0] == 200 && counts[1..].iter().all(|&n| n < 100),
        "light is mostly light: {counts:?}"
    );
}

#[test]
fn presets_are_ordered_by_how_much_they_spoil() {
    let spoilt = |name: &str| {
        let kept: f64 = (0..24)
            .map(|seed| {
                let pair = run(name, seed, OutputSize::Input);
                detail(&pair.image, &pair.target).expect("same size")
            })
            .sum();
        kept / 24.0
    };
    let kept = ["light", "mild", "realesrgan"].map(spoilt);
    assert!(
        kept[0] > 0.5 && kept[0] > kept[1] && kept[1] > kept[2],
        "{kept:?}"
    );
}

/// Prints milliseconds a 128 px crop; run by name with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a law"]
#[expect(clippy::print_stdout, reason = "the measurement is the output")]
fn milliseconds_per_crop() {
    let photo = photo(128, 128);
    for name in Degradation::PRESETS {
        let law = Degradation::preset(name).expect("known");
        let start = std::time::Instant::now();
        for seed in 0..100 {
            degrade(&photo, &law, &mut stream(seed, name), OutputSize::Input);
        }
        println!("{name:12} {:.2} ms", start.elapsed().as_secs_f64() * 10.0);
    }
    if let Some(folder) = std::env::var_os("RECLAIR_LOOK") {
        for name in Degradation::PRESETS {
            let pair = run(name, 5, OutputSize::Input);
            io::save(
                &pair.image,
                std::path::Path::new(&folder).join(format!("{name}.png")),
            )
            .expect("writable");
        }
    }
}
