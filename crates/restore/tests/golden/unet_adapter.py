"""Goldens of the U-Net's Restoration Adapter: the paper's section 3.2 in PyTorch around diffusers' UNet2DConditionModel of SDXL's shape.

No code of the authors is public; this is the paper's text with the choices of `src/adapter/unet.rs` (designs D1 to D4),
written independently of it.
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

import unet
from formula import data, fill
from golden import config_of, save

torch.set_num_threads(1)

# The blocks in order, the last up block without an adapter.
BLOCKS = ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"]
AFTER = [0, 1, 2, 3, 4, 5]
WIDTHS = [16, 32, 64, 64, 64, 32]
D_EMB, GROUPS = 64, 8


class Block(nn.Module):
    """SiLU before each convolution, a norm before the first; of a latent, which is no feature, the first is bare."""

    def __init__(self, shape, latent=False):
        super().__init__()
        if not latent:
            self.norm = nn.GroupNorm(GROUPS, shape[0][0], eps=1e-5)
        self.convs = nn.ModuleList([nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in shape])

    def forward(self, x):
        if hasattr(self, "norm"):
            x = F.silu(self.norm(x))
        x = self.convs[0](x)
        for conv in self.convs[1:]:
            x = conv(F.silu(x))
        return x


def shape(design, a, c):
    return {
        "D1": [(a, c, 3), (c, c, 1)],
        "D2": [(a, c, 3), (c, c, 1)],
        "D3": [(a, c // 2, 3), (c // 2, c // 2, 3), (c // 2, c, 1)],
        "D4": [(a, c, 3)],
    }[design]


class Adapter(nn.Module):
    def __init__(self, design, before, c, latent):
        super().__init__()
        if design == "D2":
            self.lq_block = Block([(before, c, 1)], latent)
        elif design == "D4" and before == c:
            self.lq_block = nn.Identity()
        else:
            self.lq_block = Block(shape(design, before, c), latent)
        self.time_emb_proj = nn.Linear(D_EMB, c)
        self.blocks = nn.ModuleList([Block(shape(design, c, c)) for _ in range(2)])
        self.zero_linear = nn.Linear(c, c)  # the formula's values here, or nothing would show

    def forward(self, lq, x, emb):
        h = lq + self.time_emb_proj(F.silu(emb))[:, :, None, None] + x
        for block in self.blocks:
            h = h + block(h)
        return self.zero_linear(h.movedim(1, -1)).movedim(-1, 1)


class Adapters(nn.Module):
    def __init__(self, design, c_latent=4):
        super().__init__()
        self.design = design
        if design == "D2":
            self.stem = Block([(c_latent, WIDTHS[0], 3)], latent=True)
        adapters, before, latent = [], WIDTHS[0] if design == "D2" else c_latent, design != "D2"
        for c in WIDTHS:
            adapters.append(Adapter(design, before, c, latent))
            if design != "D1":
                before, latent = c, False
        self.adapters = nn.ModuleList(adapters)

    def features(self, c_lq, sizes):
        lq, out = self.stem(c_lq) if self.design == "D2" else c_lq, []
        for adapter, size in zip(self.adapters, sizes):
            source = c_lq if self.design == "D1" else lq
            if source.shape[-2] > size[0]:
                source = F.adaptive_avg_pool2d(source, size)
            elif source.shape[-2] < size[0]:
                source = F.interpolate(source, size, mode="nearest")
            lq = adapter.lq_block(source)
            out.append(lq)
        return out


def run(net, adapters, x, scale):
    h, w = x["input.sample"].shape[-2:]
    sizes = [(h // f, w // f) for f in [2, 4, 4, 4, 2, 1]]
    lq = adapters.features(x["input.lq"].double(), sizes)
    out = {f"lq.{i}": feature for i, feature in enumerate(lq)}
    emb = {}
    handles = [net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _m, args: emb.update(emb=args[1]))]

    def hook(i, name):
        def change(_module, _args, output):
            # Down blocks give their skips, too, which stay as they are.
            sample, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            out[f"{name}.bare"] = sample
            if i in AFTER:
                sample = sample + scale * adapters.adapters[AFTER.index(i)](lq[AFTER.index(i)], sample, emb["emb"])
                out[f"{name}.adapted"] = sample
            return sample if rest is None else (sample, *rest)

        return change

    handles += [net.get_submodule(name).register_forward_hook(hook(i, name)) for i, name in enumerate(BLOCKS)]
    sample = unet.forward(net, x)
    for handle in handles:
        handle.remove()
    return out, sample


NOTE = f"""Adapters after blocks {AFTER}; parameters by the formula under the names of `src/adapter/unet.rs`. lq.N is the low-quality stream at
the N-th adapter; BLOCK.bare the feature that leaves a block, BLOCK.adapted the one that goes on. Computed in f64."""


def main():
    net = unet.model(unet.SDXL)
    x = unet.sdxl_inputs(1, 12, 8, [601])
    x["input.lq"] = data("input.lq", x["input.sample"].shape)
    with torch.no_grad():
        bare = unet.forward(net, x)
        designs = {}
        for design in ["D1", "D2", "D3", "D4"]:
            adapters = fill(Adapters(design))
            out, out["output.sample"] = run(net, adapters, x, 1.0)
            _, out["output.scale_0.5"] = run(net, adapters, x, 0.5)
            print(design, "adapted - bare:", (out["output.sample"] - bare).abs().max().item())
            designs[design] = out
    save("unet_adapter_d3_tiny", x | designs["D3"] | {"output.bare": bare}, config_of(net), NOTE)
    others = {
        f"{design}.{name}": value
        for design, out in designs.items()
        for name, value in out.items()
        if design != "D3" and name.startswith(("lq.", "output."))
    }
    save("unet_adapter_designs_tiny", x | others, config_of(net), NOTE)


if __name__ == "__main__":
    main()
