//! `export --merged --layout single-file`, and `restore` from such a checkpoint.

mod priors_on_disk;
mod program;

use std::path::Path;

use priors::{folder::Folder, weights::SafetensorsFile};
use priors_on_disk::{sd3, sdxl, sdxl_adapter, with_clips_vocabulary, with_unit_projection};
use program::{picture, refuses, said, save, text, works};
use reclair::priors;

/// Restores a small picture from `prior`; the file's bytes and what was said.
fn restore(root: &Path, prior: &Path, more: &[&str]) -> (Vec<u8>, String) {
    let input = save(root, "in.png", &picture(50, 36));
    let out = root.join("out.png");
    let fixed = [
        "restore",
        text(&input),
        "-o",
        text(&out),
        "--steps",
        "2",
        "--prompt",
        "A photo",
    ];
    let output = works(&[&fixed[..], &["--prior", text(prior)], more].concat());
    (std::fs::read(&out).expect("written"), said(&output))
}

fn export(prior: &Path, layout: &str, out: &Path) {
    works(&export_args(prior, layout, out));
}

fn export_args<'a>(prior: &'a Path, layout: &'a str, out: &'a Path) -> [&'a str; 8] {
    let (prior, out) = (text(prior), text(out));
    [
        "export", "--merged", "--layout", layout, "--prior", prior, "-o", out,
    ]
}

/// Every part of the folder is read from the file, tensor by tensor.
fn same_tensors(folder: &Path, file: &Path, parts: &[&str]) {
    let (folder, file) = (
        Folder::open(folder).expect("opens"),
        Folder::open(file).expect("opens"),
    );
    let same = folder.fingerprints().expect("fits") == file.fingerprints().expect("fits");
    assert!(same, "the network has another fingerprint");
    for part in parts {
        let (wanted, got) = (
            folder.stored(part).expect("fits"),
            file.stored(part).expect("fits"),
        );
        assert_eq!(wanted.shapes(), got.shapes(), "{part}");
        for name in wanted.shapes().keys() {
            let tensor = got.tensor(name).expect("there");
            tensor.assert_eq(&wanted.tensor(name).expect("there"), true);
        }
    }
}

#[test]
fn sdxl_is_restored_with_from_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let (prior, adapter, file) = (
        root.join("prior"),
        root.join("adapter"),
        root.join("models/checkpoints/tiny.safetensors"),
    );
    sdxl(&prior);
    let line = refuses(&export_args(&prior, "single-file", &file));
    assert!(line.contains("tokenizer is not CLIP's own"), "{line}");
    with_clips_vocabulary(&prior);
    sdxl_adapter(&prior, &adapter);
    export(&prior, "single-file", &file);
    same_tensors(
        &prior,
        &file,
        &["unet", "vae", "text_encoder", "text_encoder_2"],
    );
    let keys = SafetensorsFile::open(&file).expect("opens");
    for (key, shape) in [
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            &[8, 4, 3, 3][..],
        ),
        (
            "first_stage_model.decoder.mid.attn_1.q.weight",
            &[8, 8, 1, 1],
        ),
        (
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
            &[49_408, 16],
        ),
        (
            "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
            &[72, 24],
        ),
    ] {
        assert_eq!(keys.shape(key), Some(shape), "{key}");
    }
    drop(keys);
    let with = ["--adapter", text(&adapter)];
    let (wanted, nothing) = restore(root, &prior, &with);
    let (got, said) = restore(root, &file, &with);
    assert!(got == wanted, "another picture");
    assert!(!nothing.contains("prior: "), "{nothing}");
    let line = format!(
        "prior: text_encoder, text_encoder_2, unet, vae from {}",
        file.display()
    );
    assert!(said.contains(&line), "{said}");
    // The autoencoder in a file of its own, found beside and given.
    let vae = root.join("models/vae/tiny.safetensors");
    std::fs::create_dir_all(vae.parent().expect("a folder")).expect("makes the folder");
    std::fs::copy(prior.join("vae/diffusion_pytorch_model.safetensors"), &vae).expect("copies");
    let more = ["--adapter", text(&adapter), "--vae", text(&vae)];
    let (got, said) = restore(root, &file, &more);
    assert!(got == wanted, "another picture with its own autoencoder");
    let line = format!("prior: vae from {}", vae.display());
    assert!(said.contains(&line), "{said}");
    // A folder made of the file restores alike, and so does a file made of that.
    let (again, twice) = (root.join("again"), root.join("twice.safetensors"));
    export(&file, "folder", &again);
    assert!(
        restore(root, &again, &with).0 == wanted,
        "the folder gives another picture"
    );
    export(&again, "single-file", &twice);
    let (a, b) = (std::fs::read(&file), std::fs::read(&twice));
    assert!(a.expect("reads") == b.expect("reads"), "another file");
}

#[test]
fn sd3_is_restored_with_from_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let (prior, file) = (root.join("prior"), root.join("tiny.safetensors"));
    sd3(&prior);
    with_clips_vocabulary(&prior);
    let line = refuses(&export_args(&prior, "single-file", &file));
    assert!(
        line.contains("text_projection.weight is not the unit matrix"),
        "{line}"
    );
    with_unit_projection(&prior);
    export(&prior, "single-file", &file);
    let (_, said) = restore(root, &file, &[]);
    assert!(
        said.contains("T5 is left out, as its tokenizer is missing"),
        "{said}"
    );
    std::fs::create_dir(root.join("tokenizer_3")).expect("makes the folder");
    let tokenizer = "tokenizer_3/tokenizer.json";
    std::fs::copy(prior.join(tokenizer), root.join(tokenizer)).expect("copies");
    let parts = [
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ];
    same_tensors(&prior, &file, &parts);
    assert!(
        restore(root, &file, &[]).0 == restore(root, &prior, &[]).0,
        "another picture"
    );
}

#[test]
fn a_file_that_brings_bad_configurations_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let (prior, file) = (root.join("prior"), root.join("tiny.safetensors"));
    sdxl(&prior);
    with_clips_vocabulary(&prior);
    export(&prior, "single-file", &file);
    let whole = std::fs::read(&file).expect("reads");
    let input = save(root, "in.png", &picture(16, 16));
    let out = root.join("out.png");
    let mini = refuses(&[
        "export",
        "--merged",
        "--layout",
        "single-file",
        "-o",
        text(&out),
    ]);
    assert!(mini.contains("single files are for SDXL and SD3"), "{mini}");
    // Each of the same length, so that the header stays whole.
    for (from, to) in [
        (
            &br#"\"layers_per_block\":1"#[..],
            &br#"\"layers_per_block\":9"#[..],
        ),
        (br#"\"layers_per_block\":1"#, br#"\"layers_per_block\":w"#),
        (br#"\"latent_channels\":4"#, br#"\"latent_channels\":9"#),
        (br#"\"hidden_size\":16"#, br#"\"hidden_size\":-6"#),
        (
            br#"num_train_timesteps\":1000"#,
            br#"num_train_timesteps\":-100"#,
        ),
    ] {
        let at = whole
            .windows(from.len())
            .position(|part| part == from)
            .expect("there");
        let mut changed = whole.clone();
        changed[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&file, &changed).expect("writes");
        let args = [
            "restore",
            text(&input),
            "-o",
            text(&out),
            "--prior",
            text(&file),
        ];
        let line = refuses(&args);
        assert!(line.contains("tiny.safetensors"), "{line}");
    }
}
