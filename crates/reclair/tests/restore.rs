//! `restore` on pictures.

mod program;

use program::{copy, mini, picture, reclair, refuses, said, save, text, works};
use serde_json::Value;

fn quick<'a>(input: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["restore", input, "-o", output, "--steps", "2"]
}

#[test]
fn a_picture_keeps_its_size_alpha_and_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut image = picture(70, 45);
    image.alpha = Some((0..70 * 45).map(|i| (i % 256) as f32 / 255.0).collect());
    let input = save(folder.path(), "with alpha.png", &image);
    let out = folder.path().join("results/");
    works(&quick(text(&input), &format!("{}/", text(&out))));
    let restored = pixels::io::open(out.join("with alpha.png")).expect("a picture");
    assert_eq!((restored.width, restored.height), (70, 45));
    assert_eq!(restored.alpha, image.alpha);
    assert_ne!(restored.rgb, image.rgb);
}

#[test]
fn one_pixel_is_restored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "dot.png", &picture(1, 1));
    let out = folder.path().join("out.png");
    works(&quick(text(&input), text(&out)));
    let restored = pixels::io::open(&out).expect("a picture");
    assert_eq!((restored.width, restored.height), (1, 1));
}

#[test]
fn scale_enlarges() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(33, 20));
    let out = folder.path().join("out.png");
    let mut args = quick(text(&input), text(&out));
    args.extend(["--scale", "2.5"]);
    works(&args);
    let restored = pixels::io::open(&out).expect("a picture");
    assert_eq!((restored.width, restored.height), (83, 50));
}

#[test]
fn the_same_bytes_at_one_and_two_threads_and_with_the_same_seed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(100, 60));
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut args = quick(text(&input), text(&out));
        args.extend(more);
        works(&args);
        std::fs::read(&out).expect("written")
    };
    let one = run("1.png", &["--threads", "1"]);
    assert!(
        one == run("2.png", &["--threads", "2"]),
        "threads change the picture"
    );
    assert!(
        one == run("again.png", &[]),
        "the same seed gives other bytes"
    );
    assert!(
        one != run("other.png", &["--seed", "1"]),
        "the seed does nothing"
    );
}

#[test]
fn every_sampler_repeats_itself_and_is_another() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(32, 32));
    let run = |name: &str, sampler: &str| {
        let out = folder.path().join(name);
        let args = ["restore", text(&input), "-o", text(&out)];
        works(&[&args[..], &["--steps", "4", "--sampler", sampler]].concat());
        std::fs::read(&out).expect("written")
    };
    let mut seen = vec![];
    for sampler in ["euler", "euler-a", "edm", "heun", "dpm", "dpm++", "unipc"] {
        let bytes = run("1.png", sampler);
        assert!(bytes == run("2.png", sampler), "{sampler} differs");
        assert!(!seen.contains(&bytes), "{sampler} is one of the others");
        seen.push(bytes);
    }
    assert!(
        run("1.png", "ddim") == seen[0],
        "on a flow prior DDIM is Euler"
    );
}

#[test]
fn a_preset_gives_what_is_not_given() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(24, 24));
    let out = folder.path().join("out.png");
    let options = |more: &[&str]| {
        let args = ["restore", text(&input), "-o", text(&out), "--json"];
        let line = works(&[&args[..], more].concat()).stdout;
        let line: Value = serde_json::from_slice(&line).expect("a JSON line");
        line["options"].clone()
    };
    let of = |options: &Value| {
        ["steps", "cfg_scale", "sampler", "start"].map(|key| options[key].to_string())
    };
    let mini = of(&options(&[]));
    assert_eq!(
        mini,
        ["1", "1.0", "\"euler\"", "{\"lq\":{\"strength\":0.3}}"]
    );
    let paper = options(&["--preset", "paper", "--steps", "2"]);
    assert_eq!(of(&paper), ["2", "7.5", "\"euler\"", "\"noise\""]);
    let rss = &paper["rss"];
    assert_eq!(
        (&rss["weight"], &rss["threshold"]),
        (&0.05.into(), &0.8.into())
    );
    let quick = options(&["--preset", "quick", "--rss-weight", "0"]);
    assert_eq!(
        of(&quick),
        ["20", "7.5", "\"dpm_solver_plus_plus\"", "\"noise\""]
    );
    assert!(quick["rss"].is_null());
    let more = [
        "--sampler",
        "edm",
        "--s-churn",
        "2",
        "--cfg",
        "3:1.5",
        "--start",
        "lq",
    ];
    let own = options(&[&["--preset", "quick", "--steps", "2"], &more[..]].concat());
    assert_eq!(own["sampler"]["edm"]["s_churn"], 2.0);
    assert_eq!(own["sampler"]["edm"]["s_noise"], 1.003);
    assert_eq!(
        (&own["cfg_scale"]["first"], &own["cfg_scale"]["last"]),
        (&3.0.into(), &1.5.into())
    );
    assert_eq!(own["start"]["lq"]["strength"], 0.5);
}

#[test]
fn sharpening_raises_contrasts_where_the_result_is_soft() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wide = |x: usize| ((x as f32 - 20.0) / 4.0).tanh() * 0.3 + 0.5;
    let soft = pixels::Image::from_fn(40, 32, |_, _, x| wide(x));
    let contrast = |input: &str, sharpen: &str| {
        let out = folder.path().join(format!("{sharpen}-of-{input}"));
        let input = folder.path().join(input);
        let args = ["restore", text(&input), "-o", text(&out), "--steps", "1"];
        works(&[&args[..], &["--sharpen", sharpen]].concat());
        let image = pixels::io::open(&out).expect("a picture");
        let row = |y: usize| &image.plane(1)[y * 40..(y + 1) * 40];
        (0..32)
            .flat_map(|y| row(y).windows(2))
            .map(|pair| f64::from((pair[0] - pair[1]).abs()))
            .sum::<f64>()
    };
    save(folder.path(), "soft.png", &soft);
    save(folder.path(), "fine.png", &picture(40, 32));
    let [none, little, more] = ["0", "0.3", "1"].map(|weight| contrast("soft.png", weight));
    assert!(none < little && little < more, "{none} {little} {more}");
    let [none, more] = ["0", "1"].map(|weight| contrast("fine.png", weight));
    assert_eq!(none, more);
}

#[test]
fn a_descriptor_moves_the_picture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(64, 64));
    let run = |name: &str, prompt: &str| {
        let out = folder.path().join(name);
        let mut args = quick(text(&input), text(&out));
        args.extend(["--prompt", prompt]);
        works(&args);
        pixels::io::open(&out).expect("a picture")
    };
    let null = run("null.png", "");
    let bad = run("bad.png", "low quality, noisy, compressed");
    let psnr = pixels::score::psnr(&bad, &null, pixels::colour::Luma::Rgb).expect("same size");
    assert!(psnr < 60.0, "the prompt moves nothing: {psnr} dB");
}

#[test]
fn inactive_guidance_is_said_and_active_guidance_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(32, 32));
    let out = folder.path().join("out.png");
    let run = |steps: &str, start: &str| {
        let (input, out) = (text(&input), text(&out));
        let guided = ["--rss-weight", "0.05", "--steps", steps, "--start", start];
        said(&works(
            &[&["restore", input, "-o", out], &guided[..]].concat(),
        ))
    };
    assert!(run("2", "lq").contains("guidance is inactive"));
    assert!(!run("20", "noise").contains("inactive"));
}

#[test]
fn a_bad_file_stops_no_other_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("in");
    std::fs::create_dir(&input).expect("makes the folder");
    save(&input, "good.png", &picture(24, 24));
    std::fs::write(input.join("empty.png"), []).expect("writes");
    std::fs::write(input.join("text.png"), "this is text").expect("writes");
    std::fs::write(input.join("notes.md"), "no picture").expect("writes");
    let whole = pixels::io::encode(&picture(64, 64), pixels::io::Format::Jpeg, "x.jpg".as_ref())
        .expect("encodes");
    std::fs::write(input.join("cut.jpg"), &whole[..whole.len() / 2]).expect("writes");
    let mut header = std::fs::read(input.join("good.png")).expect("reads");
    // 60,000 x 60,000 in the header; its checksum is then wrong too, so a whole fixture is in pixels/tests.
    header[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
    std::fs::write(input.join("huge.png"), header).expect("writes");
    let out = folder.path().join("out");
    let output = reclair(quick(text(&input), text(&out)));
    let text = said(&output);
    assert!(!output.status.success());
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("error: "))
            .count(),
        5,
        "four files and the sum: {text}"
    );
    assert!(
        text.contains("skipped 1 files that are no pictures by name: notes.md"),
        "{text}"
    );
    assert!(text.contains("4 of 5 pictures failed"), "{text}");
    let left: Vec<_> = std::fs::read_dir(&out)
        .expect("made")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["good.png"]);
}

#[test]
fn the_hostile_files_of_pixels_are_refused_one_by_one() {
    let bad = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../pixels/tests/bad");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = reclair(quick(text(&bad), text(folder.path())));
    let text = said(&output);
    assert!(
        !output.status.success() && !text.contains("panicked"),
        "{text}"
    );
    let pictures = std::fs::read_dir(&bad)
        .expect("committed")
        .filter(|e| pixels::io::is_picture_name(&e.as_ref().expect("entry").path()))
        .count();
    let errors = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert_eq!(errors, pictures + 1, "one line each and the sum: {text}");
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("there").count(),
        0,
        "nothing half-written"
    );
}

#[test]
fn two_pictures_of_one_stem_keep_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("in");
    std::fs::create_dir(&input).expect("makes the folder");
    for name in ["a.png", "a.jpg", "b.png"] {
        save(&input, name, &picture(16, 16));
    }
    let out = folder.path().join("out");
    works(&quick(text(&input), text(&out)));
    for name in ["a.png.png", "a.jpg.png", "b.png"] {
        assert!(out.join(name).is_file(), "{name}");
    }
}

#[test]
fn no_original_is_written_over_and_results_are_no_inputs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let album = folder.path().join("album");
    std::fs::create_dir(&album).expect("makes the folder");
    let original = save(&album, "a.png", &picture(16, 16));
    save(&album, "b.jpg", &picture(16, 16));
    let before = std::fs::read(&original).expect("reads");
    for output in [&album, &folder.path().join("album/../album")] {
        let line = refuses(&quick(text(&album), text(output)));
        assert!(line.contains("written over"), "{line}");
    }
    let line = refuses(&quick(text(&original), text(&original)));
    assert!(line.contains("written over"), "{line}");
    assert!(std::fs::read(&original).expect("reads") == before);
    assert!(!album.join("b.png").exists());
    let out = album.join("out");
    for _ in 0..2 {
        works(&quick(text(&album), text(&out)));
    }
    assert!(out.join("a.png").is_file() && out.join("b.png").is_file());
    assert!(!out.join("out").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(16, 16));
    let below_a_file = input.join("out.png");
    let line = refuses(&quick(text(&input), text(&below_a_file)));
    assert!(line.contains("cannot be made"), "{line}");
    let line = refuses(&quick(text(&input), text(&folder.path().join("out.xyz"))));
    assert!(line.contains("out.xyz"), "{line}");
}

#[test]
fn a_damaged_prior_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(16, 16));
    let out = folder.path().join("out.png");
    let prior = folder.path().join("prior");
    let run = || {
        let mut args = quick(text(&input), text(&out));
        args.extend(["--prior", text(&prior), "--adapter", "none"]);
        refuses(&args)
    };
    assert!(run().contains("is no file, no folder"), "nothing there");
    let whole = mini().join("prior");
    let unet = prior.join("unet/diffusion_pytorch_model.safetensors");
    let fresh = || {
        let _ = std::fs::remove_dir_all(&prior);
        copy(&whole, &prior);
        std::fs::read(&unet).expect("copied")
    };
    let bytes = fresh();
    std::fs::remove_file(&unet).expect("removes");
    assert!(
        run().contains("unet/diffusion_pytorch_model.safetensors"),
        "a missing file"
    );
    std::fs::write(&unet, &bytes[..bytes.len() - 1000]).expect("writes");
    assert!(run().contains("no whole safetensors file"), "truncated");
    let mut lying = fresh();
    lying[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    std::fs::write(&unet, lying).expect("writes");
    assert!(
        run().contains("no whole safetensors file"),
        "a lying header length"
    );
    fresh();
    std::fs::write(&unet, b"PK\x03\x04 a zip").expect("writes");
    assert!(run().contains("pickle"), "a pickle");
    fresh();
    let config = prior.join("unet/config.json");
    let json = std::fs::read_to_string(&config).expect("copied");
    std::fs::write(&config, json.replace("\"silu\"", "\"mish\"")).expect("writes");
    assert!(run().contains("mish"), "an unsupported activation");
    std::fs::write(&config, json.replace("160", "192")).expect("writes");
    let line = run();
    assert!(
        line.contains("does not fit its config.json") || line.contains("divided"),
        "{line}"
    );
    assert!(!out.exists());
}

#[test]
fn impossible_options_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = save(folder.path(), "in.png", &picture(16, 16));
    let out = folder.path().join("out.png");
    for (more, word) in [
        (["--steps", "0"], "steps"),
        (["--strength", "1.5"], "strength"),
        (["--scale", "0"], "scale"),
        (["--threads", "0"], "threads"),
        (["--rss-weight", "7"], "rss-weight"),
        (["--rss-threshold", "0.6"], "--rss-weight"),
        (["--steps", "50000"], "50000 steps at strength 0.3"),
        (["--rss-mode", "scaled"], "--rss-weight"),
        (["--sharpen", "3"], "sharpen"),
        (["--cfg", "7:x"], "7.5:4"),
        (["--s-churn", "5"], "--sampler edm"),
        (["--spacing", "legacy"], "linspace or trailing"),
        (["--sampler", "unipc-bh1"], "use unipc"),
        (["--start=noise", "--strength=0.5"], "--start lq"),
    ] {
        let mut args = vec!["restore", text(&input), "-o", text(&out)];
        args.extend(more);
        let line = refuses(&args);
        assert!(line.contains(word), "{more:?}: {line}");
    }
    let line = refuses(&[
        "restore",
        text(&folder.path().join("none.png")),
        "-o",
        text(&out),
    ]);
    assert!(line.contains("none.png"), "{line}");
}

#[test]
fn what_the_environment_asks_in_vain_is_said() {
    for (name, value, known) in [
        ("RECLAIR_ISA", "sse", false),
        ("RECLAIR_ISA", "portable", true),
        ("RECLAIR_KERNELS", "no", false),
        ("RECLAIR_KERNELS", "off", true),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_reclair"))
            .arg("info")
            .env(name, value)
            .output()
            .expect("the program starts");
        let told = said(&output).contains(&format!("{name}={value}"));
        assert!(output.status.success() && told != known, "{name}={value}");
    }
}
