"""Goldens of training: tiny Restoration Adapters with PEFT's LoRA in diffusers' networks of SDXL's and SD3's shape.

Loss and gradients of one batch, and the trained tensors after 20 steps of PyTorch's AdamW. The SDXL adapter is the design D3 of
`restore/src/adapter/unet.rs`, written here from the paper's section 3.2 and that design's line; SD3's is `dit_adapter.py`'s.
Noise is added, and targets are made, as in diffusers' train_text_to_image_lora_sdxl.py and train_dreambooth_lora_sd3.py.
"""

import os
import sys

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from torch import nn
from torch.nn import functional as F

CRATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../..")
sys.path[:0] = [os.path.join(CRATES, part, "tests/golden") for part in ("priors", "restore")]

import dit_adapter
import mmdit
import unet
from formula import data, fill, weight
from golden import config_of, save

torch.set_num_threads(1)

RANK, ALPHA = 2, 3
STEPS, LR = 20, 1e-4

SDXL = unet.SDXL | dict(
    block_out_channels=[8, 16, 16],
    layers_per_block=1,
    attention_head_dim=[1, 2, 2],
    cross_attention_dim=12,
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=8 + 6 * 4,
    norm_num_groups=4,
)
# Blocks with an adapter behind them: channels, and how many times smaller than the latent.
SITES = [(8, 2), (16, 4), (16, 4), (16, 4), (16, 2), (16, 1)]
D_EMB, GROUPS = 32, 4


class Block(nn.Module):
    """GN, SiLU, 3x3, SiLU, 3x3, SiLU, 1x1 at half width; on the raw latent without the first two."""

    def __init__(self, c_in, c, latent=False):
        super().__init__()
        self.norm = None if latent else nn.GroupNorm(GROUPS, c_in, eps=1e-5)
        half = c // 2
        self.convs = nn.ModuleList(
            [nn.Conv2d(c_in, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1), nn.Conv2d(half, c, 1)]
        )

    def forward(self, x):
        x = self.convs[0](x if self.norm is None else F.silu(self.norm(x)))
        return self.convs[2](F.silu(self.convs[1](F.silu(x))))


class Adapter(nn.Module):
    def __init__(self, c_lq, c, latent):
        super().__init__()
        self.lq_block = Block(c_lq, c, latent)
        self.time_emb_proj = nn.Linear(D_EMB, c)
        self.blocks = nn.ModuleList([Block(c, c), Block(c, c)])
        self.zero_linear = nn.Linear(c, c)  # the formula's values here, or most gradients would be zero

    def forward(self, lq, x, emb):
        h = lq + self.time_emb_proj(F.silu(emb))[:, :, None, None] + x
        for block in self.blocks:
            h = h + block(h)
        return x + self.zero_linear(h.movedim(1, -1)).movedim(-1, 1)


class UnetAdapters(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [4] + [c for c, _ in SITES]
        self.adapters = nn.ModuleList([Adapter(widths[i], c, i == 0) for i, (c, _) in enumerate(SITES)])

    def run(self, net, x, call):
        lq, features, emb = x["input.lq"], [], {}
        for adapter, (_, downscale) in zip(self.adapters, SITES):
            size = [side // downscale for side in x["input.lq"].shape[-2:]]
            lq = F.adaptive_avg_pool2d(lq, size) if lq.shape[-1] > size[1] else F.interpolate(lq, size, mode="nearest")
            lq = adapter.lq_block(lq)
            features.append(lq)

        def hook(i):
            def change(_module, _args, output):
                if isinstance(output, tuple):  # a block on the way down: the skips stay as they are
                    return (self.adapters[i](features[i], output[0], emb["emb"]), *output[1:])
                return self.adapters[i](features[i], output, emb["emb"])

            return change

        keep = lambda _module, args: emb.update(emb=args[1])
        handles = [net.down_blocks[0].resnets[0].register_forward_pre_hook(keep)]
        blocks = [*net.down_blocks, net.mid_block, *net.up_blocks]
        handles += [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks[: len(SITES)])]
        y = call()
        for handle in handles:
            handle.remove()
        return y


class DitAdapters(dit_adapter.Adapters):
    def run(self, net, x, call):
        lq, features, emb = net.pos_embed.proj(x["input.lq"]).flatten(2).transpose(1, 2), [], {}
        for adapter in self.adapters:
            lq = adapter.lq_block(lq)
            features.append(lq)

        def hook(i):
            def change(_module, _args, output):
                text, image = output
                return text, image + self.adapters[i](features[i], image, emb["emb"])

            return change

        handles = [net.time_text_embed.register_forward_hook(lambda _m, _a, y: emb.update(emb=y))]
        blocks = [net.transformer_blocks[i] for i in dit_adapter.AFTER]
        handles += [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
        y = call()
        for handle in handles:
            handle.remove()
        return y


def trained(net, adapters, prefix, targets):
    """Adds LoRA, fills all that trains by the formula, and returns it by the names of a training run."""
    net.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False))
    named = {f"restoration_adapter.{name}": p for name, p in adapters.named_parameters()}
    for name, p in net.named_parameters():
        p.requires_grad_("lora_" in name)
        if "lora_" in name:
            named[f"lora.{prefix}.{name.replace('.default.', '.')}"] = p
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(weight(name, p.shape))
    return dict(sorted(named.items()))


def train(named, loss):
    first = loss()
    first.backward()
    out = {"loss": first} | {f"grad.{name}": p.grad.clone() for name, p in named.items()}
    optimiser, losses = torch.optim.AdamW(named.values(), lr=LR), []
    for _ in range(STEPS):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        losses.append(value.detach())
    return out, {"losses": torch.stack(losses)} | {f"after.{name}": p for name, p in named.items()}


def sdxl(dtype):
    net, adapters = unet.model(SDXL).to(dtype), fill(UnetAdapters()).to(dtype)
    config = config_of(net)
    named = trained(net, adapters, "unet", r".*\.attn1\.(to_q|to_k|to_v|to_out\.0)")
    b, h, w = 2, 16, 8
    x = {f"input.{name}": data(f"input.{name}", [b, 4, h, w]) for name in ("clean", "noise", "lq")}
    x["input.text"], x["input.pooled"] = data("input.text", [b, 5, 12]), data("input.pooled", [b, 8])
    x["input.time_ids"] = torch.tensor([[683.0, 1024, 31, 205, 512, 512], [512, 512, 0, 0, 512, 512]])
    x["input.timestep"] = torch.tensor([981, 317])
    y = {name: value.to(dtype) if value.is_floating_point() else value for name, value in x.items()}
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
    noisy = scheduler.add_noise(y["input.clean"], y["input.noise"], y["input.timestep"])
    added = {"text_embeds": y["input.pooled"], "time_ids": y["input.time_ids"]}
    call = lambda: net(noisy, y["input.timestep"], y["input.text"], added_cond_kwargs=added).sample
    loss = lambda: F.mse_loss(adapters.run(net, y, call), y["input.noise"])
    return x, *train(named, loss), noisy, config


def sd3(dtype):
    net, adapters = mmdit.model(mmdit.SD3).to(dtype), fill(DitAdapters()).to(dtype)
    config = config_of(net)
    named = trained(net, adapters, "transformer", ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"])
    b, h, w = 2, 8, 12
    x = {f"input.{name}": data(f"input.{name}", [b, 4, h, w]) for name in ("clean", "noise", "lq")}
    x["input.text"], x["input.pooled"] = data("input.text", [b, 5, 24]), data("input.pooled", [b, 20])
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    x["input.timestep"] = scheduler.timesteps[torch.tensor([100, 612])]
    x["input.sigma"] = scheduler.sigmas[torch.tensor([100, 612])]
    y = {name: value.to(dtype) for name, value in x.items()}
    sigma = y["input.sigma"][:, None, None, None]
    noisy = (1.0 - sigma) * y["input.clean"] + sigma * y["input.noise"]
    call = lambda: net(noisy, y["input.text"], y["input.pooled"], y["input.timestep"]).sample
    target = y["input.noise"] - y["input.clean"]
    loss = lambda: F.mse_loss(adapters.run(net, y, call), target)
    return x, *train(named, loss), noisy, config


def timesteps():
    """What diffusers' SD3 scripts draw: densities, then the scheduler's timesteps and sigmas."""
    scheme, n = "logit_normal", 64
    seeded = lambda: torch.Generator().manual_seed(0)
    normal = torch.normal(mean=0.0, std=1.0, size=(n,), generator=seeded())
    u = compute_density_for_timestep_sampling(scheme, n, logit_mean=0.0, logit_std=1.0, generator=seeded())
    assert torch.equal(u, torch.sigmoid(normal))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    at = (u * scheduler.config.num_train_timesteps).long()
    sigma = scheduler.sigmas[at]
    assert compute_loss_weighting_for_sd3(scheme, sigma).eq(1).all()
    note = """normal: what is drawn; u = sigmoid(normal); sigma and timestep of the scheduler (shift 3) at index floor(1000 u)."""
    return {"normal": normal, "u": u, "sigma": sigma, "timestep": scheduler.timesteps[at]}, note


def worst(a, b):
    """The largest error of a tensor relative to its norm."""
    return max(((a[k] - b[k].double()).norm() / a[k].norm()).item() for k in a)


def main():
    for name, make in [("sdxl", sdxl), ("sd3", sd3)]:
        x, grads, steps, noisy, config = make(torch.float64)
        _, grads32, steps32, _, _ = make(torch.float32)
        print(name, "loss", grads["loss"].item(), "to", steps["losses"][-1].item())
        print("  f32 against f64, of a tensor's norm: gradients", worst(grads, grads32), "steps", worst(steps, steps32))
        rank = f"LoRA of rank {RANK} and alpha {ALPHA}"
        note = f"""A Restoration Adapter and {rank}, all of it by the formula under the names of a training run. loss = mean((prediction - target)^2), the target being the noise (SDXL) or noise - clean (SD3); grad.<name> its gradients.
        Computed in f64."""
        more = {"lora_rank": RANK, "lora_alpha": ALPHA}
        save(f"{name}_adapter_gradients", x | grads, config, note, **more)
        note = f"""After {STEPS} steps of AdamW (lr {LR}, betas .9 .999, eps 1e-8, weight decay 0.01) on the batch of
        {name}_adapter_gradients: after.<name> what trained, losses before each step; noisy is the network's input.
        Computed in f64."""
        save(f"{name}_adapter_steps", steps | {"noisy": noisy}, note=note)
    tensors, note = timesteps()
    save("sd3_timesteps", tensors, note=note)


if __name__ == "__main__":
    main()
