"""One denoising step of full-size SDXL or SD3 with random weights, in diffusers and in reclair: error, time, memory.

    python3 benches/peers/full_size.py sdxl|sd3 [--folder DIR] [--repeat N] [PHASE ...]

Needs diffusers. Phases, all of
them by default: `build` writes the network in bfloat16 (5.1 or 4.1 GB under DIR, tensor by tensor from a seed) and its
inputs for 512x512; `f32` and `bf16` step in diffusers, `reclair` in ours (`bf16` and `reclair` twice, in turn), `adapter` in
ours with a fresh Restoration Adapter and LoRA, each alone and both, beside the bare prior, turn by turn; `controlnet`, for sdxl, in diffusers in
bfloat16 with a ControlNet of random weights beside the bare prior; `report` prints the table. Each step runs in a process of its own,
so that its peak memory (the kernel's VmHWM, mapped weights included) is its own. Of N runs the quickest counts. Errors are
of the norm against diffusers' f32 step with the same weights, which are rounded to bfloat16.

`pipeline`, for sdxl alone and not among the phases by default, makes the folder whole (random text encoders and autoencoder, 1.8 GB)
and runs `target/release/reclair restore` on docs/sample.jpg, 512x512, with two steps, the paper's guidance and the adapter of phase
`adapter` where it was run: time, peak memory, and the picture in DIR/restored.png.
"""

import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zlib

import torch
from safetensors.torch import load_file, save_file

from programs import ROOT, benchmark

PHASES = ["build", "f32", "bf16", "reclair", "bf16", "reclair", "adapter", "controlnet", "report"]
PARAMETERS = {"sdxl": 2_567_463_684, "sd3": 2_028_328_000}
SHARD_BYTES = 1 << 30
# Bars: error; step beside diffusers' bf16 and f32; memory beyond 1.1 of the weights; the adapter's part of a step.
ERROR, BF16, F32, BYTES, ADAPTER = 2e-2, 1.1, 0.4, 1e9, 0.12
# Bar of the whole pipeline's peak memory.
PIPELINE_BYTES = 9e9


def network(model):
    """The class, its folder and its configuration, which are reclair's own for checkpoints without one."""
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    kind, part = {"sdxl": (UNet2DConditionModel, "unet"), "sd3": (SD3Transformer2DModel, "transformer")}[model]
    with open(f"{ROOT}/crates/priors/src/known/{model}/{part}.json") as file:
        return kind, part, json.load(file)


def random_tensor(name, like):
    """Weights that keep activations near unit variance: normal, over the root of the inputs; norms near 1; small biases."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if like.dim() > 1:
        return noise / like[0].numel() ** 0.5
    return noise * 0.02 + (1.0 if name.endswith(".weight") else 0.0)


def positions(config):
    """SD3's table of positions, which its checkpoints hold."""
    from diffusers.models.embeddings import PatchEmbed

    size, width = config["sample_size"], config["num_attention_heads"] * config["attention_head_dim"]
    most = config["pos_embed_max_size"]
    embed = PatchEmbed(size, size, config["patch_size"], config["in_channels"], width, pos_embed_max_size=most)
    return embed.pos_embed


def build(model, folder, made=None):
    """Writes the network, or `made`: another class, folder and configuration."""
    kind, part, config = made or network(model)
    with torch.device("meta"):
        net = kind.from_config(config)
    count = sum(p.numel() for p in net.parameters())
    assert made or count == PARAMETERS[model], f"{count} parameters and not {PARAMETERS[model]}"
    place = f"{folder}/{part}"
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    net.save_config(place)
    shards, shard, size, stem = {}, {}, 0, "diffusion_pytorch_model"

    def flush():
        nonlocal shard, size
        name = f"{stem}-{len(set(shards.values())) + 1:05}.safetensors"
        save_file(shard, f"{place}/{name}", metadata={"format": "pt"})
        shards.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, like in net.state_dict().items():
        value = positions(config) if name == "pos_embed.pos_embed" else random_tensor(name, like)
        shard[name] = value.to(torch.bfloat16).contiguous()
        size += 2 * value.numel()
        if size >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    total = sum(os.path.getsize(path) for path in glob.glob(f"{place}/*.safetensors"))
    with open(f"{place}/{stem}.safetensors.index.json", "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": shards}, file)
    save_file(inputs(model), f"{folder}/inputs.safetensors")
    return {"parameters": count, "bytes": total}


def inputs(model):
    """A latent of 64x64 and its company, all representable in bfloat16."""
    noise = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=noise).bfloat16().float()
    if model == "sdxl":
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]])
        made = {"sample": make(1, 4, 64, 64), "lq": make(1, 4, 64, 64), "time_ids": sizes}
        return made | {"text": make(1, 77, 2048), "pooled": make(1, 1280), "timestep": torch.tensor([500.0])}
    made = {"sample": make(1, 16, 64, 64), "lq": make(1, 16, 64, 64), "timestep": torch.tensor([500.0])}
    # Two CLIPs side by side in 77 tokens, then T5's 256, as both programs run it.
    return made | {"text": make(1, 333, 4096), "pooled": make(1, 2048)}


@torch.no_grad()
def step_in_diffusers(model, folder, dtype, repeat):
    kind, part, _ = network(model)
    torch.set_num_threads(os.cpu_count())
    begin = time.perf_counter()
    net = kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype, low_cpu_mem_usage=True).eval()
    load = time.perf_counter() - begin
    x = {name: value.to(dtype) for name, value in load_file(f"{folder}/inputs.safetensors").items()}
    text = {"encoder_hidden_states": x["text"], "timestep": x["timestep"], "return_dict": False}
    if model == "sdxl":
        added = {"text_embeds": x["pooled"], "time_ids": x["time_ids"]}
        run = lambda: net(sample=x["sample"], added_cond_kwargs=added, **text)[0]
    else:
        run = lambda: net(hidden_states=x["sample"], pooled_projections=x["pooled"], **text)[0]
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        y = run()
        seconds.append(time.perf_counter() - begin)
    save_file({"output": y.float().contiguous()}, f"{folder}/{str(dtype).removeprefix('torch.')}.safetensors")
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return {"load_s": load, "step_s": seconds, "peak_bytes": 1024 * peak}


@torch.no_grad()
def controlnet_in_diffusers(model, folder, repeat):
    """Steps without and with a ControlNet, turn by turn. Its values do not matter for the time."""
    from diffusers import ControlNetModel

    if model != "sdxl":
        return {}
    kind, part, _ = network(model)
    torch.set_num_threads(os.cpu_count())
    net = kind.from_pretrained(folder, subfolder=part, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True).eval()
    control = ControlNetModel.from_unet(net, load_weights_from_unet=False).to(torch.bfloat16).eval()
    x = {name: value.bfloat16() for name, value in load_file(f"{folder}/inputs.safetensors").items()}
    added = {"text_embeds": x["pooled"], "time_ids": x["time_ids"]}
    told = {"encoder_hidden_states": x["text"], "timestep": x["timestep"], "added_cond_kwargs": added, "return_dict": False}
    picture = torch.zeros(1, 3, 512, 512, dtype=torch.bfloat16)
    bare, controlled = [], []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        net(sample=x["sample"], **told)
        bare.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        down, mid = control(sample=x["sample"], controlnet_cond=picture, **told)
        net(sample=x["sample"], down_block_additional_residuals=down, mid_block_additional_residual=mid, **told)
        controlled.append(time.perf_counter() - begin)
    count = sum(p.numel() for p in control.parameters())
    return {"parameters": count, "bare_s": bare, "controlled_s": controlled}


def step_in_reclair(folder, repeat, adapter):
    command = [benchmark("restore", "step"), folder, f"{folder}/inputs.safetensors"]
    command += [f"{folder}/reclair.safetensors", "--repeat", str(repeat)]
    if adapter:
        command += ["--adapter", f"{folder}/adapter"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def complete(model, folder):
    """The rest of a prior's folder: configurations, text encoders and autoencoder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    known = f"{ROOT}/crates/priors/src/known/{model}"
    places = {"scheduler": "scheduler/scheduler_config", "tokenizer": "tokenizer/tokenizer_config"}
    places |= {"tokenizer_2": "tokenizer_2/tokenizer_config", "model_index": "model_index"}
    parts = {"text_encoder": CLIPTextModelWithProjection, "text_encoder_2": CLIPTextModelWithProjection, "vae": AutoencoderKL}
    places |= {part: f"{part}/config" for part in parts}
    for name, place in places.items():
        os.makedirs(os.path.dirname(f"{folder}/{place}"), exist_ok=True)
        shutil.copyfile(f"{known}/{name}.json", f"{folder}/{place}.json")
    for part, kind in parts.items():
        with open(f"{known}/{part}.json") as file, torch.device("meta"):
            config = json.load(file)
            net = kind.from_config(config) if part == "vae" else kind(CLIPTextConfig(**config))
        # With a projection a text encoder's names are those on disk, but SDXL's first has none.
        skip = "text_projection.weight" if part == "text_encoder" else None
        values = {n: random_tensor(n, like).bfloat16().contiguous() for n, like in net.state_dict().items() if n != skip}
        stem = "diffusion_pytorch_model" if part == "vae" else "model"
        save_file(values, f"{folder}/{part}/{stem}.safetensors", metadata={"format": "pt"})


def pipeline(model, folder):
    if model != "sdxl":
        sys.exit("the pipeline is that of sdxl")
    if not os.path.exists(f"{folder}/vae/config.json"):
        complete(model, folder)
    out = f"{folder}/restored.png"
    command = [f"{ROOT}/target/release/reclair", "restore", f"{ROOT}/docs/sample.jpg", "-o", out, "--prior", folder]
    command += ["--steps", "2", "--json"]
    if os.path.exists(f"{folder}/adapter"):
        command += ["--adapter", f"{folder}/adapter"]
    begin = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        sys.exit(f"reclair failed: {' '.join(command)}")
    told = json.loads(line)
    size = [told["width"], told["height"]]
    assert size == [512, 512] and os.path.getsize(out) > 0, f"the result is {size}"
    peak = 1024 * usage.ru_maxrss
    print(f"{'meets' if peak <= PIPELINE_BYTES else 'MISSES'}: peak memory {peak / 1e9:.2f} GB, bar {PIPELINE_BYTES / 1e9:.0f}", file=sys.stderr)
    return {"seconds": time.perf_counter() - begin, "restore_s": told["seconds"], "peak_bytes": peak, "adapter": "--adapter" in command}


def phase(name, args):
    if name == "build":
        return build(args.model, args.folder)
    if name == "pipeline":
        return pipeline(args.model, args.folder)
    if name in ("f32", "bf16"):
        dtype = torch.float32 if name == "f32" else torch.bfloat16
        return step_in_diffusers(args.model, args.folder, dtype, args.repeat)
    if name == "controlnet":
        return controlnet_in_diffusers(args.model, args.folder, args.repeat)
    return step_in_reclair(args.folder, args.repeat, name == "adapter")


def report(folder, results):
    """Prints the table; whether every bar is met."""
    need = [name for name in dict.fromkeys(PHASES[:-1]) if name not in results]
    if need:
        sys.exit(f"run {' and '.join(need)} first")
    size = results["build"]["bytes"]
    want = load_file(f"{folder}/float32.safetensors")["output"].double()
    print("| step | seconds, best (all) | peak memory, GB | error of the norm |\n|---|---|---|---|")
    best, errors = {}, {}
    names = {"f32": "float32", "bf16": "bfloat16", "reclair": "reclair"}
    for name, file in names.items():
        run = results[name]
        got = load_file(f"{folder}/{file}.safetensors")["output"].double()
        best[name], errors[name] = min(run["step_s"]), ((got - want).norm() / want.norm()).item()
        label = name if name == "reclair" else f"diffusers {name}"
        every = " ".join(f"{s:.2f}" for s in run["step_s"])
        print(f"| {label} | {best[name]:.2f} ({every}) | {run['peak_bytes'] / 1e9:.2f} | {errors[name]:.1e} |")
    run = results["adapter"]
    # Turn by turn: a machine's slow minute slows both.
    share = statistics.median(a / b for a, b in zip(run["adapted_s"], run["bare_s"])) - 1
    print(f"\nweights {size / 1e9:.2f} GB; the output's root mean square {want.square().mean().sqrt():.3f}")
    times = f"{min(run['adapted_s']):.2f} s beside {min(run['bare_s']):.2f} s"
    print(f"with adapter and LoRA {times}; its low-quality features, once a picture, {run['lq_features_s']:.2f} s")
    alone = {part: min(run[key]) / min(run["bare_s"]) - 1 for part, key in [("adapter", "adapter_s"), ("LoRA", "lora_s")]}
    print(", ".join(f"{part} alone {100 * more:.1f} % more" for part, more in alone.items()))
    if run := results["controlnet"]:
        more = min(run["controlled_s"]) / min(run["bare_s"]) - 1
        times = f"{min(run['controlled_s']):.2f} s beside {min(run['bare_s']):.2f} s"
        print(f"diffusers bf16 with a ControlNet of {run['parameters']:,} parameters {times}: {100 * more:.0f} % more")
    bars = [
        ("error", errors["reclair"], ERROR),
        ("step / diffusers bf16", best["reclair"] / best["bf16"], BF16),
        ("step / diffusers f32", best["reclair"] / best["f32"], F32),
        ("peak memory beyond 1.1 of the weights, bytes", results["reclair"]["peak_bytes"] - 1.1 * size, BYTES),
        ("adapter and LoRA add", share, ADAPTER),
    ]
    for what, got, bar in bars:
        print(f"{'meets' if got <= bar else 'MISSES'}: {what} {got:.3g}, bar {bar:.3g}")
    return all(got <= bar for _, got, bar in bars)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PARAMETERS)
    parser.add_argument("phases", nargs="*", metavar="PHASE", default=PHASES)
    parser.add_argument("--folder", help="default: target/full_size/MODEL")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if strange := set(args.phases) - {*PHASES, "pipeline"}:
        parser.error(f"no phase {' or '.join(sorted(strange))}; choose among {' '.join(PHASES)} pipeline")
    args.folder = args.folder or f"{ROOT}/target/full_size/{args.model}"
    os.makedirs(args.folder, exist_ok=True)
    place = f"{args.folder}/results.json"
    if args.alone:
        print(json.dumps(phase(args.phases[0], args)))
        return 0
    met = True
    for i, name in enumerate(args.phases):
        results = json.load(open(place)) if os.path.exists(place) else {}
        if name == "report":
            met &= report(args.folder, results)
            continue
        command = [sys.executable, __file__, args.model, name, "--alone", "--folder", args.folder]
        command += ["--repeat", str(args.repeat)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        now = json.loads(done.splitlines()[-1])
        met &= name != "pipeline" or now["peak_bytes"] <= PIPELINE_BYTES
        if name in args.phases[:i] and "step_s" in now:
            now["step_s"] = results[name]["step_s"] + now["step_s"]
        results[name] = now
        with open(place, "w") as file:
            json.dump(results, file, indent=1)
        print(f"{name}: {results[name]}", file=sys.stderr)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
