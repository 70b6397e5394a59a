//! `data check|preview|caption`, shards, `--captioner` and `report`.

mod program;

use std::path::Path;

use pixels::Image;
use program::{
    not_in_itself, picture, refuses, said, save, text,
    toy::{config, model, photos, shard, weights},
    works,
};
use serde_json::Value;

/// Texture that no enlargement has: neighbours differ.
fn fine(width: usize, height: usize, seed: usize) -> Image {
    Image::from_fn(width, height, |c, y, x| {
        let hash = (x * 73 + y * 151 + c * 31 + seed * 977).wrapping_mul(2_654_435_761) >> 7;
        let noise = (hash % 1000) as f32 / 1000.0 - 0.5;
        let wave = (x as f32 * 0.03 + seed as f32).sin() * (y as f32 * 0.05).cos();
        (0.5 + 0.25 * wave + 0.2 * noise).clamp(0.0, 1.0)
    })
}

fn lines(output: &std::process::Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |line| serde_json::from_str(line).expect("a JSON line");
    text.lines().map(line).collect()
}

/// A JPEG file of this quality.
fn jpeg(image: &Image, quality: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let side = |side| u16::try_from(side).expect("small");
    jpeg_encoder::Encoder::new(&mut file, quality)
        .encode(
            &image.to_u8(),
            side(image.width),
            side(image.height),
            jpeg_encoder::ColorType::Rgb,
        )
        .expect("encodes");
    file
}

#[test]
fn check_finds_what_is_wrong_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let good = fine(300, 280, 1);
    save(at, "a_good.png", &good);
    save(at, "b_good.png", &fine(300, 280, 2));
    save(at, "c_small.png", &fine(100, 300, 3));
    std::fs::copy(at.join("a_good.png"), at.join("d_same.png")).expect("copies");
    let mut lighter = good.clone();
    lighter
        .rgb
        .iter_mut()
        .for_each(|v| *v = (*v + 0.01).min(1.0));
    save(at, "e_like.png", &lighter);
    std::fs::write(at.join("f_broken.png"), b"nothing").expect("writes");
    let large = pixels::resize::scale(
        &fine(160, 150, 4),
        320,
        300,
        pixels::resize::Filter::CatmullRom,
    );
    save(at, "g_enlarged.png", &large);
    std::fs::write(at.join("a_good.txt"), "texture").expect("writes");
    // Heavily compressed, and what was made of such a file; lightly compressed is no finding.
    std::fs::write(at.join("h_jpeg.jpg"), jpeg(&fine(300, 280, 5), 30)).expect("writes");
    let unpacked = pixels::degrade::jpeg(&fine(300, 280, 6), 30);
    save(at, "i_unpacked.png", &unpacked);
    save(at, "j_good.jpg", &fine(300, 280, 7));
    let output = works(&["data", "check", text(at), "--json"]);
    let found: Vec<(String, String)> = lines(&output)
        .iter()
        .map(|line| {
            let file = Path::new(line["file"].as_str().expect("a name"));
            let name = file.file_name().expect("a name").to_string_lossy();
            (
                name[..1].to_owned(),
                line["kind"].as_str().expect("a kind").to_owned(),
            )
        })
        .collect();
    let wanted = [
        ("c", "too_small"),
        ("d", "duplicate"),
        ("e", "duplicate"),
        ("f", "unreadable"),
        ("g", "enlarged"),
        ("h", "compressed"),
        ("i", "compressed"),
    ];
    assert_eq!(found, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(
        said(&output).contains("10 pictures, 1 with a caption: 7 findings"),
        "{}",
        said(&output)
    );
    let found = lines(&output);
    assert_eq!(found[5]["value"], 30.0, "the quality it was saved at");
    assert!(
        found[5]["detail"]
            .as_str()
            .expect("words")
            .contains("JPEG quality 30")
    );
    assert!(found[6]["value"].as_f64().expect("a score") > 1.3);
    // A limit is an option.
    let fewer = works(&["data", "check", text(at), "--min-side", "100", "--json"]);
    assert_eq!(lines(&fewer).len(), 6);
    let lenient = ["--min-quality", "30", "--max-blockiness", "9", "--json"];
    let lenient = works(&[&["data", "check", text(at)], &lenient[..]].concat());
    assert!(
        lines(&lenient)
            .iter()
            .all(|line| line["kind"] != "compressed")
    );
    assert!(refuses(&["data", "check", text(&at.join("none"))]).contains("none"));
}

/// The caption of one of the toy's pictures, by its file's name or its place in a shard.
fn caption_of(name: &str) -> &str {
    match name.ends_with("/1.png") {
        true => "a disc on waves, in JSON",
        false => "a disc on waves",
    }
}

#[test]
fn preview_shows_the_first_samples_and_says_what_was_drawn() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let images = at.join("photos");
    let sheet = |name: &str| {
        let out = at.join(name);
        let args = [
            "data",
            "preview",
            text(&images),
            "--crop",
            "32",
            "--count",
            "3",
            "--preset",
            "mixture",
        ];
        let lines = lines(&works(&[&args[..], &["-o", text(&out)]].concat()));
        (std::fs::read(out).expect("written"), lines)
    };
    let (first, lines) = sheet("a.png");
    assert!(first == sheet("b.png").0, "the same seed");
    assert_eq!(lines.len(), 3);
    for line in &lines {
        let name = line["name"].as_str().expect("a name");
        assert_eq!(line["caption"], caption_of(name));
        assert!(
            line["descriptors"].to_string().contains("compressed"),
            "{line}"
        );
        assert!(!line["drawn"].as_array().expect("a list").is_empty());
    }
    let image = pixels::io::open(at.join("a.png")).expect("a picture");
    assert!(
        image.width >= 64 && image.height >= 96,
        "{}x{}",
        image.width,
        image.height
    );
    let page = String::from_utf8(sheet("a.html").0).expect("text");
    assert!(page.contains("data:image/png;base64,") && page.contains("a disc on waves"));
    assert_eq!(not_in_itself(&page), Vec::<String>::new());
    assert!(!page.contains("http"), "nothing from elsewhere");
}

#[test]
fn shards_train_like_their_pictures_whatever_the_number_of_workers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let shards = at.join("shards");
    std::fs::create_dir(&shards).expect("makes the folder");
    shard(at, "shards/one.tar", &[0, 1]);
    shard(at, "shards/two.tar", &[2]);
    let model = model(at);
    let vae = "prior/vae/diffusion_pytorch_model.safetensors";
    let mut results = Vec::new();
    for (name, images, workers) in [
        ("files", "photos", 1),
        ("one", "shards", 1),
        ("many", "shards", 4),
    ] {
        let run = config(at, name, "vae", &model, 6, "");
        let toml = std::fs::read_to_string(&run).expect("written");
        let data = format!("[data]\nworkers = {workers}\nimages = \"{images}\"");
        std::fs::write(&run, toml.replace("[data]\nimages = \"photos\"", &data)).expect("writes");
        works(&["train", text(&run)]);
        results.push(weights(at, name, vae));
    }
    assert!(
        results[0] == results[1],
        "shards hold the same pictures in the same order"
    );
    assert!(results[1] == results[2], "four workers");
    let preview = works(&[
        "data",
        "preview",
        text(&shards),
        "--crop",
        "32",
        "-o",
        text(&at.join("p.png")),
    ]);
    let samples = lines(&preview);
    let name = |line: &Value| line["name"].as_str().expect("a name").to_owned();
    assert!(
        samples
            .iter()
            .any(|line| name(line).ends_with("one.tar/1.png"))
    );
    for line in &samples {
        assert_eq!(line["caption"], caption_of(&name(line)), "{line}");
    }
    let captions = "3 pictures, 3 with a caption";
    for images in [&shards, &at.join("photos")] {
        let check = works(&["data", "check", text(images)]);
        assert!(said(&check).contains(captions), "{}", said(&check));
    }
    // A blank text file says nothing: the JSON beside it does.
    std::fs::write(at.join("photos/1.txt"), " \n").expect("writes");
    let check = works(&["data", "check", text(&at.join("photos"))]);
    assert!(said(&check).contains(captions), "{}", said(&check));
    shard(at, "blank.tar", &[1]);
    let check = works(&["data", "check", text(&at.join("blank.tar"))]);
    assert!(
        said(&check).contains("1 pictures, 1 with"),
        "{}",
        said(&check)
    );
    // A shard that was cut short is said, and so is a compressed one.
    let one = shards.join("one.tar");
    let bytes = std::fs::read(&one).expect("reads");
    std::fs::write(&one, &bytes[..bytes.len() / 3]).expect("writes");
    let line = refuses(&["data", "check", text(&shards)]);
    assert!(line.contains("one.tar") && line.contains("again"), "{line}");
    std::fs::rename(&one, shards.join("one.tar.gz")).expect("moves");
    assert!(refuses(&["data", "check", text(&shards)]).contains("compressed shards"));
}

#[cfg(unix)]
#[test]
fn a_captioner_is_asked_once_and_its_words_are_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let images = at.join("with space");
    std::fs::create_dir(&images).expect("makes the folder");
    for name in ["a.png", "b.png"] {
        save(&images, name, &picture(24, 24));
    }
    std::fs::write(images.join("b.txt"), "already said").expect("writes");
    let asked = at.join("asked");
    let says = format!(
        "printf 'x\\n' >> '{}'; echo; echo '  blurry  '; echo more #",
        text(&asked)
    );
    // The path is the command's last argument, which the comment sign swallows here.
    let caption = ["data", "caption", text(&images), "--captioner", &says];
    assert!(said(&works(&caption)).contains("2 pictures, 1 captions written"));
    let read = |path: &Path| std::fs::read_to_string(path).expect("written");
    assert_eq!(read(&images.join("a.txt")), "blurry\n");
    assert_eq!(read(&images.join("b.txt")), "already said");
    works(&caption);
    assert_eq!(read(&asked), "x\n", "asked once");
    // The path is given whole.
    std::fs::remove_file(images.join("a.txt")).expect("removes");
    works(&["data", "caption", text(&images), "--captioner", "basename"]);
    assert_eq!(read(&images.join("a.txt")), "a.png\n");
    std::fs::remove_file(images.join("a.txt")).expect("removes");
    assert!(refuses(&["data", "caption", text(&images), "--captioner", "false"]).contains("false"));
    // In `restore` the caption is the prompt.
    let (input, out) = (images.join("a.png"), at.join("out.png"));
    let restore = |more: &[&str]| {
        let args = [
            "restore",
            text(&input),
            "-o",
            text(&out),
            "--steps",
            "2",
            "--strength",
            "0.9",
        ];
        works(&[&args[..], more].concat());
        std::fs::read(&out).expect("written")
    };
    let bare = restore(&[]);
    let captioned = restore(&["--captioner", "echo blurry #"]);
    assert!(captioned == restore(&["--prompt", "blurry"]) && captioned != bare);
    // It lies beside the picture now, is not read unasked, and is not asked for again.
    assert_eq!(read(&images.join("a.txt")), "blurry\n");
    assert!(
        bare == restore(&[]),
        "without a captioner the prompt is empty"
    );
    assert!(captioned == restore(&["--captioner", "echo another #"]));
    assert_eq!(read(&images.join("a.txt")), "blurry\n");
    assert!(
        captioned != restore(&["--prompt", "another"]),
        "it would matter"
    );
}

#[test]
fn a_report_is_made_of_a_run_and_refused_without_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let run = config(at, "run", "vae", &model(at), 4, "");
    works(&["train", text(&run)]);
    let page = at.join("page.html");
    works(&["report", text(&at.join("run")), "-o", text(&page)]);
    let page = std::fs::read_to_string(page).expect("written");
    for part in ["<svg", "data:image/", "</figure>"] {
        assert!(page.contains(part), "{part}");
    }
    for part in ["Loss", "Validation PSNR, dB", "Validation SSIM and detail"] {
        assert!(
            page.contains(&format!("<h2>{part}</h2>\n<figure><svg")),
            "{part}"
        );
    }
    let grids = ["Step 2", "Step 4"].map(|step| {
        let (before, _) = page
            .split_once(&format!("<figcaption>{step}</figcaption>"))
            .expect(step);
        let (_, picture) = before
            .rsplit_once("src=\"data:image/jpeg;base64,")
            .expect(step);
        picture.split('"').next().expect("an end")
    });
    assert!(
        grids[0].len() > 1000 && grids[0] != grids[1],
        "two pictures"
    );
    assert_eq!(not_in_itself(&page), Vec::<String>::new());
    for part in [
        "<img src=\"x.png\">",
        "<a href='https://a'>",
        "a{b:url(c)}",
        "<SCRIPT>",
    ] {
        assert_eq!(not_in_itself(part).len(), 1, "{part}");
    }
    assert!(refuses(&["report", text(&at.join("photos"))]).contains("log.jsonl"));
}

#[test]
fn photographs_smaller_than_the_crop_are_counted_and_left_out_or_enlarged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    photos(at);
    let model = model(at);
    let vae = "prior/vae/diffusion_pytorch_model.safetensors";
    let run = |name: &str, small: &str| {
        let run = config(at, name, "vae", &model, 6, "");
        let toml = std::fs::read_to_string(&run).expect("written");
        let toml = toml.replace("crop_px = 32", &format!("crop_px = 32\n{small}"));
        std::fs::write(&run, toml.replace("validation = \"photos\"", "")).expect("writes");
        run
    };
    let trained = |name: &str, small: &str| {
        let said = said(&works(&["train", text(&run(name, small))]));
        (said, weights(at, name, vae))
    };
    let (silent, before) = trained("before", "");
    assert!(!silent.contains("smaller"), "{silent}");
    // Between the others in order, a pixel short on one side.
    save(&at.join("photos"), "1-small.png", &picture(80, 31));
    for (i, small) in ["small = \"skip\"", ""].into_iter().enumerate() {
        let (said, skipped) = trained(&format!("skipped-{i}"), small);
        let count =
            "1 of 4 pictures have a side smaller than the crop of 32 pixels and are left out";
        assert!(said.contains(count), "{said}");
        assert!(skipped == before, "as if it were not there");
    }
    let log = std::fs::read_to_string(at.join("skipped-0/log.jsonl")).expect("a log");
    assert_eq!(log.matches("\"note\":").count(), 1, "{log}");
    let page = std::fs::read_to_string(at.join("skipped-0/report.html")).expect("a report");
    assert!(page.contains("are left out"));
    let (said_so, enlarged) = trained("enlarged", "small = \"enlarge\"");
    assert!(
        said_so.contains("1 of 4") && said_so.contains("are enlarged"),
        "{said_so}"
    );
    assert!(enlarged != before);
    let plan = works(&["train", text(&run("planned", "")), "--plan"]);
    assert!(said(&plan).contains("1 of 4"), "{}", said(&plan));
    let preview = works(&[
        "data",
        "preview",
        text(&at.join("photos")),
        "--crop",
        "32",
        "-o",
        text(&at.join("p.png")),
    ]);
    assert!(
        said(&preview).contains("1 of 4"),
        "the preview is of the run's samples"
    );
    // Nothing left.
    let none = run("none", "");
    let toml = std::fs::read_to_string(&none).expect("written");
    std::fs::write(&none, toml.replace("crop_px = 32", "crop_px = 96")).expect("writes");
    let why = refuses(&["train", text(&none)]);
    assert!(
        why.contains("each of the 4 pictures") && why.contains("data.small"),
        "{why}"
    );
}
