"""Golden of a ControlNet on a U-Net of mini's shape: diffusers' ControlNetModel and UNet2DConditionModel.

The first convolution and the time embedding are the U-Net's, and the hint is one convolution of the latent, as in
`src/adapter/controlnet.rs`; everything else is diffusers' own. f64 with f32 weights.
"""

import os
import sys

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

import unet as shapes
from formula import data, fill
from golden import config_of, save

torch.set_num_threads(1)


def main():
    unet = fill(UNet2DConditionModel(**shapes.MINI))
    net = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    c0 = shapes.MINI["block_out_channels"][0]
    net.controlnet_cond_embedding = nn.Conv2d(shapes.MINI["in_channels"], c0, 3, padding=1)
    fill(net, "controlnet.")
    net.conv_in.load_state_dict(unet.conv_in.state_dict())
    net.time_embedding.load_state_dict(unet.time_embedding.state_dict())
    x = shapes.mini_inputs()
    x["input.lq"] = data("input.lq", [2, 16, 16, 8])
    sample, text, lq, t = x["input.sample"].double(), x["input.text"].double(), x["input.lq"].double(), x["input.timestep"]
    out = {}
    with torch.no_grad():
        out["output.bare"] = unet(sample, t, text).sample
        for name, scale in [("output.control", 1.0), ("output.scale_0.5", 0.5)]:
            down, middle = net(sample, t, text, lq, conditioning_scale=scale, return_dict=False)
            out[name] = unet(
                sample, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
    assert (out["output.control"] - out["output.bare"]).abs().max() > 0.05
    note = """The copy's parameters by the formula as controlnet.NAME, but its conv_in and time_embedding, which are the U-Net's;
    controlnet_cond_embedding is one 3x3 convolution. Computed in f64."""
    save("controlnet_tiny", x | out, config_of(unet), note)


if __name__ == "__main__":
    main()
