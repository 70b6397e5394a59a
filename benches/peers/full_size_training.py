"""One training step of the full-size adapter of SDXL or SD3 at 512x512, batch 1: `reclair train` and PyTorch, time and memory.

    python3 benches/peers/full_size_training.py sdxl|sd3 [--folder DIR] [--steps N] [PHASE ...]

Needs diffusers, peft and target/release/reclair. Phases, all of them by default: `build` writes a whole random prior (the network in
bfloat16, as full_size.py does; text encoders in bfloat16, the autoencoder in f32) and pictures; `reclair` trains for N steps
by the program itself, the prompt's encoding cached, without averaging; `torch` makes the same step by PyTorch with
torch.utils.checkpoint around each transformer layer and ResNet, the frozen weights in f32, `torch-stored` with them
in bfloat16, each widened where it is used; `report` prints the table. A step is: both pictures through the autoencoder's encoder in f32, the
noisy latent, the network with Restoration Adapter (D3 for SDXL) and LoRA of rank 32, squared error, gradients of all that trains, AdamW; reclair's also
decodes, crops and degrades the picture. Each runs in a process of its own; the first step, which touches the weights for the first time, is
listed and not counted. Processor time is of both threads together, and says more than the clock where the machine does other
things too. Peak memory is the kernel's VmHWM, mapped weights included.
"""

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import full_size

ROOT = full_size.ROOT
PHASES = ["build", "reclair", "torch", "torch-stored", "report"]
RANK = 32
SITES = [(320, 2), (640, 4), (1280, 4), (1280, 4), (1280, 2), (640, 1)]
AFTER = [3, 7, 11, 15, 19, 23]
TRAINED = {"sdxl": 157_904_640, "sd3": 80_262_144}


def known(model, part):
    with open(f"{ROOT}/crates/priors/src/known/{model}/{part}.json") as file:
        return json.load(file)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file)


def autoencoder(model):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(known(model, "vae"))


def build(model, folder):
    """A diffusers folder of random weights. SD3's T5 is left out, as many people's folders do."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind, part, config = full_size.network(model)
    if not glob.glob(f"{folder}/{part}/*.safetensors"):
        full_size.build(model, folder)
    with torch.device("meta"):
        vae = autoencoder(model)
    make = lambda module, dtype: {
        name: full_size.random_tensor(name, like).to(dtype) for name, like in module.state_dict().items() if "position_ids" not in name
    }
    write_json(f"{folder}/vae/config.json", known(model, "vae"))
    save_file(make(vae, torch.float32), f"{folder}/vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for suffix in ["", "_2"]:
        config = known(model, f"text_encoder{suffix}")
        write_json(f"{folder}/text_encoder{suffix}/config.json", config)
        write_json(f"{folder}/tokenizer{suffix}/tokenizer_config.json", known(model, f"tokenizer{suffix}"))
        kind = CLIPTextModelWithProjection if "Projection" in config["architectures"][0] else CLIPTextModel
        with torch.device("meta"):
            encoder = kind(CLIPTextConfig(**config))
        tensors = {name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value for name, value in make(encoder, torch.bfloat16).items()}
        save_file(tensors, f"{folder}/text_encoder{suffix}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{folder}/scheduler/scheduler_config.json", known(model, "scheduler"))
    write_json(f"{folder}/model_index.json", known(model, "model_index"))
    photos = f"{folder}/photos"
    os.makedirs(photos, exist_ok=True)
    shutil.copy(f"{ROOT}/docs/sample.jpg", photos)
    return {}


def step_in_reclair(model, folder, steps):
    with open(f"{ROOT}/recipes/{model}/adapter.toml") as file:
        recipe = file.read()
    run = f"{folder}/run"
    for old in glob.glob(f"{run}/*"):  # but for the prompts' encodings
        if os.path.isfile(old):
            os.remove(old)
        elif not old.endswith("/text"):
            shutil.rmtree(old)
    for key, value in {
        "model": f'"{folder}"', "out": f'"{run}"', "images": f'"{folder}/photos"', "null_text": "1.0\ncache_text = true",
        "steps": str(steps), "accumulate": "1", "ema_halflife_images": "0", "checkpoint": "1000000", "reduce": "[1.0, 1.0]",
    }.items():
        recipe, n = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", recipe)
        assert n == 1, key
    recipe = re.sub(r"(?m)^encoder_model = .*\n", "", recipe)  # both sides encode with the autoencoder's own
    path = f"{folder}/run.toml"
    with open(path, "w") as file:
        file.write(recipe)
    program = subprocess.Popen([f"{ROOT}/target/release/reclair", "train", path])
    peak, cpu = 0, []
    while program.poll() is None:
        try:
            with open(f"/proc/{program.pid}/status") as file:
                peak = next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM")), peak)
            with open(f"/proc/{program.pid}/stat") as file:
                spent = sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")
            with open(f"{run}/log.jsonl") as file:
                done = sum(1 for line in file if '"loss"' in line)
            # Before the first step: loading, and reading the prompts.
            cpu = cpu[:1] if done == 0 else cpu
            cpu = [spent] if not cpu or done == 0 else cpu + [spent] * (done + 1 - len(cpu))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.1)
    if program.returncode:
        sys.exit("reclair failed")
    with open(f"{run}/log.jsonl") as file:
        log = [json.loads(line) for line in file]
    steps = [line for line in log if "loss" in line]
    spent = [b - a for a, b in zip(cpu, cpu[1:])]
    return {"step_s": [line["seconds"] for line in steps], "cpu_s": spent, "peak_bytes": peak, "loss": [line["loss"] for line in steps]}


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def block(c_in, c, latent=False):
    half = c // 2
    first = [] if latent else [nn.GroupNorm(32, c_in), nn.SiLU()]
    convs = [nn.Conv2d(c_in, half, 3, padding=1), nn.SiLU(), nn.Conv2d(half, half, 3, padding=1), nn.SiLU(), nn.Conv2d(half, c, 1)]
    return nn.Sequential(*first, *convs)


class UnetAdapter(nn.Module):
    def __init__(self, c_lq, c, latent):
        super().__init__()
        self.lq_block, self.time = block(c_lq, c, latent), nn.Linear(1280, c)
        self.blocks, self.zero = nn.ModuleList([block(c, c), block(c, c)]), nn.Conv2d(c, c, 1)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, lq, x, emb):
        h = lq + self.time(F.silu(emb))[:, :, None, None] + x
        for one in self.blocks:
            h = h + one(h)
        return x + self.zero(h)


class DitAdapter(nn.Module):
    def __init__(self, d=1536):
        super().__init__()
        make = lambda: nn.Sequential(nn.LayerNorm(d, eps=1e-6, elementwise_affine=False), nn.SiLU(), nn.Linear(d, d))
        self.lq_block, self.time, self.blocks, self.zero = make(), nn.Linear(d, d), nn.ModuleList([make(), make()]), nn.Linear(d, d)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, lq, x, emb):
        h = lq + self.time(F.silu(emb))[:, None] + x
        for one in self.blocks:
            h = h + one(h)
        return x + self.zero(h)


def widen(module):
    """The stored weight in f32 for the length of a call; inside a checkpoint it is not kept."""
    forward = type(module).forward

    def call(x, *args, **more):
        stored = {name: p.data for name, p in module.named_parameters(recurse=False)}
        wide = {name: p.float() for name, p in module.named_parameters(recurse=False)}
        if isinstance(module, nn.Linear):
            return F.linear(x, wide["weight"], wide.get("bias"))
        if isinstance(module, nn.Conv2d):
            return module._conv_forward(x, wide["weight"], wide.get("bias"))
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, wide["weight"], wide["bias"], module.eps)
        if isinstance(module, nn.LayerNorm):
            return F.layer_norm(x, module.normalized_shape, wide.get("weight"), wide.get("bias"), module.eps)
        assert not stored, type(module)
        return forward(module, x, *args, **more)

    module.forward = call


def checkpointed(module):
    forward = module.forward
    module.forward = lambda *args, **more: checkpoint(forward, *args, use_reentrant=False, **more)


def step_in_torch(model, folder, steps, stored):
    from diffusers import AutoencoderKL
    from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    kind, part, _ = full_size.network(model)
    dtype = torch.bfloat16 if stored else torch.float32
    net = kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype, low_cpu_mem_usage=True).requires_grad_(False)
    if stored:
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
                widen(module)
        net.register_forward_pre_hook(lambda *_: None)
    names = [name for name, _ in net.named_modules() if re.search(r"\.attn1?\.(to_q|to_k|to_v|to_out\.0)$", name) and "attn2" not in name]
    trained = []
    for name in names:
        parent, child = name.rsplit(".", 1)
        lora = Lora(net.get_submodule(name))
        setattr(net.get_submodule(parent), child, lora)
        trained += [lora.a.weight, lora.b.weight]
    sdxl = model == "sdxl"
    if sdxl:
        widths = [4] + [c for c, _ in SITES]
        adapters = nn.ModuleList([UnetAdapter(widths[i], c, i == 0) for i, (c, _) in enumerate(SITES)])
    else:
        adapters = nn.ModuleList([DitAdapter() for _ in AFTER])
    trained += list(adapters.parameters())
    assert sum(p.numel() for p in trained) == TRAINED[model], sum(p.numel() for p in trained)
    for module in list(net.modules()):
        if isinstance(module, (BasicTransformerBlock, JointTransformerBlock, ResnetBlock2D)):
            checkpointed(module)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    vae.decoder = None
    optimiser = torch.optim.AdamW(trained, lr=1e-5)
    state = {}

    def unet_hook(i):
        def change(_module, _args, output):
            x = output[0] if isinstance(output, tuple) else output
            y = checkpoint(adapters[i], state["lq"][i], x, state["emb"], use_reentrant=False)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return change

    def dit_hook(i):
        def change(_module, _args, output):
            return output[0], checkpoint(adapters[i], state["lq"][i], output[1], state["emb"], use_reentrant=False)

        return change

    if sdxl:
        net.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _m, args: state.update(emb=args[1]))
        blocks = [*net.down_blocks, net.mid_block, *net.up_blocks][: len(SITES)]
        for i, one in enumerate(blocks):
            one.register_forward_hook(unet_hook(i))
    else:
        net.time_text_embed.register_forward_hook(lambda _m, _a, y: state.update(emb=y))
        for i, at in enumerate(AFTER):
            net.transformer_blocks[at].register_forward_hook(dit_hook(i))

    def lq_features(c_lq):
        features = []
        if sdxl:
            lq = c_lq
            for adapter, (_, downscale) in zip(adapters, SITES):
                size = [side // downscale for side in c_lq.shape[-2:]]
                lq = F.adaptive_avg_pool2d(lq, size) if lq.shape[-1] > size[1] else F.interpolate(lq, size, mode="nearest")
                lq = adapter.lq_block(lq)
                features.append(lq)
            return features
        lq = net.pos_embed.proj(c_lq).flatten(2).transpose(1, 2)
        for adapter in adapters:
            lq = adapter.lq_block(lq)
            features.append(lq)
        return features

    hq, low = torch.rand(1, 3, 512, 512) * 2 - 1, torch.rand(1, 3, 512, 512) * 2 - 1
    seconds, spent = [], []
    for _ in range(steps):
        begin, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            z0, c_lq = vae.encode(hq).latent_dist.mode(), vae.encode(low).latent_dist.mode()
        n, t = torch.randn_like(z0), torch.tensor([500.0])
        state["lq"] = lq_features(c_lq)
        if sdxl:
            added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]])}
            y = net(0.7 * z0 + 0.7 * n, t, torch.zeros(1, 77, 2048), added_cond_kwargs=added).sample
            loss = F.mse_loss(y, n)
        else:
            y = net(0.5 * z0 + 0.5 * n, torch.zeros(1, 333, 4096), torch.zeros(1, 2048), t).sample
            loss = F.mse_loss(y, n - z0)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - begin)
        spent.append(time.process_time() - cpu)
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return {"step_s": seconds, "cpu_s": spent, "peak_bytes": 1024 * peak}


def report(results):
    print("| step | seconds, best after the first (all) | processor seconds, best after the first (all) | peak memory, GB |\n|---|---|---|---|")
    for name, label in [("reclair", "reclair"), ("torch", "PyTorch, weights in f32"), ("torch-stored", "PyTorch, weights in bfloat16")]:
        if name in results:
            run = results[name]
            best = lambda all: f"{min(all[1:] or all):.1f} ({' '.join(f'{s:.1f}' for s in all)})"
            print(f"| {label} | {best(run['step_s'])} | {best(run['cpu_s'])} | {run['peak_bytes'] / 1e9:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=TRAINED)
    parser.add_argument("phases", nargs="*", metavar="PHASE", default=PHASES)
    parser.add_argument("--folder", help="default: target/full_size/MODEL")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if strange := set(args.phases) - set(PHASES):
        parser.error(f"no phase {' or '.join(sorted(strange))}; choose among {' '.join(PHASES)}")
    args.folder = os.path.abspath(args.folder or f"{ROOT}/target/full_size/{args.model}")
    os.makedirs(args.folder, exist_ok=True)
    if args.alone:
        run = {
            "build": lambda: build(args.model, args.folder),
            "reclair": lambda: step_in_reclair(args.model, args.folder, args.steps),
            "torch": lambda: step_in_torch(args.model, args.folder, args.steps, False),
            "torch-stored": lambda: step_in_torch(args.model, args.folder, args.steps, True),
        }
        print(json.dumps(run[args.phases[0]]()))
        return
    place = f"{args.folder}/training.json"
    for name in args.phases:
        results = json.load(open(place)) if os.path.exists(place) else {}
        if name == "report":
            report(results)
            continue
        command = [sys.executable, __file__, args.model, name, "--alone", "--folder", args.folder, "--steps", str(args.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results[name] = json.loads(done.splitlines()[-1])
        with open(place, "w") as file:
            json.dump(results, file, indent=1)
        print(f"{name}: {results[name]}", file=sys.stderr)


if __name__ == "__main__":
    main()
