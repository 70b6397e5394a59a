"""Goldens of SD3Transformer2DModel: SD3-medium's shape, SD3.5-medium's (RMS norms, dual attention) and SD3.5-large's (RMS norms).

The networks run in f64 with f32 weights; the sinusoid of the timestep is f32 as in diffusers.
"""

import torch
from diffusers import SD3Transformer2DModel

from formula import data, fill, weight
from golden import config_of, save, trace, worst

torch.set_num_threads(1)

COMMON = dict(
    sample_size=16,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=4,
    joint_attention_dim=24,
    caption_projection_dim=32,
    pooled_projection_dim=20,
    pos_embed_max_size=12,
)
SD3 = COMMON
SD35_MEDIUM = COMMON | dict(pos_embed_max_size=15, qk_norm="rms_norm", dual_attention_layers=(0, 1))
SD35_LARGE = COMMON | dict(num_layers=4, num_attention_heads=3, caption_projection_dim=24, qk_norm="rms_norm")

NOTE = """Outputs by module path, tokens [b, n, d] row by row: pos_embed is the patches with their (centre-cropped) positions; of
transformer_blocks.N the image stream is .image and the text stream .text (none after the last); time_text_embed is the embedding the
blocks get; output.sample is the network's output. The buffer pos_embed.pos_embed is filled by the formula
like a parameter. Computed in f64, sinusoid in f32."""


def model(config):
    net = fill(SD3Transformer2DModel(**config))
    table = net.pos_embed.pos_embed  # a buffer, so `fill` has not seen it
    with torch.no_grad():
        table.copy_(weight("pos_embed.pos_embed", table.shape))
    return net


def inputs(config, b, h, w, timesteps):
    return {
        "input.sample": data("input.sample", [b, config["in_channels"], h, w]),
        "input.timestep": torch.tensor(timesteps),
        "input.text": data("input.text", [b, 5, config["joint_attention_dim"]]),
        "input.pooled": data("input.pooled", [b, config["pooled_projection_dim"]]),
    }


def forward(net, x, dtype=torch.float64):
    return net(
        x["input.sample"].to(dtype),
        x["input.text"].to(dtype),
        x["input.pooled"].to(dtype),
        x["input.timestep"],
    ).sample


def traced(net, x, dtype):
    net = net.to(dtype)
    streams, handles = {}, []

    def hook(path):
        def keep(_module, _args, output):
            text, image = output
            streams[path + ".image"] = image.detach().clone()
            if text is not None:
                streams[path + ".text"] = text.detach().clone()

        return keep

    for i, block in enumerate(net.transformer_blocks):
        handles.append(block.register_forward_hook(hook(f"transformer_blocks.{i}")))
    wanted = lambda path, _: path in ("pos_embed", "time_text_embed", "context_embedder")
    out, sample = trace(net, wanted, lambda: forward(net, x, dtype))
    for handle in handles:
        handle.remove()
    return out | streams | {"output.sample": sample}


def golden(name, config, x):
    net = model(config)
    out = traced(net, x, torch.float64)
    error = worst(out, traced(net, x, torch.float32))
    print(name, "f32 vs f64:", error, "largest:", max(v.abs().max().item() for v in out.values()))
    save(name, x | out, config_of(net), NOTE, f32_worst_abs_error=f"{error:.2e}")


def sizes():
    """Patches with positions at the smallest size, odd ones, long ones and the largest, in a table of an even side and of an odd one."""
    tensors = {}
    for config in [SD3, SD35_MEDIUM]:
        net, most = model(config), config["pos_embed_max_size"]
        for h, w in [(1, 1), (5, 7), (4, most), (most, 3), (2, 9), (most, most)]:
            name = f"{most}.{h}x{w}"
            tensors[f"input.{name}"] = data(name, [1, config["in_channels"], 2 * h, 2 * w])
            with torch.no_grad():
                tensors[f"positions.{name}"] = net.pos_embed(tensors[f"input.{name}"].double())
    note = "positions.MAX.HxW: the patch embedding with positions of input.MAX.HxW, H x W patches in a table of MAX x MAX. Computed in f64."
    save("mmdit_sizes_tiny", tensors, config_of(model(SD3)), note)


def main():
    sizes()
    golden("mmdit_sd3_tiny", SD3, inputs(SD3, 2, 10, 16, [981, 7]))
    golden("mmdit_sd35_medium_tiny", SD35_MEDIUM, inputs(SD35_MEDIUM, 1, 16, 12, [601]))
    golden("mmdit_sd35_large_tiny", SD35_LARGE, inputs(SD35_LARGE, 1, 12, 24, [440]))


if __name__ == "__main__":
    main()
