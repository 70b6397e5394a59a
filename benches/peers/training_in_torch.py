"""The adapter's training step in PyTorch: Restoration Adapter (D3 for SDXL) and LoRA of rank 32 in diffusers' network, with
torch.utils.checkpoint around each transformer layer, ResNet and adapter. What trains has the names of a run of `reclair train`.
"""

import os
import re
import time

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import full_size

RANK = 32
# SDXL's sites: how many times wider than the first block, and how many times smaller than the latent. SD3's: behind which blocks.
SITES = [(1, 2), (2, 4), (4, 4), (4, 4), (4, 2), (2, 1)]
AFTER = [3, 7, 11, 15, 19, 23]


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))


class UnetBlock(nn.Module):
    """GN, SiLU, 3x3, SiLU, 3x3, SiLU, 1x1 at half width; on the raw latent without the first two."""

    def __init__(self, c_in, c, latent=False):
        super().__init__()
        self.norm = None if latent else nn.GroupNorm(32, c_in)
        half = c // 2
        convs = [nn.Conv2d(c_in, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1), nn.Conv2d(half, c, 1)]
        self.convs = nn.ModuleList(convs)

    def forward(self, x):
        x = self.convs[0](x if self.norm is None else F.silu(self.norm(x)))
        return self.convs[2](F.silu(self.convs[1](F.silu(x))))


class UnetAdapter(nn.Module):
    def __init__(self, c_lq, c, d_emb, latent):
        super().__init__()
        self.lq_block, self.time_emb_proj = UnetBlock(c_lq, c, latent), nn.Linear(d_emb, c)
        self.blocks, self.zero_linear = nn.ModuleList([UnetBlock(c, c), UnetBlock(c, c)]), nn.Linear(c, c)

    def forward(self, lq, x, emb):
        h = lq + self.time_emb_proj(F.silu(emb))[:, :, None, None] + x
        for block in self.blocks:
            h = h + block(h)
        return x + F.conv2d(h, self.zero_linear.weight[:, :, None, None], self.zero_linear.bias)


class DitBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False), nn.Linear(d, d)

    def forward(self, x):
        return self.linear(F.silu(self.norm(x)))


class DitAdapter(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.lq_block, self.time_emb_proj = DitBlock(d), nn.Linear(d, d)
        self.blocks, self.zero_linear = nn.ModuleList([DitBlock(d), DitBlock(d)]), nn.Linear(d, d)

    def forward(self, lq, x, emb):
        h = lq + self.time_emb_proj(F.silu(emb))[:, None] + x
        for block in self.blocks:
            h = h + block(h)
        return x + self.zero_linear(h)


def widen(module):
    """The stored weight in f32 for the length of a call; inside a checkpoint it is not kept."""

    def call(x, *args, **more):
        wide = {name: p.float() for name, p in module.named_parameters(recurse=False)}
        if isinstance(module, nn.Linear):
            return F.linear(x, wide["weight"], wide.get("bias"))
        if isinstance(module, nn.Conv2d):
            return module._conv_forward(x, wide["weight"], wide.get("bias"))
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, wide["weight"], wide["bias"], module.eps)
        return F.layer_norm(x, module.normalized_shape, wide.get("weight"), wide.get("bias"), module.eps)

    module.forward = call


def checkpointed(module):
    forward = module.forward
    module.forward = lambda *args, **more: checkpoint(forward, *args, use_reentrant=False, **more)


def network(made, folder, stored):
    """The frozen network, in f32 or in the bfloat16 it is stored in."""
    kind, part, _ = made
    dtype = torch.bfloat16 if stored else torch.float32
    net = kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype, low_cpu_mem_usage=True).requires_grad_(False)
    if stored:
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
                widen(module)
    return net


def add_trained(net, adapters, part):
    """Puts LoRA into `net`; all that trains by its name, with values of its name, the last maps near zero but not zero: of a
    fresh adapter nearly all gradients are."""
    names = [name for name, _ in net.named_modules() if re.search(r"\.attn1?\.(to_q|to_k|to_v|to_out\.0)$", name)]
    trained = {f"restoration_adapter.adapters.{name}": p for name, p in adapters.named_parameters()}
    for name in names:
        parent, child = name.rsplit(".", 1)
        lora = Lora(net.get_submodule(name))
        setattr(net.get_submodule(parent), child, lora)
        for half in ["lora_A", "lora_B"]:
            trained[f"lora.{part}.{name}.{half}.weight"] = getattr(lora, half).weight
    with torch.no_grad():
        for name, p in trained.items():
            last = name.endswith(("zero_linear.weight", "lora_B.weight"))
            p.copy_(full_size.random_tensor(name, p) * (0.1 if last else 1.0))
    return trained


def hooked(net, adapters, sdxl):
    """Puts the adapters behind their blocks; returns what they listen to, and a function that makes their low-quality features."""
    from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    for module in list(net.modules()):
        if isinstance(module, (BasicTransformerBlock, JointTransformerBlock, ResnetBlock2D)):
            checkpointed(module)
    state = {}
    adapted = lambda i, x: checkpoint(adapters[i], state["lq"][i], x, state["emb"], use_reentrant=False)

    def unet_hook(i):
        def change(_module, _args, output):
            if isinstance(output, tuple):
                return (adapted(i, output[0]), *output[1:])
            return adapted(i, output)

        return change

    def dit_hook(i):
        return lambda _module, _args, output: (output[0], adapted(i, output[1]))

    if sdxl:
        net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _m, args: state.update(emb=args[1]))
        blocks = [*net.down_blocks, net.mid_block, *net.up_blocks][: len(SITES)]
        for i, block in enumerate(blocks):
            block.register_forward_hook(unet_hook(i))
    else:
        net.time_text_embed.register_forward_hook(lambda _m, _a, y: state.update(emb=y))
        for i, at in enumerate(AFTER):
            net.transformer_blocks[at].register_forward_hook(dit_hook(i))

    def lq_features(c_lq):
        features, lq = [], c_lq if sdxl else net.pos_embed.proj(c_lq).flatten(2).transpose(1, 2)
        for i, adapter in enumerate(adapters):
            if sdxl:
                size = [side // SITES[i][1] for side in c_lq.shape[-2:]]
                lq = F.adaptive_avg_pool2d(lq, size) if lq.shape[-1] > size[1] else F.interpolate(lq, size, mode="nearest")
            lq = adapter.lq_block(lq)
            features.append(lq)
        state["lq"] = features

    return lq_features


def step_in_torch(model, made, folder, steps, stored, want):
    """Trains for some steps; the first is on the sample of inputs.safetensors, whose loss and gradients are kept or compared."""
    from diffusers import AutoencoderKL

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    _, part, config = made
    net, sdxl = network(made, folder, stored), model == "sdxl"
    if sdxl:
        first = config["block_out_channels"][0]
        widths = [4] + [wider * first for wider, _ in SITES]
        adapters = nn.ModuleList([UnetAdapter(widths[i], widths[i + 1], 4 * first, i == 0) for i in range(len(SITES))])
    else:
        adapters = nn.ModuleList([DitAdapter(config["num_attention_heads"] * config["attention_head_dim"]) for _ in AFTER])
    trained = add_trained(net, adapters, part)
    count = sum(p.numel() for p in trained.values())
    assert want in (None, count), f"{count} values train and not {want}"
    lq_features = hooked(net, adapters, sdxl)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    vae.decoder = None
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-5)
    given = load_file(f"{folder}/inputs.safetensors")
    given["target"] = torch.randn(given["sample"].shape, generator=torch.Generator().manual_seed(1))
    errors = {}

    def sample(i):
        with torch.no_grad():
            z0, c_lq = [vae.encode(torch.rand(1, 3, 512, 512) * 2 - 1).latent_dist.mode() for _ in range(2)]
        if i == 0:
            return given
        n = torch.randn_like(z0)
        # As many tokens as the program reads: SD3's include T5's, which are zero without it.
        text = torch.zeros(1, 77, 2048) if sdxl else torch.zeros(1, 333, 4096)
        return given | {"sample": 0.6 * z0 + 0.8 * n, "lq": c_lq, "target": n if sdxl else n - z0, "text": text}

    seconds, spent = [], []
    for i in range(steps):
        begin, cpu = time.perf_counter(), time.process_time()
        x = sample(i)
        lq_features(x["lq"])
        if sdxl:
            added = {"text_embeds": x["pooled"], "time_ids": x["time_ids"]}
            y = net(x["sample"], x["timestep"], x["text"], added_cond_kwargs=added).sample
        else:
            y = net(x["sample"], x["text"], x["pooled"], x["timestep"]).sample
        loss = F.mse_loss(y, x["target"])
        loss.backward()
        if i == 0:
            errors = first_step(folder, given, trained, loss.detach(), stored)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - begin)
        spent.append(time.process_time() - cpu)
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return {"step_s": seconds, "cpu_s": spent, "peak_bytes": 1024 * peak} | errors


def first_step(folder, given, trained, loss, stored):
    """Keeps the f32 network's first step for the others; compares theirs with it. Not while the step's own memory is at its most."""
    place = f"{folder}/step.safetensors"
    if not stored:
        kept = given | {"loss": loss[None]}
        for name, p in trained.items():
            kept |= {f"value.{name}": p.detach(), f"grad.{name}": p.grad}
        save_file(kept, place)
        return {"loss": loss.item()}
    wrong = total = 0.0
    kept = load_file(place)
    for name, p in trained.items():
        theirs = kept[f"grad.{name}"]
        wrong += (p.grad - theirs).double().square().sum().item()
        total += theirs.double().square().sum().item()
    theirs = kept["loss"].item()
    return {"loss": loss.item(), "loss_error": abs(loss.item() - theirs) / theirs, "gradient_error": (wrong / total) ** 0.5}
