//! Running the program and making what it works on, for the tests of the command line.
#![allow(dead_code, reason = "each test binary uses its part of this")]

pub(crate) mod runs;
pub(crate) mod toy;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pixels::Image;

/// Runs `reclair` with these arguments.
pub(crate) fn reclair<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(args: I) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reclair"))
        .args(args)
        .output()
        .expect("the program starts")
}

/// Its standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs it and expects success.
pub(crate) fn works(args: &[&str]) -> Output {
    let output = reclair(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    output
}

/// Runs it and expects failure with one clear line, and no panic; returns the line.
pub(crate) fn refuses(args: &[&str]) -> String {
    let output = reclair(args);
    let text = said(&output);
    assert!(!output.status.success(), "{args:?} was not refused");
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert!(!lines.is_empty(), "{args:?} says nothing: {text}");
    lines[0].to_owned()
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A picture with edges and texture.
pub(crate) fn picture(width: usize, height: usize) -> Image {
    Image::from_fn(width, height, |c, y, x| {
        let disc = (x as f32 - 0.4 * width as f32).hypot(y as f32 - 0.5 * height as f32);
        let inside = if disc < 0.3 * height as f32 {
            0.35
        } else {
            0.0
        };
        let wave = 0.12 * ((x * (c + 2)) as f32 * 0.21).sin() * (y as f32 * 0.17).cos();
        (0.35 + inside + wave + 0.1 * c as f32).clamp(0.0, 1.0)
    })
}

/// Writes a picture and returns its path.
pub(crate) fn save(folder: &Path, name: &str, image: &Image) -> PathBuf {
    let path = folder.join(name);
    pixels::io::save(image, &path).expect("saves");
    path
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("makes the folder");
    for entry in std::fs::read_dir(from).expect("reads the folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("copies");
        }
    }
}

/// What a page would fetch or run: anything but inline data and places in itself.
pub(crate) fn not_in_itself(page: &str) -> Vec<String> {
    let page = page.to_ascii_lowercase();
    let place = |(at, mark): (usize, &str)| {
        let place = page[at + mark.len()..].trim_start_matches(['"', '\'', ' ']);
        let inside = place.starts_with("data:") || place.starts_with('#');
        (!inside).then(|| page[at..].chars().take(60).collect())
    };
    let places = ["src=", "href=", "url("].map(|mark| page.match_indices(mark).filter_map(place));
    let tags = ["<link", "@import", "<script", "<iframe", "<object"];
    let tags = tags.into_iter().filter(|tag| page.contains(tag));
    places
        .into_iter()
        .flatten()
        .chain(tags.map(str::to_owned))
        .collect()
}

/// The repository's folder of mini.
pub(crate) fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini")
}
