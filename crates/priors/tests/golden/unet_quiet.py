"""Golden of single modules of the SDXL-shaped U-Net with inputs of size 1e-3, where the epsilon of every norm shows."""

import torch

import unet
from formula import data
from golden import config_of, save

torch.set_num_threads(1)

NOTE = """Each module by itself: down_blocks.0.resnets.0(input.feature, input.emb); down_blocks.1.attentions.0(input.tokens_feature, input.text);
down_blocks.1.attentions.0.transformer_blocks.0(input.tokens, input.text); output.sample = conv_out(silu(conv_norm_out(input.feature))).
All inputs but emb and text are about 1e-3. Computed in f64."""


def main():
    net = unet.model(unet.SDXL)
    quiet = lambda name, shape: data(name, shape) * 1e-3
    inputs = {
        "input.feature": quiet("input.feature", [1, 16, 6, 4]),
        "input.tokens_feature": quiet("input.tokens_feature", [1, 32, 3, 2]),
        "input.tokens": quiet("input.tokens", [1, 6, 32]),
        "input.emb": data("input.emb", [1, 64]),
        "input.text": data("input.text", [1, 7, 24]),
    }
    x = {k: v.double() for k, v in inputs.items()}
    attention = net.down_blocks[1].attentions[0]
    with torch.no_grad():
        out = {
            "down_blocks.0.resnets.0": net.down_blocks[0].resnets[0](x["input.feature"], x["input.emb"]),
            "down_blocks.1.attentions.0": attention(x["input.tokens_feature"], x["input.text"]).sample,
            "down_blocks.1.attentions.0.transformer_blocks.0": attention.transformer_blocks[0](
                x["input.tokens"], encoder_hidden_states=x["input.text"]
            ),
            "output.sample": net.conv_out(net.conv_act(net.conv_norm_out(x["input.feature"]))),
        }
    save("unet_quiet", inputs | out, config_of(net), NOTE)


if __name__ == "__main__":
    main()
