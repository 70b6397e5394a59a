//! Parity with diffusers and transformers: every named output of tiny networks with formula weights.
//!
//! The goldens were computed in f64 (`golden/*.py`). A segment that gets the golden's input is held to the block tolerance,
//! whatever has gone through a whole U-Net to the model tolerance.

mod golden;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use golden::{BLOCK, Golden, MODEL, formula_values};
use priors::{
    clip::ClipText,
    flow::{Added, Conditioning, Prior},
    nn::{Bare, Bias, GroupNorm, Linear, TimestepEmbedding, TransformerLayer, sinusoid},
    tokenizer::ClipTokenizer,
    unet::{Unet, UnetFlow},
    vae::AutoencoderKl,
    weights::{Values, Weights},
};
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden(name: &str) -> Golden {
    Golden::open(FOLDER, name)
}

fn conditioning(golden: &Golden, device: &Device) -> Conditioning {
    let added = golden.has("input.pooled").then(|| Added {
        pooled: golden.tensor("input.pooled", device),
        time_ids: golden.tensor("input.time_ids", device),
    });
    Conditioning {
        text: golden.tensor("input.text", device),
        added,
    }
}

fn unet(golden: &Golden, weights: &Weights) -> Unet {
    Unet::from_json(&golden.config(), golden.path(), weights)
        .expect("the golden's config is supported")
}

fn enter(unet: &Unet, golden: &Golden, device: &Device) -> UnetFlow {
    let conditioning = conditioning(golden, device);
    unet.enter(
        golden.tensor("input.sample", device),
        golden.timesteps(device),
        &conditioning,
    )
}

/// Every segment by itself: what enters it is the golden's, so that errors do not add up and only the wrong one fails.
/// A transformer's last layer is seen as its attention module's output.
fn unet_segments(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let weights = Weights::formula(&device);
    let unet = unet(&golden, &weights);
    let mut comparison = golden.compare();
    let mut flow = enter(&unet, &golden, &device);
    comparison.see("emb", &flow.emb, BLOCK);
    comparison.see("conv_in", &flow.sample, BLOCK);
    for i in 0..unet.segments() {
        let (segment, skips) = (unet.segment_name(i), flow.skips.len());
        flow = unet.segment(i, flow, &Bare);
        if let Some(tokens) = &mut flow.tokens {
            comparison.see(segment, tokens, BLOCK);
            *tokens = golden.tensor(segment, &device);
            continue;
        }
        let module = segment
            .split(".transformer_blocks")
            .next()
            .expect("a first part");
        comparison.see(module, &flow.sample, BLOCK);
        flow.sample = golden.tensor(module, &device);
        if flow.skips.len() > skips {
            flow.skips[skips] = flow.sample.clone();
        }
    }
    assert!(flow.skips.is_empty(), "every skip is used");
    let config = unet.config();
    let channels = config.block_out_channels[0];
    let norm = GroupNorm::new(
        &weights.at("conv_norm_out"),
        config.norm_num_groups,
        channels,
        config.norm_eps,
    );
    comparison.see(
        "conv_norm_out",
        &norm.expect("formula").forward(flow.sample.clone()),
        BLOCK,
    );
    comparison.see("output.sample", &unet.leave(flow), BLOCK);
    // The rest are inside `enter` and inside segments: see the tests of embeddings and of transformer layers.
    comparison.finish(|name| {
        name.contains("time_") || name == "add_embedding" || name.contains("transformer_blocks")
    });
    whole_unet(&golden, &unet, &device);
}

fn whole_unet(golden: &Golden, unet: &Unet, device: &Device) {
    let x = golden.tensor("input.sample", device);
    let out = unet.forward(
        x,
        golden.timesteps(device),
        &conditioning(golden, device),
        &Bare,
    );
    let mut comparison = golden.compare();
    comparison.see("output.sample", &out, MODEL);
    comparison.finish(|name| name != "output.sample");
}

#[test]
fn every_segment_of_an_sdxl_shaped_unet() {
    unet_segments("unet_sdxl_tiny");
}

#[test]
fn every_segment_of_mini_shaped_unet() {
    unet_segments("unet_mini_tiny");
}

#[test]
fn blocks_of_a_batch_with_two_timesteps_and_sizes() {
    let golden = golden("unet_sdxl_tiny_batch");
    let device = Device::flex();
    let unet = unet(&golden, &Weights::formula(&device));
    let mut comparison = golden.compare();
    let mut flow = enter(&unet, &golden, &device);
    comparison.see("emb", &flow.emb, BLOCK);
    for i in 0..unet.segments() {
        flow = unet.segment(i, flow, &Bare);
        if let Some(site) = unet.sites().iter().find(|site| site.segment == i) {
            let [_, c, h, _] = flow.sample.dims();
            assert_eq!(
                (c, h * site.downscale),
                (site.channels, 16),
                "what the site says of {}",
                site.name
            );
            // Errors of all segments before: values reach 20 and torch's own f32 is 1e-5 off.
            comparison.see(&site.name, &flow.sample, MODEL);
        }
    }
    comparison.see("output.sample", &unet.leave(flow), MODEL);
    comparison.finish(|_| false);
    whole_unet(&golden, &unet, &device);
}

/// Modules by themselves with inputs of 1e-3, where the epsilon of every norm shows.
#[test]
fn norms_of_quiet_features() {
    let golden = golden("unet_quiet");
    let device = Device::flex();
    let weights = Weights::formula(&device);
    let unet = unet(&golden, &weights);
    let text = golden.tensor::<3>("input.text", &device);
    let flow = |feature: &str| UnetFlow {
        sample: golden.tensor(feature, &device),
        tokens: None,
        skips: vec![],
        emb: golden.tensor("input.emb", &device),
        text: text.clone(),
    };
    let segment = |name: &str| {
        (0..unet.segments())
            .find(|&i| unet.segment_name(i) == name)
            .expect("a segment")
    };
    let mut comparison = golden.compare();
    let resnet = "down_blocks.0.resnets.0";
    comparison.see(
        resnet,
        &unet
            .segment(segment(resnet), flow("input.feature"), &Bare)
            .sample,
        BLOCK,
    );
    let (module, layer) = (
        "down_blocks.1.attentions.0",
        "down_blocks.1.attentions.0.transformer_blocks.0",
    );
    comparison.see(
        module,
        &unet
            .segment(segment(layer), flow("input.tokens_feature"), &Bare)
            .sample,
        BLOCK,
    );
    let alone = TransformerLayer::new(&weights.at(layer), 32, 24, 2).expect("formula");
    comparison.see(
        layer,
        &alone.forward(golden.tensor("input.tokens", &device), &text, &Bare),
        BLOCK,
    );
    comparison.see("output.sample", &unet.leave(flow("input.feature")), BLOCK);
    comparison.finish(|_| false);
}

/// Stretches of any length: what `set_aside` keeps back changes nothing, to the bit.
#[test]
fn setting_skips_aside_changes_nothing() {
    let golden = golden("unet_mini_tiny");
    let device = Device::flex();
    let unet = unet(&golden, &Weights::formula(&device));
    let values = |flow| {
        unet.leave(flow)
            .into_data()
            .try_into_vec::<f32>()
            .expect("f32")
    };
    let n = unet.segments();
    let walked = |length: usize| {
        let mut flow = enter(&unet, &golden, &device);
        for start in (0..n).step_by(length) {
            let stretch = start..(start + length).min(n);
            let (needed, aside) = unet.set_aside(stretch.clone(), flow);
            let done = stretch.fold(needed, |flow, i| unet.segment(i, flow, &Bare));
            flow = unet.put_back(aside, done);
        }
        values(flow)
    };
    let whole = (0..n).fold(enter(&unet, &golden, &device), |flow, i| {
        unet.segment(i, flow, &Bare)
    });
    let whole = values(whole);
    for length in 1..=n {
        assert!(
            walked(length) == whole,
            "stretches of {length} segments differ from the whole walk"
        );
    }
}

#[test]
fn time_and_size_embeddings() {
    for name in ["unet_sdxl_tiny", "unet_mini_tiny"] {
        let golden = golden(name);
        let device = Device::flex();
        let weights = Weights::formula(&device);
        let config = unet(&golden, &weights).config().clone();
        let (c, d) = (
            config.block_out_channels[0],
            4 * config.block_out_channels[0],
        );
        let embedding =
            |path: &str, d_in| TimestepEmbedding::new(&weights.at(path), d_in, d).expect("formula");
        let mut comparison = golden.compare();
        // The angle t f is rounded to f32 and reaches 1000 where its spacing is 6e-5: BLOCK, not OP.
        let time = sinusoid(golden.timesteps(&device), c);
        comparison.see("time_proj", &time, BLOCK);
        comparison.see(
            "time_embedding",
            &embedding("time_embedding", c).forward(time),
            BLOCK,
        );
        if let Some(d_in) = config.projection_class_embeddings_input_dim {
            let ids = golden.tensor::<2>("input.time_ids", &device);
            let [b, n] = ids.dims();
            let six = config.addition_time_embed_dim.expect("SDXL's");
            let sizes = sinusoid(ids.reshape([b * n]), six);
            comparison.see("add_time_proj", &sizes, BLOCK);
            let pooled = golden.tensor::<2>("input.pooled", &device);
            let all = Tensor::cat(vec![pooled, sizes.reshape([b, n * six])], 1);
            comparison.see(
                "add_embedding",
                &embedding("add_embedding", d_in).forward(all),
                BLOCK,
            );
        }
        comparison.finish(|name| !name.contains("time_") && name != "add_embedding");
    }
}

/// Each attention module by itself, from the golden's output of the ResNet before it: errors do not add up.
#[test]
fn every_transformer_layer_by_itself() {
    for name in ["unet_sdxl_tiny", "unet_mini_tiny"] {
        let golden = golden(name);
        let device = Device::flex();
        let weights = Weights::formula(&device);
        let unet = unet(&golden, &weights);
        let text = golden.tensor::<3>("input.text", &device);
        let heads = golden.config()["attention_head_dim"].clone();
        let mut comparison = golden.compare();
        let names: Vec<&str> = (0..unet.segments()).map(|i| unet.segment_name(i)).collect();
        for module in names
            .iter()
            .filter_map(|name| name.strip_suffix(".transformer_blocks.0"))
        {
            let w = weights.at(module);
            let x = golden.tensor::<4>(&module.replace("attentions", "resnets"), &device);
            let [b, c, h, wd] = x.dims();
            let groups = unet.config().norm_num_groups;
            let norm = GroupNorm::new(&w.at("norm"), groups, c, 1e-6).expect("formula");
            let linear = |name: &str| Linear::new(&w.at(name), c, c, Bias::With).expect("formula");
            let mut tokens = linear("proj_in").forward(
                norm.forward(x.clone())
                    .reshape([b, c, h * wd])
                    .swap_dims(1, 2),
            );
            let level = unet
                .config()
                .block_out_channels
                .iter()
                .position(|&channels| channels == c);
            let heads = heads[level.expect("a level's width")]
                .as_u64()
                .expect("a number") as usize;
            let layers = names
                .iter()
                .filter(|name| name.starts_with(&format!("{module}.transformer_blocks")))
                .count();
            for i in 0..layers {
                let path = format!("transformer_blocks.{i}");
                let layer = TransformerLayer::new(
                    &w.at(&path),
                    c,
                    unet.config().cross_attention_dim,
                    heads,
                );
                tokens = layer.expect("formula").forward(tokens, &text, &Bare);
                comparison.see(&format!("{module}.{path}"), &tokens, BLOCK);
            }
            let y = x + linear("proj_out")
                .forward(tokens)
                .swap_dims(1, 2)
                .reshape([b, c, h, wd]);
            comparison.see(module, &y, BLOCK);
        }
        comparison.finish(|name| !name.contains("attentions"));
    }
}

fn autoencoder(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let vae = AutoencoderKl::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("supported");
    let mut comparison = golden.compare();
    // The last convolution of either half is its whole output.
    let mut see = |segment: &str, y: &Tensor<4>| {
        comparison.see(segment.trim_end_matches(".conv_out"), y, BLOCK)
    };
    let image = golden.tensor::<4>("input.image", &device);
    let posterior = vae.encode_seen(image.clone(), &mut see);
    let decoded = vae.decode_seen(golden.tensor("input.latent", &device), &mut see);
    comparison.see("output.mean", &posterior.mean, BLOCK);
    comparison.see("output.logvar", &posterior.logvar, BLOCK);
    comparison.see("output.latent", &vae.latent_from_image(image), BLOCK);
    comparison.see("output.image", &decoded, BLOCK);
    comparison.finish(|_| false);
    // image_from_latent undoes the scale and the shift.
    let (scale, shift) = (vae.config().scaling_factor, vae.config().shift_factor);
    let scaled = (golden.tensor::<4>("input.latent", &device) - shift) * scale;
    let mut comparison = golden.compare();
    comparison.see("output.image", &vae.image_from_latent(scaled), BLOCK);
    comparison.finish(|name| name != "output.image");
}

#[test]
fn every_segment_of_an_autoencoder_with_quant_convolutions() {
    autoencoder("vae_tiny_quant");
}

#[test]
fn every_segment_of_an_autoencoder_without_quant_convolutions() {
    autoencoder("vae_tiny_plain");
}

fn text_encoder(name: &str) {
    let golden = golden(name);
    let device = Device::flex();
    let clip = ClipText::from_json(&golden.config(), golden.path(), &Weights::formula(&device))
        .expect("supported");
    let n = clip.config().max_position_embeddings;
    let ids: Vec<u32> = golden
        .integers("input.ids")
        .iter()
        .map(|&id| u32::try_from(id).expect("an id"))
        .collect();
    let ids: Vec<Vec<u32>> = ids.chunks(n).map(<[u32]>::to_vec).collect();
    let encoded = clip.forward(&ids);
    let mut comparison = golden.compare();
    for (i, hidden) in encoded.hidden.iter().enumerate() {
        comparison.see(&format!("hidden_states.{i}"), hidden, BLOCK);
    }
    comparison.see("last_hidden_state", &encoded.last, BLOCK);
    let pooled = if golden.has("text_embeds") {
        "text_embeds"
    } else {
        "pooled"
    };
    comparison.see(pooled, &encoded.pooled, BLOCK);
    comparison.finish(|name| name.starts_with("pooled"));
}

#[test]
fn a_text_encoder_with_quick_gelu_that_pools_at_the_largest_id() {
    text_encoder("clip_tiny_quick");
}

#[test]
fn a_text_encoder_with_projection_that_pools_at_the_end_token() {
    text_encoder("clip_tiny_projection");
}

#[test]
fn token_ids() {
    let read =
        |file: &str| std::fs::read(Path::new(FOLDER).join(file)).expect("a file of this folder");
    let cases: Value = serde_json::from_slice(&read("tokenizer_tiny.json")).expect("JSON");
    let tokenizer = |config: Value, n| {
        let (vocab, merges) = (
            read("tokenizer_tiny/vocab.json"),
            read("tokenizer_tiny/merges.txt"),
        );
        ClipTokenizer::new(&vocab, &merges, &config, n, Path::new(FOLDER)).expect("fits together")
    };
    let cases = cases["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let prompt = case["prompt"].as_str().expect("a string");
        let ids = |key: &str| -> Vec<u32> {
            serde_json::from_value(case[key].clone()).expect("a list of ids")
        };
        let whole = ids("ids");
        assert_eq!(
            tokenizer(json!({}), whole.len()).encode(prompt).ids,
            whole,
            "{prompt:?}"
        );
        let cut = tokenizer(json!({}), 16).encode(prompt);
        assert_eq!(cut.ids, ids("padded_16"), "{prompt:?} cut or padded to 16");
        assert_eq!(
            cut.dropped,
            whole.len().saturating_sub(16),
            "tokens of {prompt:?} that do not fit"
        );
        let zero = tokenizer(json!({ "pad_token": "!" }), 16).encode(prompt);
        if prompt.contains('!') {
            // transformers makes every "!" of a prompt the pad token, id 0. The network was trained with OpenCLIP's
            // tokenizer, where a "!" is a word; so it is here.
            assert!(
                zero.ids
                    .iter()
                    .zip(&cut.ids)
                    .all(|(&a, &b)| a == b || a == 0),
                "{prompt:?} padded with 0"
            );
        } else {
            assert_eq!(zero.ids, ids("padded_16_pad_0"), "{prompt:?} padded with 0");
        }
    }
}

/// Gradients relative to each one's largest value; torch's own f32 is within 5e-6.
const GRADIENT: f64 = 1e-4;

#[test]
fn gradients_of_the_unet() {
    let golden = golden("grads_unet_mini_tiny");
    let plain = Device::flex();
    let weights = Weights::tracked(formula_values(&plain, |w| drop(unet(&golden, w))), &plain);
    let device = weights.device().clone();
    let unet = unet(&golden, &weights);
    let sample = golden.tensor::<4>("input.sample", &device).require_grad();
    let text = golden.tensor::<3>("input.text", &device).require_grad();
    let conditioning = Conditioning {
        text: text.clone(),
        added: None,
    };
    let out = unet.forward(
        sample.clone(),
        golden.timesteps(&device),
        &conditioning,
        &Bare,
    );
    let loss = (out - golden.tensor("input.target", &device))
        .square()
        .mean();
    let mut comparison = golden.compare();
    comparison.see_scalar("loss", &loss, BLOCK);
    let mut gradients = loss.backward();
    let of_sample = sample.grad(&gradients).expect("a gradient of the sample");
    let of_text = text.grad(&gradients).expect("a gradient of the text");
    comparison.see_scaled("grad.input.sample", of_sample.into_data(), GRADIENT);
    comparison.see_scaled("grad.input.text", of_text.into_data(), GRADIENT);
    comparison.see_gradients(weights.gradients(&mut gradients), GRADIENT);
    comparison.finish(|_| false);
}

#[test]
fn loss_and_gradients_of_the_autoencoder() {
    let golden = golden("vae_loss_tiny");
    let plain = Device::flex();
    let build = |w: &Weights| {
        AutoencoderKl::from_json(&golden.config(), golden.path(), w).expect("supported")
    };
    let weights = Weights::tracked(formula_values(&plain, |w| drop(build(w))), &plain);
    let vae = build(&weights);
    let image = golden.tensor::<4>("input.image", weights.device());
    let posterior = vae.encode(image.clone());
    let l1 = (vae.decode(posterior.mean.clone()) - image).abs().mean();
    let (mean, logvar) = (posterior.mean, posterior.logvar);
    let kl = ((mean.square() + logvar.clone().exp() - 1.0 - logvar) * 0.5).mean();
    let loss = l1.clone() + kl.clone() * 1e-6;
    let mut comparison = golden.compare();
    for (name, value) in [("l1", &l1), ("kl", &kl), ("loss", &loss)] {
        comparison.see_scalar(name, value, BLOCK);
    }
    comparison.see_gradients(weights.gradients(&mut loss.backward()), GRADIENT);
    comparison.finish(|_| false);
}

#[test]
fn a_text_encoder_is_the_same_with_and_without_the_old_prefix() {
    let golden = golden("clip_tiny_quick");
    let device = Device::flex();
    let build =
        |w: &Weights| ClipText::from_json(&golden.config(), golden.path(), w).expect("supported");
    let values = formula_values(&device, |w| drop(build(w)));
    let bare: Values = values
        .iter()
        .map(|(name, data)| {
            (
                name.trim_start_matches("text_model.").to_owned(),
                data.clone(),
            )
        })
        .collect();
    assert_ne!(values, bare);
    let run = |values: Values| {
        let w = Weights::from_values(values, &device);
        let encoder = build(&w);
        w.finish().expect("every tensor is used");
        encoder.forward(&[vec![1, 5, 9]]).last.into_data()
    };
    run(values).assert_eq(&run(bare), true);
}
