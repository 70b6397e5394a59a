"""Golden of the transformer's Restoration Adapter: the paper's section 3.2 in PyTorch around diffusers' SD3Transformer2DModel.

No code of the authors is public; this is the paper's text with the choices of `src/adapter/dit.rs`, written independently of it.
"""

import os
import sys

import torch
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

import mmdit
from formula import data, fill
from golden import config_of, save

torch.set_num_threads(1)

AFTER = [0, 2]
D = mmdit.SD3["num_attention_heads"] * mmdit.SD3["attention_head_dim"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return self.linear(nn.functional.silu(self.norm(x)))


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.lq_block = Block()
        self.time_emb_proj = nn.Linear(D, D)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.zero_linear = nn.Linear(D, D)  # the formula's values here, or nothing would show

    def forward(self, lq, x, emb):
        h = lq + self.time_emb_proj(nn.functional.silu(emb))[:, None] + x
        for block in self.blocks:
            h = h + block(h)
        return self.zero_linear(h)


class Adapters(nn.Module):
    def __init__(self):
        super().__init__()
        self.adapters = nn.ModuleList([Adapter() for _ in AFTER])


def run(net, adapters, x, scale):
    out, emb, lq = {}, {}, net.pos_embed.proj(x["input.lq"].double()).flatten(2).transpose(1, 2)
    features = []
    for i, adapter in enumerate(adapters):
        lq = adapter.lq_block(lq)
        features.append(lq)
        out[f"lq.{i}"] = lq
    handles = [net.time_text_embed.register_forward_hook(lambda _m, _a, y: emb.update(emb=y))]

    def hook(i):
        def change(_module, _args, output):
            text, image = output
            out[f"transformer_blocks.{i}.bare"] = image
            if i in AFTER:
                at = AFTER.index(i)
                image = image + scale * adapters[at](features[at], image, emb["emb"])
            out[f"transformer_blocks.{i}.image"] = image
            return text, image

        return change

    handles += [block.register_forward_hook(hook(i)) for i, block in enumerate(net.transformer_blocks)]
    sample = mmdit.forward(net, x)
    for handle in handles:
        handle.remove()
    return out, sample


def main():
    net = mmdit.model(mmdit.SD3)
    adapters = fill(Adapters()).adapters
    x = mmdit.inputs(mmdit.SD3, 2, 8, 12, [981, 7])
    x["input.lq"] = data("input.lq", x["input.sample"].shape)
    with torch.no_grad():
        out, out["output.sample"] = run(net, adapters, x, 1.0)
        _, out["output.scale_0.5"] = run(net, adapters, x, 0.5)
        out["output.bare"] = mmdit.forward(net, x)
    print("adapted - bare:", (out["output.sample"] - out["output.bare"]).abs().max().item())
    note = f"""Adapters after blocks {AFTER}; parameters by the formula as adapters.N.(lq_block.linear | time_emb_proj | blocks.0.linear |
    blocks.1.linear | zero_linear). lq.N is the low-quality stream, from the prior's patch projection without positions;
    transformer_blocks.N.bare the image tokens that leave block N, .image those that go on after its adapter. Computed in f64."""
    save("dit_adapter_tiny", x | out, config_of(net), note)


if __name__ == "__main__":
    main()
