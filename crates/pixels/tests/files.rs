//! Files from outside: every layout is read, every hostile one is refused in a clear line, and writing is all or
//! nothing.
//!
//! The fixtures in `bad/` and `kinds/` are made by `make_files.py`.

use std::path::{Path, PathBuf};

use pixels::io::{Format, Limits, decode, encode, open, open_within, save};
use pixels::{Depth, Error, Image};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

fn near(image: &Image, tolerance: f32, sample: impl Fn(usize, usize, usize) -> f32) {
    for c in 0..3 {
        for y in 0..image.height {
            for x in 0..image.width {
                let (got, expected) =
                    (image.plane(c)[y * image.width + x] * 255.0, sample(c, y, x));
                assert!(
                    (got - expected).abs() <= tolerance,
                    "channel {c} at ({x}, {y}): {got}, expected {expected}"
                );
            }
        }
    }
}

/// The picture of `kinds/`, 5 x 3.
fn sample(c: usize, y: usize, x: usize) -> f32 {
    [40.0 * x as f32, 80.0 * y as f32, 200.0][c]
}

fn alpha(y: usize, x: usize) -> f32 {
    (50 * x + y) as f32
}

#[test]
fn hostile_files_are_refused_by_whose_fault() {
    let fault = |error: &Error| match error {
        Error::Input { .. } => "input",
        Error::Unsupported { .. } => "unsupported",
        Error::Limits { .. } => "limits",
        Error::Io { .. } => "io",
        Error::Mismatch { .. } => "mismatch",
    };
    let mut seen = 0;
    for (name, whose, says) in [
        ("empty.png", "input", "empty"),
        ("text.png", "input", "not a picture"),
        ("signature_only.png", "input", "truncated"),
        ("truncated.png", "input", ""),
        ("short_data.png", "input", ""),
        ("damaged.png", "input", "damaged"),
        ("no_pixels.png", "input", ""),
        ("truncated.jpg", "input", "truncated"),
        ("header_only.jpg", "input", "truncated"),
        ("start_only.jpg", "input", "truncated"),
        ("truncated.bmp", "input", ""),
        ("truncated.webp", "input", ""),
        ("loop.tiff", "input", ""),
        ("huge.png", "limits", "60000x60000"),
        ("wide.png", "limits", "memory"),
        ("huge.bmp", "limits", "60000x60000"),
        ("gif_named.png", "unsupported", "Gif"),
        ("phone.jpg", "unsupported", "HEIC"),
        ("animated.webp", "unsupported", "animated"),
        ("missing.png", "io", "No such file"),
        ("", "input", "folder"),
    ] {
        let error = open(fixture("bad").join(name)).expect_err(name);
        let text = error.to_string();
        assert_eq!(fault(&error), whose, "{name}: {text}");
        assert!(text.contains(says) && text.contains(name), "{name}: {text}");
        assert!(
            !text.contains('\n') && text.contains("; "),
            "{name}: one line that ends with what to do: {text}"
        );
        seen += 1;
    }
    let files = std::fs::read_dir(fixture("bad"))
        .expect("the fixtures")
        .count();
    assert_eq!(seen, files + 2, "every file of bad/ is tried");
}

#[test]
fn every_prefix_of_a_file_is_an_error_not_a_panic() {
    for name in [
        "rgb.jpg",
        "progressive.jpg",
        "rgba.png",
        "rgb.webp",
        "rgb.bmp",
        "lzw.tiff",
    ] {
        let bytes = std::fs::read(fixture("kinds").join(name)).expect(name);
        let mut refused = 0;
        for end in 0..bytes.len() {
            refused +=
                usize::from(decode(&bytes[..end], Path::new(name), Limits::default()).is_err());
        }
        // What follows the pixels (PNG's end, TIFF's directory of extras) may be missing.
        assert!(
            refused >= bytes.len() * 3 / 4,
            "{name}: {refused} of {}",
            bytes.len()
        );
        if name.ends_with("jpg") {
            assert_eq!(refused, bytes.len(), "{name}");
        }
    }
}

#[test]
fn any_changed_byte_is_an_error_or_a_picture_not_a_panic() {
    for name in [
        "rgb.jpg",
        "rotated.jpg",
        "cmyk.jpg",
        "rgba.png",
        "palette_alpha.png",
        "rgba.webp",
        "rgb.bmp",
        "lzw.tiff",
    ] {
        let bytes = std::fs::read(fixture("kinds").join(name)).expect(name);
        let limits = Limits {
            side: 4096,
            pixels: 1 << 20,
            file_bytes: 1 << 20,
        };
        for i in 0..bytes.len() {
            for value in [0, 0xFF, bytes[i] ^ 0x80] {
                let mut changed = bytes.clone();
                changed[i] = value;
                let _ = decode(&changed, Path::new(name), limits);
            }
        }
    }
}

#[test]
fn limits_are_the_callers() {
    let path = fixture("kinds/rgb.png");
    for limits in [
        Limits {
            side: 4,
            ..Limits::default()
        },
        Limits {
            pixels: 14,
            ..Limits::default()
        },
        Limits {
            file_bytes: 20,
            ..Limits::default()
        },
    ] {
        assert!(
            matches!(open_within(&path, limits), Err(Error::Limits { .. })),
            "{limits:?}"
        );
    }
    assert!(
        open_within(
            &path,
            Limits {
                side: 5,
                pixels: 15,
                file_bytes: 1000
            }
        )
        .is_ok()
    );
}

#[test]
fn lossless_kinds_are_read_exactly() {
    for name in [
        "rgb.png",
        "palette.png",
        "rgba.png",
        "palette_alpha.png",
        "rgb.webp",
        "rgba.webp",
        "rgb.bmp",
        "lzw.tiff",
    ] {
        let image = open(fixture("kinds").join(name)).expect(name);
        assert_eq!(
            (image.width, image.height, image.depth),
            (5, 3, Depth::Eight),
            "{name}"
        );
        near(&image, 1e-3, sample);
        match name {
            "rgba.png" | "rgba.webp" => {
                let plane = image.alpha.expect(name);
                assert!(
                    (0..15).all(|i| (plane[i] * 255.0 - alpha(i / 5, i % 5)).abs() < 1e-3),
                    "{name}"
                );
            }
            "palette_alpha.png" => {
                assert!(image.alpha.expect(name).iter().all(|a| *a == 128.0 / 255.0))
            }
            _ => assert_eq!(image.alpha, None, "{name}"),
        }
    }
}

#[test]
fn grey_becomes_rgb_and_sixteen_bits_stay() {
    for (name, depth) in [
        ("grey.png", Depth::Eight),
        ("grey16.png", Depth::Sixteen),
        ("grey_alpha.png", Depth::Eight),
    ] {
        let image = open(fixture("kinds").join(name)).expect(name);
        assert_eq!(image.depth, depth, "{name}");
        near(&image, 1e-3, |_, y, x| alpha(y, x));
        assert_eq!(image.alpha.is_some(), name == "grey_alpha.png");
    }
    near(
        &open(fixture("kinds/one_bit.png")).expect("one bit"),
        1e-3,
        |_, y, x| if alpha(y, x) > 60.0 { 255.0 } else { 0.0 },
    );
    let deep = open(fixture("kinds/rgb16.png")).expect("16 bits");
    assert_eq!(deep.plane(0)[1], (40.0 * 257.0 + 1.0) / 65535.0);
}

#[test]
fn jpegs_are_read_whatever_their_name_and_kind() {
    for (name, tolerance) in [
        ("rgb.jpg", 4.0),
        ("progressive.jpg", 4.0),
        ("jpeg_named.png", 4.0),
        ("cmyk.jpg", 8.0),
    ] {
        let image = open(fixture("kinds").join(name)).expect(name);
        assert_eq!((image.width, image.height), (80, 48), "{name}");
        near(&image, tolerance, |c, y, x| sample(c, y / 16, x / 16));
    }
}

#[test]
fn a_camera_held_upright_gives_an_upright_picture() {
    let image = open(fixture("kinds/rotated.jpg")).expect("a JPEG");
    assert_eq!((image.width, image.height), (80, 48));
    near(&image, 4.0, |c, y, x| sample(c, y / 16, x / 16));
    // Saved and opened again it must not turn a second time, and the rest of EXIF is still there.
    let bytes = encode(&image, Format::Jpeg, Path::new("a.jpg")).expect("encodes");
    let again = decode(&bytes, Path::new("a.jpg"), Limits::default()).expect("our own");
    near(&again, 6.0, |c, y, x| sample(c, y / 16, x / 16));
    let exif = again.exif.expect("kept");
    assert!(exif.windows(7).any(|w| w == b"reclair"), "{exif:?}");
}

#[test]
fn only_profiles_of_rgb_are_kept() {
    let image = open(fixture("kinds/icc.tiff")).expect("a TIFF");
    assert_eq!(image.icc.map(|icc| icc.len()), Some(132));
    let mut grey = busy();
    grey.icc.as_mut().expect("one")[16..20].copy_from_slice(b"GRAY");
    let bytes = encode(&grey, Format::Png, Path::new("a.png")).expect("encodes");
    assert_eq!(
        decode(&bytes, Path::new("a.png"), Limits::default())
            .expect("our own")
            .icc,
        None
    );
}

#[test]
fn floating_point_pictures_are_refused() {
    assert!(matches!(
        open(fixture("kinds/float.tiff")),
        Err(Error::Unsupported { .. })
    ));
}

/// Equality field by field, so that a failure stays readable.
fn same(what: &str, got: &Image, expected: &Image) {
    assert_eq!(
        (got.width, got.height, got.depth),
        (expected.width, expected.height, expected.depth),
        "{what}"
    );
    assert!(got.rgb == expected.rgb, "{what}: other colours");
    assert!(got.alpha == expected.alpha, "{what}: another alpha");
    let length = |block: &Option<Vec<u8>>| block.as_ref().map(Vec::len);
    assert!(
        got.icc == expected.icc,
        "{what}: ICC of {:?}, expected {:?}",
        length(&got.icc),
        length(&expected.icc)
    );
    assert!(
        got.exif == expected.exif,
        "{what}: EXIF of {:?}, expected {:?}",
        length(&got.exif),
        length(&expected.exif)
    );
}

fn busy() -> Image {
    let mut image = Image::from_fn(37, 23, |c, y, x| {
        ((x * 7 + y * 13 + c * 31) % 256) as f32 / 255.0
    });
    image.alpha = Some((0..37 * 23).map(|i| (i % 256) as f32 / 255.0).collect());
    let mut icc = vec![0; 132];
    icc[16..20].copy_from_slice(b"RGB ");
    image.icc = Some(icc);
    image
}

#[test]
fn what_is_saved_is_what_is_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, keeps_icc) in [
        ("a.png", true),
        ("a.webp", true),
        ("a.tiff", true),
        ("a.bmp", false),
    ] {
        let path = folder.path().join(name);
        save(&busy(), &path).expect(name);
        let mut expected = busy();
        expected.icc = expected.icc.filter(|_| keeps_icc);
        same(name, &open(&path).expect(name), &expected);
    }
    let path = folder.path().join("a.jpg");
    save(&busy(), &path).expect("a.jpg");
    let image = open(&path).expect("a.jpg");
    assert_eq!((image.alpha, image.icc), (None, busy().icc));
    let deep = Image {
        depth: Depth::Sixteen,
        ..Image::from_fn(9, 7, |c, y, x| (c * 20_000 + y * 300 + x) as f32 / 65535.0)
    };
    for name in ["deep.png", "deep.tif"] {
        save(&deep, folder.path().join(name)).expect(name);
        same(name, &open(folder.path().join(name)).expect(name), &deep);
    }
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("the folder")
            .count(),
        7,
        "nothing else lies there"
    );
}

#[test]
fn a_failed_save_leaves_nothing_and_spoils_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("file"), "a file, not a folder").expect("writable");
    std::fs::create_dir_all(at("taken.png/inside")).expect("writable");
    for path in [at("missing/a.png"), at("file/a.png"), at("taken.png")] {
        let error = save(&busy(), &path).expect_err("cannot be written");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(
            error
                .to_string()
                .ends_with("check that the output folder exists, is writable and has room"),
            "{error}"
        );
    }
    for name in ["a.gif", "a"] {
        assert!(
            matches!(save(&busy(), at(name)), Err(Error::Unsupported { .. })),
            "{name}"
        );
    }
    let mut left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("the folder")
        .map(|f| f.expect("entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["file", "taken.png"]);
}

#[test]
fn too_large_for_the_format_is_said_before_anything_is_written() {
    let long = Image::from_fn(16_384, 1, |_, _, _| 0.5);
    let error = encode(&long, Format::WebP, Path::new("a.webp"))
        .expect_err("too long")
        .to_string();
    assert!(
        error.contains("16384x1") && error.ends_with("save it as .png or .tiff"),
        "{error}"
    );
    assert!(encode(&long, Format::Png, Path::new("a.png")).is_ok());
}
