//! The U-Net's layers by themselves: embeddings and transformer layers.

use burn::tensor::{Device, Tensor};
use priors::{
    flow::Prior,
    nn::{Bare, Bias, GroupNorm, Linear, TimestepEmbedding, TransformerLayer, sinusoid},
    weights::Weights,
};

use crate::{golden, golden::BLOCK, unet::unet};

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
