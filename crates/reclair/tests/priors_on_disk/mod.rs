//! Tiny random priors and adapters in diffusers' layout, for the tests of the command line.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::path::Path;

use burn::tensor::{DType, Device, TensorData};
use priors::{
    Error,
    any::AnyPrior,
    clip::ClipText,
    folder::{ENCODER_FILE, Folder, NETWORK_FILE},
    t5::T5Encoder,
    tokenizer::learn,
    vae::AutoencoderKl,
    weights::{Values, Weights, save_safetensors},
};
use restore::{
    adapter::{
        AdapterConfig, AdapterFolder, BlockKind, DitAdapterConfig, RestorationAdapter,
        UnetAdapterConfig,
    },
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde_json::{Value, json};

/// Pixels to a latent row and channels of the two autoencoders.
const CHANNELS: [usize; 2] = [4, 16];

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().expect("in a folder")).expect("makes the folder");
    std::fs::write(path, contents).expect("writes");
}

/// Fresh values with none of the maps zero that begin so, and whose inputs would not show.
fn awake(values: Values) -> Values {
    let wake = |(name, data): (String, TensorData)| {
        let zero = data.shape().len() > 1 && data.iter::<f32>().all(|v| v == 0.0);
        if !zero {
            return (name, data);
        }
        let value = |i: usize| 0.3 * ((i * 37 % 19) as f32 / 9.0 - 1.0);
        let new: Vec<f32> = (0..data.num_elements()).map(value).collect();
        (name, TensorData::new(new, data.shape().clone()))
    };
    values.into_iter().map(wake).collect()
}

/// Writes one part: its configuration and random weights in half precision.
fn part(
    prior: &Path,
    name: &str,
    file: &str,
    config: &Value,
    build: impl FnOnce(&Path, &Weights) -> Result<(), Error>,
) {
    let place = prior.join(name);
    write(&place.join("config.json"), config.to_string());
    let w = Weights::seeded(7, &Device::flex());
    build(&place, &w).unwrap_or_else(|why| panic!("{why}"));
    save_safetensors(
        &place.join(file),
        &awake(w.made()),
        DType::F16,
        &Default::default(),
    )
    .expect("saves");
}

fn network(prior: &Path, name: &str, config: &Value) {
    part(prior, name, NETWORK_FILE, config, |_, w| {
        AnyPrior::from_folder(&Folder::Disk(prior.into()), w).map(drop)
    });
}

fn clip(prior: &Path, suffix: &str, width: usize, class: &str, pad: &str) {
    let config = json!({
        "architectures": [class], "model_type": "clip_text_model", "vocab_size": 560, "hidden_size": width,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 77,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 2, "projection_dim": width
    });
    part(
        prior,
        &format!("text_encoder{suffix}"),
        ENCODER_FILE,
        &config,
        |path, w| ClipText::from_json(&config, path, w).map(drop),
    );
    let texts = vec!["a photo of it, low quality, noisy".to_owned(); 4];
    let (vocab, merges) = learn(&texts, 560).expect("learns");
    let place = prior.join(format!("tokenizer{suffix}"));
    write(&place.join("vocab.json"), vocab);
    write(&place.join("merges.txt"), merges);
    let config = json!({ "pad_token": pad });
    write(&place.join("tokenizer_config.json"), config.to_string());
}

fn vae(prior: &Path, channels: usize) {
    let config = json!({
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": channels,
        "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 1.5,
        "shift_factor": 0.06, "use_quant_conv": channels == 4, "use_post_quant_conv": channels == 4
    });
    part(prior, "vae", NETWORK_FILE, &config, |path, w| {
        AutoencoderKl::from_json(&config, path, w).map(drop)
    });
}

/// A prior of the shape of SDXL.
pub(crate) fn sdxl(prior: &Path) {
    let config = json!({
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "attention_head_dim": [1, 2, 2], "block_out_channels": [8, 16, 16], "cross_attention_dim": 40,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "in_channels": 4, "layers_per_block": 1, "norm_eps": 1e-5, "norm_num_groups": 4, "out_channels": 4,
        "transformer_layers_per_block": [1, 1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": true
    });
    network(prior, "unet", &config);
    vae(prior, CHANNELS[0]);
    clip(prior, "", 16, "CLIPTextModel", "<|endoftext|>");
    clip(prior, "_2", 24, "CLIPTextModelWithProjection", "!");
    let scheduler = json!({
        "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": false
    });
    write(
        &prior.join("scheduler/scheduler_config.json"),
        scheduler.to_string(),
    );
    let index =
        json!({ "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true });
    write(&prior.join("model_index.json"), index.to_string());
}

/// A prior of the shape of SD3, with T5.
pub(crate) fn sd3(prior: &Path) {
    let config = json!({
        "_class_name": "SD3Transformer2DModel", "in_channels": 16, "out_channels": 16, "patch_size": 2,
        "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 48,
        "caption_projection_dim": 16, "pooled_projection_dim": 40, "pos_embed_max_size": 16
    });
    network(prior, "transformer", &config);
    vae(prior, CHANNELS[1]);
    let class = "CLIPTextModelWithProjection";
    clip(prior, "", 16, class, "<|endoftext|>");
    clip(prior, "_2", 24, class, "!");
    let config = json!({
        "model_type": "t5", "vocab_size": 40, "d_model": 48, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
        "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu"
    });
    part(prior, "text_encoder_3", ENCODER_FILE, &config, |path, w| {
        T5Encoder::from_json(&config, path, w).map(drop)
    });
    let tokenizer = include_str!("../../../priors/tests/golden/t5_tokenizer_tiny.json");
    write(&prior.join("tokenizer_3/tokenizer.json"), tokenizer);
    let scheduler = json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0
    });
    write(
        &prior.join("scheduler/scheduler_config.json"),
        scheduler.to_string(),
    );
}

/// Writes an adapter whose last maps are not zero, with LoRA.
fn adapter(prior: &Path, folder: &Path, config: &AdapterConfig) {
    let device = Device::flex();
    let blank = Weights::blank(&device);
    let prior = AnyPrior::from_folder(&Folder::Disk(prior.into()), &blank).expect("a prior");
    let w = Weights::seeded(3, &device);
    RestorationAdapter::new(config.clone(), &prior, &w).expect("fits");
    let lora_w = Weights::seeded(4, &device);
    let lora = LoraConfig {
        rank: 2,
        alpha: 2.0,
    };
    let targets = self_attention_targets(&blank.shapes());
    let prefix = prior.kind().folder();
    Lora::new(&lora, &targets, &lora_w.at(prefix)).expect("fits");
    AdapterFolder::save(
        folder,
        config,
        &awake(w.made()),
        Some(&lora),
        &awake(lora_w.made()),
        DType::F16,
    )
    .expect("saves");
}

/// An adapter for [`sdxl`].
pub(crate) fn sdxl_adapter(prior: &Path, folder: &Path) {
    let config = AdapterConfig::Unet(UnetAdapterConfig {
        block: BlockKind::D3,
        after: vec![0, 1, 2, 3, 4, 5],
        lq_channels: CHANNELS[0],
        d_emb: 32,
        groups: 4,
    });
    adapter(prior, folder, &config);
}

/// An adapter for [`sd3`].
pub(crate) fn sd3_adapter(prior: &Path, folder: &Path) {
    let config = AdapterConfig::Dit(DitAdapterConfig {
        after: vec![0, 2],
        width: 16,
    });
    adapter(prior, folder, &config);
}

/// Gives a prior of [`sdxl`]'s or [`sd3`]'s shape the vocabulary that checkpoints mean, CLIP's own, which the program has.
pub(crate) fn with_clips_vocabulary(prior: &Path) {
    for suffix in ["", "_2"] {
        let place = prior.join(format!("text_encoder{suffix}"));
        let text = std::fs::read(place.join("config.json")).expect("reads");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        config["vocab_size"] = 49_408.into();
        part(
            prior,
            &format!("text_encoder{suffix}"),
            ENCODER_FILE,
            &config,
            |path, w| ClipText::from_json(&config, path, w).map(drop),
        );
        for file in ["vocab.json", "merges.txt"] {
            let place = prior.join(format!("tokenizer{suffix}")).join(file);
            std::fs::remove_file(place).expect("removes it");
        }
    }
}

/// Makes the projection of the first text encoder the unit matrix, as SD3's is.
pub(crate) fn with_unit_projection(prior: &Path) {
    let path = prior.join("text_encoder").join(ENCODER_FILE);
    let file = priors::weights::SafetensorsFile::open(&path).expect("opens");
    let names = file.names().iter();
    let mut values: Values = names
        .map(|name| (name.clone(), file.data(name).expect("floats")))
        .collect();
    drop(file);
    let projection = values.get_mut("text_projection.weight").expect("there");
    let shape = projection.shape().clone();
    let unit = |i: usize| f32::from(u8::from(i.is_multiple_of(shape[0] + 1)));
    let unit: Vec<f32> = (0..shape[0] * shape[1]).map(unit).collect();
    *projection = burn::tensor::TensorData::new(unit, shape);
    save_safetensors(&path, &values, DType::F16, &Default::default()).expect("saves");
}
