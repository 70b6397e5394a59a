//! Where a run comes from: what must be the same for its checkpoint to be gone on from.
//!
//! Of weights the fingerprint takes name, type and shape of every tensor and at most [`SAMPLE`](priors::weights::SAMPLE)
//! bytes from the middle of its values: SDXL's gigabytes in a few thousand reads. Configurations and tokenizers are taken
//! whole. So other weights, a merged LoRA or another step of a training are noticed; a change that leaves the sampled bytes of every
//! tensor as they were is not, and how tensors are spread over files does not count. Of the pictures names, sizes and captions are
//! taken ([`Photos::list_hash`](crate::data::Photos::list_hash)), not their contents.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use priors::folder::{ENCODER_FILE, Folder, NETWORK_FILE};
use restore::adapter::{ENCODER_FOLDER, LORA_FILE};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    config::{Stage, Start, TrainConfig},
    data::hex,
    objective::folder_of,
};

/// What a checkpoint goes on from must be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// SHA-256 of the configuration, without what does not change the result.
    pub config: String,
    /// Of the pictures' names, sizes and captions.
    pub data: String,
    /// Fingerprints of the files behind `model`, `adapter_model` and `encoder_model`, by these names.
    pub files: BTreeMap<&'static str, String>,
}

/// Parts of a model: sub-folder, weights, and the small files that decide what they compute.
const PARTS: [(&str, &str, &[&str]); 6] = [
    ("unet", NETWORK_FILE, &[]),
    ("transformer", NETWORK_FILE, &[]),
    ("vae", NETWORK_FILE, &[]),
    ("text_encoder", ENCODER_FILE, &["tokenizer"]),
    ("text_encoder_2", ENCODER_FILE, &["tokenizer_2"]),
    ("text_encoder_3", ENCODER_FILE, &["tokenizer_3"]),
];

/// Files of a tokenizer.
const TOKENIZER: [&str; 4] = [
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
];

impl Origin {
    /// The origin of the run `config`; `data` is of its pictures.
    ///
    /// # Errors
    /// Files of the model or of an adapter that cannot be read.
    pub fn of(config: &TrainConfig, data: String) -> Result<Self, Error> {
        let mut files = BTreeMap::from([("model", model(config)?)]);
        if let Some(folder) = &config.adapter_model {
            files.insert("adapter_model", adapter(folder)?);
        }
        if let Some(folder) = &config.encoder_model {
            files.insert("encoder_model", encoder(folder)?);
        }
        Ok(Self {
            config: config_hash(config),
            data,
            files,
        })
    }
}

/// SHA-256 of the configuration, without what does not change the result.
fn config_hash(config: &TrainConfig) -> String {
    // Where things are written and how the machine is used do not change the result.
    let mut config = config.clone();
    config.out = PathBuf::default();
    config.every = Default::default();
    config.data.cache_mb = 0;
    config.data.workers = 0;
    config.data.cache_text = false;
    config.licence = None;
    config.guard = Default::default();
    let text = toml::to_string(&config).expect("plain TOML");
    hex(&Sha256::digest(text))
}

/// Of what the stage reads of its model; not of weights that fresh ones stand for.
fn model(config: &TrainConfig) -> Result<String, Error> {
    let folder = folder_of(config)?;
    let mut hash = Sha256::new();
    let vae_only = matches!(config.stage, Stage::Vae | Stage::Encoder);
    for (part, weights, small) in PARTS {
        if vae_only && part != "vae" {
            continue;
        }
        let trained = match config.stage {
            Stage::Vae => part == "vae",
            Stage::Prior | Stage::Joint => part != "vae",
            Stage::Adapter | Stage::Encoder => false,
        };
        feed_json(&folder, &format!("{part}/config.json"), &mut hash)?;
        if !(trained && config.start == Start::Fresh) {
            feed_weights(&folder, &format!("{part}/{weights}"), &mut hash)?;
        }
        for (tokenizer, file) in small
            .iter()
            .flat_map(|folder| TOKENIZER.map(|file| (folder, file)))
        {
            feed_json(&folder, &format!("{tokenizer}/{file}"), &mut hash)?;
        }
    }
    if !vae_only {
        for file in ["scheduler/scheduler_config.json", "model_index.json"] {
            feed_json(&folder, file, &mut hash)?;
        }
    }
    Ok(hex(&hash.finalize()))
}

/// Of an adapter's folder.
fn adapter(path: &Path) -> Result<String, Error> {
    let folder = Folder::Disk(path.to_owned());
    let mut hash = Sha256::new();
    for part in ["restoration_adapter", ENCODER_FOLDER] {
        feed_json(&folder, &format!("{part}/config.json"), &mut hash)?;
        feed_weights(&folder, &format!("{part}/{NETWORK_FILE}"), &mut hash)?;
    }
    feed_weights(&folder, LORA_FILE, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Of the degradation-robust encoder in an adapter's folder.
fn encoder(path: &Path) -> Result<String, Error> {
    let folder = Folder::Disk(path.to_owned());
    let mut hash = Sha256::new();
    feed_json(&folder, &format!("{ENCODER_FOLDER}/config.json"), &mut hash)?;
    let weights = format!("{ENCODER_FOLDER}/{NETWORK_FILE}");
    feed_weights(&folder, &weights, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

/// Feeds a small file where there is one.
fn feed_json(folder: &Folder, file: &str, hash: &mut Sha256) -> Result<(), Error> {
    if folder.has(file) {
        let bytes = folder.read(file)?;
        hash.update(file);
        hash.update(bytes.len().to_le_bytes());
        hash.update(&bytes);
    }
    Ok(())
}

/// Feeds samples of weights where there are some.
fn feed_weights(folder: &Folder, file: &str, hash: &mut Sha256) -> Result<(), Error> {
    if folder.has(file) {
        hash.update(file);
        folder.view(file)?.sample(&mut |bytes| hash.update(bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::priors_on_disk;

    #[test]
    fn older_configurations_keep_their_hash() {
        let runs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini/runs");
        // The autoencoder's leg is older than `precision`, which its hash lacks.
        for run in [
            "joint-1",
            "joint-2",
            "joint-3",
            "joint-4",
            "joint-5",
            "joint-6",
            "joint-7",
            "joint-8",
            "adapter-2",
        ] {
            let read = |file: &str| {
                std::fs::read_to_string(format!("{runs}/{run}/{file}")).expect("committed")
            };
            let config = toml::from_str(&read("config.resolved.toml")).expect("a configuration");
            let about: serde_json::Value = serde_json::from_str(&read("run.json")).expect("JSON");
            assert_eq!(about["config_sha256"], config_hash(&config), "{run}");
        }
    }

    /// Changes a byte of a file, counted from its middle.
    fn touch(path: &Path, from_middle: usize) {
        let mut bytes = std::fs::read(path).expect("reads");
        let at = bytes.len() / 2 + from_middle;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).expect("writes");
    }

    #[test]
    fn what_a_stage_reads_of_its_model_counts_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let prior = folder.path().join("prior");
        priors_on_disk::sdxl(&prior);
        let of = |stage: &str, start: &str| {
            let text = format!(
                "stage = \"{stage}\"\nmodel = \"{}\"\nout = \"out\"\nstart = \"{start}\"\n[data]\nimages = \"i\"\ncrop_px = 32\n[optimise]\nsteps = 1\nbatch = 1\nlr = 1e-3\n",
                prior.display()
            );
            model(&toml::from_str(&text).expect("a configuration")).expect("readable")
        };
        let all = || {
            [
                ("adapter", "fresh"),
                ("encoder", "model"),
                ("vae", "fresh"),
                ("vae", "model"),
            ]
            .map(|(stage, start)| of(stage, start))
        };
        let changed = |before: [String; 4]| {
            let after = all();
            std::array::from_fn::<bool, 4, _>(|i| before[i] != after[i])
        };
        let before = all();
        std::fs::write(prior.join("README.md"), "words").expect("writes");
        std::fs::write(prior.join("unet/notes.txt"), "words").expect("writes");
        assert_eq!(changed(before), [false; 4], "what nobody reads");
        let before = all();
        touch(&prior.join("vae").join(NETWORK_FILE), 0);
        assert_eq!(
            changed(before),
            [true, true, false, true],
            "a value of the vae"
        );
        let before = all();
        touch(&prior.join("unet").join(NETWORK_FILE), 0);
        assert_eq!(changed(before), [true, false, false, false]);
        let before = all();
        std::fs::write(prior.join("tokenizer/merges.txt"), "#version\n").expect("writes");
        assert_eq!(changed(before), [true, false, false, false]);
        let before = all();
        std::fs::remove_dir_all(prior.join("text_encoder_2")).expect("removes");
        assert_eq!(changed(before), [true, false, false, false]);
    }

    #[test]
    fn of_a_large_tensor_the_middle_counts() {
        use burn::tensor::{DType, TensorData};
        use priors::weights::{SAMPLE, Values, save_safetensors};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = format!("{ENCODER_FOLDER}/{NETWORK_FILE}");
        let path = folder.path().join(&file);
        let of = |changed: Option<usize>| {
            let mut values = vec![0.5_f32; 4 * SAMPLE];
            if let Some(at) = changed {
                values[at] = 1.0;
            }
            let data = TensorData::new(values, [4 * SAMPLE]);
            let values = Values::from([("a".to_owned(), data)]);
            save_safetensors(&path, &values, DType::F32, &Default::default()).expect("saves");
            encoder(folder.path()).expect("readable")
        };
        let plain = of(None);
        assert_ne!(plain, of(Some(2 * SAMPLE)), "the middle");
        assert_eq!(
            plain,
            of(Some(0)),
            "what is not covered, as the documentation says"
        );
        assert_eq!(plain, of(None));
    }
}
