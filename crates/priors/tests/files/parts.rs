//! The parts of a checkpoint: inside, beside, and given.

use std::path::Path;

use priors::{
    folder::{Folder, Given},
    weights::{Metadata, Values, save_safetensors},
};
use serde_json::json;

use crate::{SDXL_UNET, refused, write_header};

const TABLE: &str = "text_model.embeddings.token_embedding.weight";

const SDXL_VAE: [(&str, &[usize]); 3] = [
    ("encoder.conv_in.weight", &[128, 3, 3, 3]),
    ("decoder.conv_in.weight", &[512, 4, 3, 3]),
    ("decoder.up.0.block.0.norm1.weight", &[128]),
];

const SD3_VAE: [(&str, &[usize]); 3] = [
    SDXL_VAE[0],
    ("decoder.conv_in.weight", &[512, 16, 3, 3]),
    SDXL_VAE[2],
];

const SD3: [(&str, &[usize]); 2] = [
    ("joint_blocks.0.x_block.attn.qkv.weight", &[4608, 1536]),
    ("pos_embed", &[1, 36_864, 1536]),
];

/// Where a found prior's autoencoder is, and what is said.
fn vae_of(found: &Folder) -> (bool, String, String) {
    let file = "vae/diffusion_pytorch_model.safetensors";
    let path = found.path(file).display().to_string();
    (found.has(file), path, found.sources().join("\n"))
}

#[test]
fn a_checkpoint_finds_its_parts_inside_and_beside() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let models = folder.path().join("models");
    write_header(
        &models.join("diffusion_models/sdxl.safetensors"),
        &SDXL_UNET,
    );
    write_header(
        &models.join("clip/l.safetensors"),
        &[(TABLE, &[49_408, 768])],
    );
    write_header(
        &models.join("text_encoders/g.safetensors"),
        &[(TABLE, &[49_408, 1280])],
    );
    let vae = SDXL_VAE;
    write_header(&models.join("vae/one.safetensors"), &vae);
    let mut sd3_vae = vae;
    sd3_vae[1].1 = &[512, 16, 3, 3];
    write_header(&models.join("vae/other.safetensors"), &sd3_vae);
    let by_file = Folder::open(&models.join("diffusion_models/sdxl.safetensors")).expect("opens");
    let by_root = Folder::open(folder.path()).expect("the only prior in it");
    for found in [by_file, by_root] {
        let Folder::Single(single) = &found else {
            panic!("{found:?} is a checkpoint");
        };
        let parts: Vec<&str> = single.parts().collect();
        assert_eq!(parts, ["text_encoder", "text_encoder_2", "unet", "vae"]);
        assert!(
            found
                .path("vae/diffusion_pytorch_model.safetensors")
                .ends_with("vae/one.safetensors")
        );
        assert_eq!(
            found.json("unet/config.json").expect("SDXL's")["cross_attention_dim"],
            2048
        );
    }
    let found = Folder::open(&models.join("diffusion_models/sdxl.safetensors")).expect("opens");
    let lines = found.sources().join("\n");
    for (part, file) in [
        ("unet", "diffusion_models/sdxl.safetensors"),
        ("vae", "vae/one.safetensors"),
        ("text_encoder", "clip/l.safetensors"),
        ("text_encoder_2", "text_encoders/g.safetensors"),
    ] {
        let says = |line: &str| line.starts_with(&format!("{part} from ")) && line.ends_with(file);
        assert!(lines.lines().any(says), "{part}: {lines}");
    }
    // Two that could be meant, and then one whose name says so.
    write_header(&models.join("vae/two.safetensors"), &vae);
    let line = refused(Folder::open(
        &models.join("diffusion_models/sdxl.safetensors"),
    ));
    assert!(
        line.contains("one.safetensors")
            && line.contains("two.safetensors")
            && line.contains("--vae"),
        "{line}"
    );
    std::fs::rename(
        models.join("vae/two.safetensors"),
        models.join("vae/sdxl_vae.safetensors"),
    )
    .expect("renames");
    let found = Folder::open(&models.join("diffusion_models/sdxl.safetensors")).expect("opens");
    assert!(
        found
            .path("vae/diffusion_pytorch_model.safetensors")
            .ends_with("sdxl_vae.safetensors")
    );
    // A part that is nowhere is said when it is wanted.
    std::fs::remove_file(models.join("clip/l.safetensors")).expect("removes");
    let found = Folder::open(&models.join("diffusion_models/sdxl.safetensors")).expect("opens");
    assert!(!found.has("text_encoder/config.json"));
    let line = refused(found.view("text_encoder/model.safetensors"));
    assert!(
        line.contains("text_encoder is neither in this file nor beside it"),
        "{line}"
    );
    write_header(&models.join("checkpoints/second.safetensors"), &SDXL_UNET);
    let line = refused(Folder::open(folder.path()));
    assert!(
        line.contains("several priors") && line.contains("second.safetensors"),
        "{line}"
    );
    // The only file there is damaged: that is said, not that there is none.
    let damaged = folder.path().join("damaged");
    std::fs::create_dir(&damaged).expect("makes the folder");
    std::fs::write(damaged.join("sdxl.safetensors"), b"short").expect("writes");
    let line = refused(Folder::open(&damaged));
    assert!(line.contains("sdxl.safetensors"), "{line}");
}

#[test]
fn t5_counts_where_its_tokenizer_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sd3.safetensors");
    let tensors: [(&str, &[usize]); 4] = [
        ("joint_blocks.0.x_block.attn.qkv.weight", &[4608, 1536]),
        ("pos_embed", &[1, 36_864, 1536]),
        (
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
            &[49_408, 768],
        ),
        (
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
            &[4096, 4096],
        ),
    ];
    write_header(&path, &tensors);
    let has = |file: &str| Folder::open(&path).expect("opens").has(file);
    assert!(has("text_encoder/config.json") && !has("text_encoder_2/config.json"));
    assert!(!has("text_encoder_3/config.json") && !has("text_encoder_3/model.safetensors"));
    let sources = || Folder::open(&path).expect("opens").sources();
    let lines = sources();
    assert!(
        lines[0].starts_with("text_encoder, transformer from ")
            && lines[1].contains("sd3.safetensors: T5 is left out")
            && lines[1].contains("tokenizer_3/tokenizer.json"),
        "{lines:?}"
    );
    std::fs::create_dir(folder.path().join("tokenizer_3")).expect("makes the folder");
    std::fs::write(folder.path().join("tokenizer_3/tokenizer.json"), "{}").expect("writes");
    assert!(has("text_encoder_3/config.json") && has("text_encoder_3/model.safetensors"));
    let lines = sources();
    assert!(
        lines.len() == 1 && lines[0].contains("text_encoder_3"),
        "{lines:?}"
    );
    let found = Folder::open(&path).expect("opens");
    assert_eq!(
        found.json("tokenizer_3/tokenizer.json").expect("JSON"),
        json!({})
    );
}

/// ComfyUI's folders have folders of their own.
#[test]
fn parts_are_found_from_and_in_sub_folders_of_comfyui() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let models = folder.path().join("models");
    let checkpoint = models.join("checkpoints/SDXL/mine/base.safetensors");
    write_header(&checkpoint, &SDXL_UNET);
    write_header(&models.join("vae/mine/a.safetensors"), &SDXL_VAE);
    write_header(
        &models.join("text_encoders/x/l.safetensors"),
        &[(TABLE, &[49_408, 768])],
    );
    write_header(
        &models.join("clip/x/y/g.safetensors"),
        &[(TABLE, &[49_408, 1280])],
    );
    write_header(
        &models.join("loras/styles/one.safetensors"),
        &[("a.lora_A.weight", &[4, 8])],
    );
    for found in [
        Folder::open(&checkpoint),
        Folder::open(&models),
        Folder::open(folder.path()),
    ] {
        let found = found.expect("opens");
        for file in [
            "vae/config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
        ] {
            assert!(found.has(file), "{file}");
        }
        for name in ["styles/one", "styles/one.safetensors"] {
            let lora = found.find_lora(Path::new(name)).expect("there");
            assert!(lora.ends_with("loras/styles/one.safetensors"), "{lora:?}");
        }
        assert_eq!(found.find_lora(Path::new("one")), None);
    }
}

#[test]
fn an_autoencoder_that_says_it_is_another_models_is_not_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let models = folder.path().join("models");
    let (sd3, sdxl) = (
        models.join("checkpoints/sd3.safetensors"),
        models.join("checkpoints/sdxl.safetensors"),
    );
    write_header(&sd3, &SD3);
    write_header(&sdxl, &SDXL_UNET);
    write_header(&models.join("vae/ae.safetensors"), &SD3_VAE);
    write_header(&models.join("vae/vae-ft-mse-840000.safetensors"), &SDXL_VAE);
    for (checkpoint, other, own) in [(&sd3, "Flux", "SD3"), (&sdxl, "SD 1", "SDXL")] {
        let (has, _, said) = vae_of(&Folder::open(checkpoint).expect("opens"));
        let line = format!("says {other}; if it is {own}'s, give it with --vae");
        assert!(!has && said.contains(&line), "{said}");
    }
    // The header's word counts before the name's.
    let values = Values::from([
        (
            "encoder.conv_in.weight".to_owned(),
            burn::tensor::TensorData::new(vec![0.0_f32; 4 * 3 * 9], [4, 3, 3, 3]),
        ),
        (
            "decoder.conv_in.weight".to_owned(),
            burn::tensor::TensorData::new(vec![0.0_f32; 512 * 16], [512, 16, 1, 1]),
        ),
        (
            "decoder.up.0.block.0.norm1.weight".to_owned(),
            burn::tensor::TensorData::new(vec![0.0_f32; 4], [4]),
        ),
    ]);
    let header = |architecture: &str| {
        Metadata::from([("modelspec.architecture".to_owned(), architecture.to_owned())])
    };
    let place = models.join("vae/ae.safetensors");
    let dtype = burn::tensor::DType::F16;
    save_safetensors(
        &place,
        &values,
        dtype,
        &header("stable-diffusion-v3-medium/vae"),
    )
    .expect("saves");
    let (has, path, _) = vae_of(&Folder::open(&sd3).expect("opens"));
    assert!(has && path.ends_with("ae.safetensors"), "{path}");
    save_safetensors(&place, &values, dtype, &header("flux-1-dev/vae")).expect("saves");
    assert!(!vae_of(&Folder::open(&sd3).expect("opens")).0);
}

#[test]
fn given_files_stand_in_place_of_a_priors_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    let checkpoint = root.join("checkpoint/sd3.safetensors");
    let inside: [(&str, &[usize]); 3] = [
        ("first_stage_model.encoder.conv_in.weight", &[128, 3, 3, 3]),
        ("first_stage_model.decoder.conv_in.weight", &[512, 16, 3, 3]),
        (
            "first_stage_model.decoder.up.0.block.0.norm1.weight",
            &[128],
        ),
    ];
    write_header(&checkpoint, &[&SD3[..], &inside].concat());
    let at = |name: &str| root.join("given").join(name);
    write_header(&at("ae.safetensors"), &SD3_VAE);
    write_header(&at("sdxl.safetensors"), &SDXL_VAE);
    write_header(&at("l.safetensors"), &[(TABLE, &[49_408, 768])]);
    write_header(&at("g.safetensors"), &[(TABLE, &[49_408, 1280])]);
    let t5 = "encoder.block.0.layer.0.SelfAttention.q.weight";
    write_header(&at("t5.safetensors"), &[(t5, &[4096, 4096])]);
    let given = |vae: &[&str], text_encoders: &[&str]| Given {
        vae: vae.first().map(|name| at(name)),
        text_encoders: text_encoders.iter().map(|name| at(name)).collect(),
    };
    let open = |given: &Given| Folder::open_with(&checkpoint, given);
    let (_, path, said) = vae_of(&open(&Given::default()).expect("opens"));
    assert!(path.ends_with("checkpoint/sd3.safetensors"), "{path}");
    assert!(said.contains("transformer, vae from "), "{said}");
    // Whatever its name says.
    let found = open(&given(
        &["ae.safetensors"],
        &["g.safetensors", "l.safetensors"],
    ));
    let found = found.expect("fits");
    let (_, path, said) = vae_of(&found);
    assert!(path.ends_with("given/ae.safetensors"), "{path}");
    for line in [
        "vae from ",
        "text_encoder from ",
        "text_encoder_2 from ",
        "transformer from ",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "{said}");
    }
    assert_eq!(
        found.json("vae/config.json").expect("SD3's")["latent_channels"],
        16
    );
    assert!(
        found.has("text_encoder_2/config.json") && found.has("text_encoder_2/model.safetensors")
    );
    let view = found
        .view("text_encoder_2/model.safetensors")
        .expect("there");
    assert_eq!(view.shape(TABLE), Some(vec![49_408, 1280]));
    // What does not fit is said.
    let line = refused(open(&given(&["sdxl.safetensors"], &[])));
    assert!(
        line.contains("given/sdxl.safetensors: is an autoencoder alone and no autoencoder of these latent channels")
            && line.contains("vae 16"),
        "{line}"
    );
    let line = refused(open(&given(&[], &["ae.safetensors"])));
    assert!(
        line.contains("text_encoder_2 1280, text_encoder_3 4096"),
        "{line}"
    );
    let line = refused(open(&given(&[], &["l.safetensors", "l.safetensors"])));
    assert!(
        line.contains("second file given for text_encoder"),
        "{line}"
    );
    let line = refused(open(&given(&["gone.safetensors"], &[])));
    assert!(line.contains("gone.safetensors"), "{line}");
    std::fs::write(at("old.ckpt"), "PK").expect("writes");
    assert!(refused(open(&given(&["old.ckpt"], &[]))).contains("pickle"));
    let line = refused(open(&given(&[], &["t5.safetensors"])));
    assert!(
        line.contains("t5.safetensors: T5's tokenizer is missing"),
        "{line}"
    );
    std::fs::write(at("tokenizer.json"), "{}").expect("writes");
    let found = open(&given(&[], &["t5.safetensors"])).expect("fits");
    assert!(found.has("text_encoder_3/config.json"));
    assert_eq!(
        found.json("tokenizer_3/tokenizer.json").expect("JSON"),
        json!({})
    );
    // A folder of one part brings its configuration.
    let own = json!({"latent_channels": 16, "block_out_channels": [8, 8], "scaling_factor": 0.5});
    write_header(&at("vae/diffusion_pytorch_model.safetensors"), &SD3_VAE);
    std::fs::write(at("vae/config.json"), own.to_string()).expect("writes");
    let found = open(&given(&["vae"], &[])).expect("fits");
    assert_eq!(found.json("vae/config.json").expect("JSON"), own);
    assert!(
        vae_of(&found)
            .1
            .ends_with("given/vae/diffusion_pytorch_model.safetensors")
    );
    // And so it is with a folder in diffusers' layout.
    let disk = root.join("disk");
    std::fs::create_dir_all(disk.join("transformer")).expect("makes the folder");
    std::fs::write(disk.join("transformer/config.json"), "{}").expect("writes");
    std::fs::create_dir_all(disk.join("vae")).expect("makes the folder");
    let config = json!({"latent_channels": 16, "block_out_channels": [128, 512]});
    std::fs::write(disk.join("vae/config.json"), config.to_string()).expect("writes");
    assert!(Folder::open(&disk).expect("opens").sources().is_empty());
    // T5 has its published configuration where the folder does without, and the transformer is one that can hear it.
    let with_t5 = || Folder::open_with(&disk, &given(&[], &["t5.safetensors"]));
    assert!(refused(with_t5()).contains("t5.safetensors"));
    let hears = json!({"joint_attention_dim": 4096}).to_string();
    std::fs::write(disk.join("transformer/config.json"), hears).expect("writes");
    let found = with_t5().expect("fits");
    assert!(found.has("text_encoder_3/model.safetensors"));
    assert_eq!(
        found.json("text_encoder_3/config.json").expect("known")["num_layers"],
        24
    );
    let found = Folder::open_with(&disk, &given(&["ae.safetensors"], &[])).expect("fits");
    let (_, path, said) = vae_of(&found);
    assert!(
        path.ends_with("given/ae.safetensors") && said.starts_with("vae from "),
        "{said}"
    );
    assert_eq!(found.json("vae/config.json").expect("its own"), config);
}
