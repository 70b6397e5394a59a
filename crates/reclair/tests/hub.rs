//! Downloading priors, against a small server on this machine that speaks as the hub does.

#[path = "hub/server.rs"]
mod server;

mod priors_on_disk;
mod program;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use program::{picture, said, save, text};
use server::{COMMIT, Manner, Server};

/// A repository, a cache of its own, and the program between them.
struct Scene {
    folder: tempfile::TempDir,
    server: Server,
}

impl Scene {
    /// The tiny prior of SDXL's shape as `someone/tiny`, with what the hub has beside it.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repository = folder.path().join("repository");
        priors_on_disk::sdxl(&repository);
        let index = r#"{"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "image_encoder": [null, null]}"#;
        for (name, contents) in [
            ("model_index.json", index),
            ("LICENSE.md", "Be kind.\u{1b}[2J\n"),
            ("README.md", "a model"),
            ("unet/model.onnx", "not wanted"),
            ("unet/diffusion_pytorch_model.bin", "a pickle"),
        ] {
            std::fs::write(repository.join(name), contents).expect("writes");
        }
        Self {
            server: Server::start(&repository),
            folder,
        }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("home/hub")
    }

    fn repository_in_cache(&self) -> PathBuf {
        self.cache().join("models--someone--tiny")
    }

    fn run(&self, args: &[&str], more: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reclair"));
        for name in [
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "http_proxy",
            "HTTP_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command
            .args(args)
            .env("HF_HOME", self.folder.path().join("home"))
            .env("HF_ENDPOINT", self.server.address())
            .envs(more.iter().copied())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("the program starts")
    }

    fn refuses(&self, args: &[&str], more: &[(&str, &str)]) -> String {
        let output = self.run(args, more);
        let text = said(&output);
        assert!(
            !output.status.success() && !text.contains("panicked"),
            "{text}"
        );
        let line = text.lines().rfind(|line| line.starts_with("error: "));
        line.unwrap_or_else(|| panic!("no error line: {text}"))
            .to_owned()
    }

    fn downloads(&self) -> PathBuf {
        let output = self.run(&["download", "someone/tiny", "--accept-license"], &[]);
        assert!(output.status.success(), "{}", said(&output));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }
}

fn files_under(folder: &Path) -> Vec<String> {
    let mut files: Vec<String> = walkdir::WalkDir::new(folder)
        .into_iter()
        .flatten()
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| {
            entry
                .path()
                .strip_prefix(folder)
                .expect("inside")
                .display()
                .to_string()
        })
        .collect();
    files.sort();
    files
}

#[test]
fn restore_shows_the_licence_downloads_once_and_works_offline_afterwards() {
    let scene = Scene::new();
    let input = save(scene.folder.path(), "in.png", &picture(40, 32));
    let out = scene.folder.path().join("out.png");
    let args = [
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--steps",
        "1",
        "--prior",
        "someone/tiny",
    ];
    let line = scene.refuses(&args, &[]);
    assert!(
        line.contains("--accept-license") && !scene.repository_in_cache().exists(),
        "{line}"
    );
    let output = scene.run(&[&args[..], &["--accept-license"]].concat(), &[]);
    let talk = said(&output);
    assert!(output.status.success(), "{talk}");
    assert!(
        talk.contains("licence: openrail++")
            && talk.contains("Be kind.[2J")
            && talk.contains(COMMIT),
        "{talk}"
    );
    pixels::io::open(&out).expect("a picture");

    let root = scene.repository_in_cache();
    assert_eq!(
        std::fs::read_to_string(root.join("refs/main")).expect("a ref"),
        COMMIT
    );
    let files = files_under(&root.join("snapshots").join(COMMIT));
    assert!(
        files.contains(&"LICENSE.md".to_owned())
            && files.contains(&"unet/diffusion_pytorch_model.safetensors".to_owned())
    );
    assert!(
        !files
            .iter()
            .any(|file| file.ends_with(".bin") || file.ends_with(".onnx") || file == "README.md"),
        "{files:?}"
    );
    let blobs = files_under(&root.join("blobs"));
    assert!(blobs.iter().all(|name| !name.contains('.')), "{blobs:?}");
    #[cfg(unix)]
    {
        let link = root.join("snapshots").join(COMMIT).join("unet/config.json");
        let to = std::fs::read_link(link).expect("a link");
        assert!(to.starts_with("../../../blobs"), "{}", to.display());
    }

    // All there: no request more, with the network forbidden too.
    let before = scene.server.requests();
    assert!(
        scene
            .run(&args, &[("HF_HUB_OFFLINE", "1")])
            .status
            .success()
    );
    assert!(scene.run(&args, &[]).status.success());
    let pinned = format!("someone/tiny@{COMMIT}");
    assert!(
        scene
            .run(&["info", "--prior", &pinned], &[])
            .status
            .success()
    );
    assert_eq!(scene.server.requests(), before);
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let scene = Scene::new();
    scene.server.set(Manner::BreaksAfter(700));
    let line = scene.refuses(&["download", "someone/tiny", "--accept-license"], &[]);
    assert!(line.contains("check the network"), "{line}");
    let root = scene.repository_in_cache();
    let part = files_under(&root.join("blobs"));
    assert!(
        part.iter().any(|name| name.ends_with(".incomplete")),
        "{part:?}"
    );
    assert!(!root.join("refs").exists());
    // What is there already is not asked for again.
    scene.server.set(Manner::Well);
    let snapshot = scene.downloads();
    assert!(
        scene.server.ranges().iter().any(|from| *from > 0),
        "nothing was resumed"
    );
    let repository = scene.folder.path().join("repository");
    for file in files_under(&snapshot) {
        let (got, want) = (
            std::fs::read(snapshot.join(&file)),
            std::fs::read(repository.join(&file)),
        );
        assert!(
            got.expect("reads") == want.expect("reads"),
            "{file} is another file"
        );
    }
    // A file that is lost later is fetched again, and that alone.
    let lost = snapshot.join("vae/config.json");
    std::fs::remove_file(std::fs::canonicalize(&lost).expect("a blob")).expect("removes");
    let before = scene.server.requests();
    scene.downloads();
    assert!(lost.is_file());
    assert_eq!(
        scene.server.requests(),
        before + 3,
        "the listing, the licence and one file"
    );
}

#[test]
fn a_server_that_ignores_ranges_or_sends_other_bytes_leaves_no_wrong_file() {
    let scene = Scene::new();
    scene.server.set(Manner::BreaksAfter(700));
    scene.refuses(&["download", "someone/tiny", "--accept-license"], &[]);
    scene.server.set(Manner::IgnoresRanges);
    let snapshot = scene.downloads();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let want = std::fs::read(scene.folder.path().join("repository").join(file)).expect("reads");
    assert!(std::fs::read(snapshot.join(file)).expect("reads") == want);

    let scene = Scene::new();
    scene.server.set(Manner::OtherBytes);
    let line = scene.refuses(&["download", "someone/tiny", "--accept-license"], &[]);
    assert!(line.contains("did not arrive"), "{line}");
    let large = files_under(&scene.repository_in_cache().join("blobs"));
    assert!(large.iter().all(|name| name.len() == 40), "{large:?}");
}

#[test]
fn what_cannot_be_had_is_said_with_what_to_do() {
    let scene = Scene::new();
    let of = |id: &str, more: &[(&str, &str)]| {
        scene.refuses(&["download", id, "--accept-license"], more)
    };
    assert!(of("someone/other", &[]).contains("the hub has no such model (404)"));
    assert!(of("someone/tiny@v9", &[]).contains("(404)"));
    assert!(of("tiny", &[]).contains("OWNER/NAME"));
    assert!(of("someone/../tiny", &[]).contains("OWNER/NAME"));
    assert!(of("someone/tiny", &[("HF_HUB_OFFLINE", "1")]).contains("HF_HUB_OFFLINE is set"));
    assert!(of("someone/tiny", &[("HF_ENDPOINT", "ftp://x")]).contains("HF_ENDPOINT is"));
    assert!(
        of("someone/tiny", &[("HF_ENDPOINT", "http://127.0.0.1:9")])
            .contains("check the network and HF_ENDPOINT")
    );
    scene.server.set(Manner::Gated);
    let line = of("someone/tiny", &[]);
    assert!(
        line.contains("accept the licence at http") && line.contains("HF_TOKEN"),
        "{line}"
    );
    // With the token it goes, and the token does not follow the redirect to another host.
    let output = scene.run(
        &["download", "someone/tiny", "--accept-license"],
        &[("HF_TOKEN", "secret")],
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(!scene.server.token_left_home());
    scene.server.set(Manner::Nonsense);
    assert!(of("someone/tiny@other", &[]).contains("is no JSON"));
}
