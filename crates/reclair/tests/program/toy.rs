//! A model so small that it trains in a test, pictures for it, and runs.

use std::path::{Path, PathBuf};

use super::{mini, picture, save};

/// A toy model: mini's configurations with small networks.
pub(crate) fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    let write = |file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let json = std::fs::read(mini().join("prior").join(file)).expect("committed");
        let mut json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        change(&mut json);
        let to = model.join(file);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("makes the folder");
        std::fs::write(to, json.to_string()).expect("writes");
    };
    write("vae/config.json", &|json| {
        json["block_out_channels"] = [8].into();
        json["norm_num_groups"] = 2.into();
        json["latent_channels"] = 4.into();
    });
    write("unet/config.json", &|json| {
        json["block_out_channels"] = [8, 8, 16].into();
        json["attention_head_dim"] = [1, 1, 2].into();
        json["norm_num_groups"] = 4.into();
        json["in_channels"] = 4.into();
        json["out_channels"] = 4.into();
        json["cross_attention_dim"] = 16.into();
    });
    write("text_encoder/config.json", &|json| {
        json["hidden_size"] = 16.into();
        json["intermediate_size"] = 32.into();
        json["vocab_size"] = 600.into();
        json["eos_token_id"] = 2.into();
        json["num_hidden_layers"] = 1.into();
    });
    write("scheduler/scheduler_config.json", &|_| ());
    write("tokenizer/tokenizer_config.json", &|_| ());
    write("model_index.json", &|_| ());
    model
}

pub(crate) fn photos(folder: &Path) {
    let photos = folder.join("photos");
    std::fs::create_dir(&photos).expect("makes the folder");
    for (i, side) in [64, 72, 80].into_iter().enumerate() {
        save(&photos, &format!("{i}.png"), &picture(side, 64));
        // One has its caption in the other kind of file.
        let (kind, caption) = match i {
            1 => (
                "json",
                "{\"width\": 72, \"caption\": \"a disc on waves, in JSON\"}",
            ),
            _ => ("txt", "a disc on waves"),
        };
        std::fs::write(photos.join(format!("{i}.{kind}")), caption).expect("writes");
    }
}

/// Writes a run's configuration.
pub(crate) fn config(
    folder: &Path,
    name: &str,
    stage: &str,
    model: &Path,
    steps: usize,
    more: &str,
) -> PathBuf {
    let adapter = if stage == "vae" {
        ""
    } else {
        "[adapter]\n_class_name = \"UnetRestorationAdapter\"\nblock = \"D1\"\nafter = [0, 4]\nlq_channels = 4\nd_emb = 32\ngroups = 4\n"
    };
    let degradations = if stage == "vae" {
        ""
    } else {
        "degradations = [{ preset = \"mild\", weight = 1.0 }]\n"
    };
    let toml = format!(
        "stage = \"{stage}\"\nmodel = \"{}\"\nout = \"{name}\"\nstart = \"fresh\"\n\
         [data]\nimages = \"photos\"\nvalidation = \"photos\"\ncrop_px = 32\n{degradations}\
         [optimise]\nsteps = {steps}\nbatch = 2\nlr = 1e-3\nema_halflife_images = 100\n{more}\n\
         [every]\ncheckpoint = 1\nvalidate = 2\n{adapter}",
        model.display()
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, toml).expect("writes");
    path
}

/// Makes the model's network a transformer that listens to its one text encoder.
pub(crate) fn transformer(model: &Path) {
    std::fs::remove_dir_all(model.join("unet")).expect("removes");
    let folder = model.join("transformer");
    std::fs::create_dir(&folder).expect("makes the folder");
    let json = serde_json::json!({
        "_class_name": "SD3Transformer2DModel", "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16,
        "pooled_projection_dim": 16, "pos_embed_max_size": 8, "qk_norm": "rms_norm"
    });
    std::fs::write(folder.join("config.json"), json.to_string()).expect("writes");
}

/// Gives a run of the toy's U-Net a transformer's adapter, and `more` at the top.
pub(crate) fn for_transformer(config: &Path, more: &str) {
    let toml = std::fs::read_to_string(config).expect("written");
    let (start, _) = toml.split_once("[adapter]").expect("a section");
    let adapter = "_class_name = \"DitRestorationAdapter\"\nafter = [0, 1]\nwidth = 16\n";
    let toml = format!("{more}\n{start}[adapter]\n{adapter}");
    std::fs::write(config, toml).expect("writes");
}

/// The trained weights of a run.
pub(crate) fn weights(folder: &Path, run: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(run).join(file)).expect("trained")
}

/// A shard of the toy's pictures and captions, in this order.
pub(crate) fn shard(folder: &Path, name: &str, pictures: &[usize]) -> PathBuf {
    let path = folder.join(name);
    let mut tar = tar::Builder::new(std::fs::File::create(&path).expect("creates"));
    for i in pictures {
        let there = |file: &String| folder.join("photos").join(file).exists();
        let files = ["png", "txt", "json"].map(|kind| format!("{i}.{kind}"));
        for file in files.into_iter().filter(there) {
            tar.append_path_with_name(folder.join("photos").join(&file), &file)
                .expect("appends");
        }
    }
    tar.finish().expect("ends");
    path
}
