"""Goldens of UNet2DConditionModel: SDXL's shape (with addition embeddings) and the shape of mini.

The networks run in f64 with f32 weights; the sinusoid of the timestep is f32 as in diffusers.
"""

import torch
from diffusers import UNet2DConditionModel

from formula import data, fill
from golden import config_of, save, trace, worst

torch.set_num_threads(1)

SDXL = dict(
    in_channels=4,
    out_channels=4,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    block_out_channels=[16, 32, 64],
    layers_per_block=2,
    transformer_layers_per_block=[1, 1, 2],
    attention_head_dim=[1, 2, 4],
    cross_attention_dim=24,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=16 + 6 * 8,
    norm_num_groups=8,
    sample_size=16,
)

MINI = dict(
    in_channels=16,
    out_channels=16,
    down_block_types=["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    block_out_channels=[8, 16, 24],
    layers_per_block=1,
    transformer_layers_per_block=1,
    attention_head_dim=[1, 1, 2],
    cross_attention_dim=12,
    use_linear_projection=True,
    norm_num_groups=4,
    sample_size=16,
)

LAYERS = {"ResnetBlock2D", "BasicTransformerBlock", "Transformer2DModel", "Downsample2D", "Upsample2D", "Timesteps"}
PATHS = {"conv_in", "time_embedding", "add_embedding", "conv_norm_out"}


def model(config):
    return fill(UNet2DConditionModel(**config))


def sdxl_inputs(b, h, w, timesteps):
    # Pixels of the original size, the crop and the target, one row per image.
    time_ids = [[h * 8 + 3, w * 8, 5, 0, h * 8, w * 8], [1024, 768, 0, 16, 512, 384]][:b]
    return {
        "input.sample": data("input.sample", [b, 4, h, w]),
        "input.timestep": torch.tensor(timesteps),
        "input.text": data("input.text", [b, 7, 24]),
        "input.pooled": data("input.pooled", [b, 16]),
        "input.time_ids": torch.tensor(time_ids, dtype=torch.float32),
    }


def mini_inputs():
    return {
        "input.sample": data("input.sample", [2, 16, 16, 8]),
        "input.timestep": torch.tensor([999, 20]),
        "input.text": data("input.text", [2, 5, 12]),
    }


def forward(unet, inputs, dtype=torch.float64):
    added = None
    if "input.pooled" in inputs:
        added = {"text_embeds": inputs["input.pooled"].to(dtype), "time_ids": inputs["input.time_ids"].to(dtype)}
    return unet(
        inputs["input.sample"].to(dtype),
        inputs["input.timestep"],
        inputs["input.text"].to(dtype),
        added_cond_kwargs=added,
    ).sample


def traced(unet, inputs, wanted, dtype):
    emb = {}

    def keep(_module, args):
        emb["emb"] = args[1].detach()

    handle = unet.down_blocks[0].resnets[0].register_forward_pre_hook(keep)
    out, sample = trace(unet.to(dtype), wanted, lambda: forward(unet, inputs, dtype))
    handle.remove()
    return out | emb | {"output.sample": sample}


def golden(name, config, inputs, wanted, note):
    unet = model(config)
    out = traced(unet, inputs, wanted, torch.float64)
    error = worst(out, traced(unet, inputs, wanted, torch.float32))
    print(name, "f32 vs f64:", error, "largest:", max(v.abs().max().item() for v in out.values()))
    save(name, inputs | out, config_of(unet), note, f32_worst_abs_error=f"{error:.2e}")


NOTE = """Outputs by module path (feature maps [b, c, h, w]; transformer_blocks [b, n, d]; attentions.N after the residual;
time_proj is the sinusoid; add_time_proj one row per time id, batch-major); emb is the sum of time_embedding and add_embedding as the ResNets
get it; conv_norm_out is before SiLU; output.sample is the network's output. Computed in f64, sinusoid in f32. attention_head_dim is the number of heads."""


def layers(path, module):
    return type(module).__name__ in LAYERS or path in PATHS


def blocks(path, module):
    parts = path.split(".")
    return path == "mid_block" or len(parts) == 2 and parts[0] in ("down_blocks", "up_blocks")


def main():
    golden("unet_sdxl_tiny", SDXL, sdxl_inputs(1, 12, 8, [601]), layers, NOTE)
    golden(
        "unet_sdxl_tiny_batch",
        SDXL,
        sdxl_inputs(2, 16, 16, [981, 7]),
        blocks,
        "Two images, sizes and timesteps in one batch; outputs of whole blocks. " + NOTE,
    )
    golden("unet_mini_tiny", MINI, mini_inputs(), layers, NOTE)


if __name__ == "__main__":
    main()
