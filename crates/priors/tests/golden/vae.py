"""Goldens of AutoencoderKL: SD's and SDXL's kind (4 channels, 1x1 quant convolutions) and SD3's (16, none, shift)."""

import torch
from diffusers import AutoencoderKL

from formula import data, fill
from golden import config_of, save, trace, worst

torch.set_num_threads(1)

COMMON = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[8, 16, 24],
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=32,
)
QUANT = COMMON | dict(latent_channels=4, scaling_factor=0.13025, force_upcast=True)
PLAIN = COMMON | dict(
    latent_channels=16,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
)

LAYERS = {"ResnetBlock2D", "Attention", "Downsample2D", "Upsample2D"}
PATHS = {"encoder", "decoder", "encoder.conv_in", "decoder.conv_in", "quant_conv", "post_quant_conv"}

NOTE = """Outputs by module path; mid_block.attentions.0 after the residual, [b, c, h, w]. `encoder` and `decoder` are outputs of the whole half
(encoder: 2c channels, before quant_conv). output.mean, output.logvar: encode(input.image), logvar clamped to [-30, 20].
output.latent = (mean - shift_factor) * scaling_factor. output.image = decode(input.latent); input.latent is what AutoencoderKL.decode
takes: already unscaled and unshifted. Computed in f64."""


def model(config):
    return fill(AutoencoderKL(**config))


def traced(vae, image, latent, dtype):
    wanted = lambda path, module: path in PATHS or type(module).__name__ in LAYERS
    vae = vae.to(dtype)
    run = lambda: (vae.encode(image.to(dtype)).latent_dist, vae.decode(latent.to(dtype)).sample)
    out, (posterior, decoded) = trace(vae, wanted, run)
    shift = vae.config.shift_factor or 0.0
    return out | {
        "output.mean": posterior.mean,
        "output.logvar": posterior.logvar,
        "output.latent": (posterior.mean - shift) * vae.config.scaling_factor,
        "output.image": decoded,
    }


def golden(name, config):
    vae = model(config)
    image = data("input.image", [1, 3, 16, 24])
    latent = data("input.latent", [1, config["latent_channels"], 4, 6])
    out = traced(vae, image, latent, torch.float64)
    error = worst(out, traced(vae, image, latent, torch.float32))
    print(name, "f32 vs f64:", error)
    inputs = {"input.image": image, "input.latent": latent}
    save(name, inputs | out, config_of(vae), NOTE, f32_worst_abs_error=f"{error:.2e}")


if __name__ == "__main__":
    golden("vae_tiny_quant", QUANT)
    golden("vae_tiny_plain", PLAIN)
