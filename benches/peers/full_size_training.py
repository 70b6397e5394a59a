"""One training step of the full-size adapter of SDXL or SD3 at 512x512, batch 1: `reclair train` and PyTorch, error, time and memory.

    python3 benches/peers/full_size_training.py sdxl|sd3 [--folder DIR] [--steps N] [--turns N] [--small] [PHASE ...]

Needs diffusers and target/release/reclair.
Phases, all of them by default: `build` writes a whole random prior (the network in bfloat16, as full_size.py does; text
encoders in bfloat16, the autoencoder in f32) and a picture; `torch` trains for N steps in PyTorch with torch.utils.checkpoint (training_in_torch.py),
the frozen weights in f32, `torch-stored` with them in bfloat16, each widened where it is used; `reclair` trains by the program
itself, the prompt's encoding cached, without averaging; `error` gives reclair the first step of `torch`, the same sample, noise and values, and compares
loss and gradients; `report` prints the table. `--turns` makes the phases that measure so often, turn by turn.

A step is: both pictures through the autoencoder's encoder in f32, the noisy latent, the network with Restoration Adapter (D3 for SDXL) and LoRA of
rank 32, squared error, gradients of all that trains, AdamW; reclair's also decodes, crops and degrades the picture. Each runs in
a process of its own; the first step, which touches the weights for the first time, is listed and not counted. Processor time
is of both threads together, and says more than the clock where the machine does other things too. Peak memory is the kernel's VmHWM, mapped
weights included. Errors are of the norm against PyTorch's f32 step, whose weights are the same, rounded to bfloat16.

`--small` takes networks of a fifth of the width and fewer layers, in a folder of their own: to try the script in minutes. Its figures say nothing.
"""

import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import torch
from safetensors.torch import save_file

import full_size
from programs import benchmark
from training_in_torch import step_in_torch

ROOT = full_size.ROOT
MEASURED = ["torch", "torch-stored", "reclair", "error"]
PHASES = ["build", *MEASURED, "report"]
TRAINED = {"sdxl": 157_904_640, "sd3": 80_262_144}
# Bars: memory; error of the gradients; time and memory beside PyTorch's.
BYTES, ERROR = 16e9, 2e-2
SMALL = {
    "sdxl": {"block_out_channels": [64, 128, 256], "attention_head_dim": [1, 2, 4], "transformer_layers_per_block": [1, 1, 2]},
    "sd3": {"num_attention_heads": 4, "caption_projection_dim": 256},
    "vae": {"block_out_channels": [32, 64, 64, 64]},
    "text_encoder": {"num_hidden_layers": 2},
}


def network(model, small):
    """As full_size.network, or a narrower one."""
    kind, part, config = full_size.network(model)
    return kind, part, config | (SMALL[model] if small else {})


def known(model, part, small):
    with open(f"{ROOT}/crates/priors/src/known/{model}/{part}.json") as file:
        return json.load(file) | (SMALL.get(part.removesuffix("_2"), {}) if small else {})


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file)


def build(model, folder, small):
    """A diffusers folder of random weights. SD3's T5 is left out, as many people's folders do."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    made = network(model, small)
    if not (glob.glob(f"{folder}/{made[1]}/*.safetensors") and os.path.exists(f"{folder}/inputs.safetensors")):
        full_size.build(model, folder, made)
    config = known(model, "vae", small)
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    make = lambda module, dtype: {
        name: full_size.random_tensor(name, like).to(dtype) for name, like in module.state_dict().items() if "position_ids" not in name
    }
    write_json(f"{folder}/vae/config.json", config)
    save_file(make(vae, torch.float32), f"{folder}/vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for suffix in ["", "_2"]:
        config = known(model, f"text_encoder{suffix}", small)
        write_json(f"{folder}/text_encoder{suffix}/config.json", config)
        write_json(f"{folder}/tokenizer{suffix}/tokenizer_config.json", known(model, f"tokenizer{suffix}", small))
        kind = CLIPTextModelWithProjection if "Projection" in config["architectures"][0] else CLIPTextModel
        with torch.device("meta"):
            encoder = kind(CLIPTextConfig(**config))
        tensors = {name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value for name, value in make(encoder, torch.bfloat16).items()}
        save_file(tensors, f"{folder}/text_encoder{suffix}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{folder}/scheduler/scheduler_config.json", known(model, "scheduler", small))
    write_json(f"{folder}/model_index.json", known(model, "model_index", small))
    photos = f"{folder}/photos"
    os.makedirs(photos, exist_ok=True)
    shutil.copy(f"{ROOT}/docs/sample.jpg", photos)
    return {}


def configuration(model, folder, steps, small):
    """The recipe as a run of some steps on the built prior."""
    with open(f"{ROOT}/recipes/{model}/adapter.toml") as file:
        recipe = file.read()
    changes = {
        "model": f'"{folder}"', "out": f'"{folder}/run"', "images": f'"{folder}/photos"', "null_text": "1.0\ncache_text = true",
        "steps": str(steps), "accumulate": "1", "ema_halflife_images": "0", "checkpoint": "1000000", "reduce": "[1.0, 1.0]",
    }
    if small:
        changes |= {"d_emb": "256"} if model == "sdxl" else {"width": "256"}
    for key, value in changes.items():
        recipe, n = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", recipe)
        assert n == 1, key
    recipe = re.sub(r"(?m)^encoder_model = .*\n", "", recipe)  # both sides encode with the autoencoder's own
    path = f"{folder}/run.toml"
    with open(path, "w") as file:
        file.write(recipe)
    return path


def step_in_reclair(model, folder, steps, small):
    run = f"{folder}/run"
    for old in glob.glob(f"{run}/*"):  # but for the prompts' encodings
        if os.path.isfile(old):
            os.remove(old)
        elif not old.endswith("/text"):
            shutil.rmtree(old)
    path = configuration(model, folder, steps, small)
    program = subprocess.Popen([f"{ROOT}/target/release/reclair", "train", path], stderr=subprocess.PIPE, text=True)
    begun = threading.Event()

    def listen():
        for line in program.stderr:
            if line.startswith("training "):
                begun.set()  # what comes before is loading, and reading the prompts
            sys.stderr.write(line)

    listener = threading.Thread(target=listen)
    listener.start()
    peak, cpu = 0, []
    while program.poll() is None:
        try:
            with open(f"/proc/{program.pid}/status") as file:
                peak = next((1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM")), peak)
            with open(f"/proc/{program.pid}/stat") as file:
                spent = sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")
            if not begun.is_set():
                cpu = [spent]
                continue
            with open(f"{run}/log.jsonl") as file:
                done = sum(1 for line in file if '"loss"' in line)
            cpu += [spent] * (done + 1 - len(cpu))
        except (FileNotFoundError, ProcessLookupError):
            pass
        finally:
            time.sleep(0.02)
    listener.join()
    if program.returncode:
        sys.exit("reclair failed")
    with open(f"{run}/log.jsonl") as file:
        log = [json.loads(line) for line in file]
    steps = [line for line in log if "loss" in line]
    spent = [b - a for a, b in zip(cpu, cpu[1:])]
    return {"step_s": [line["seconds"] for line in steps], "cpu_s": spent, "peak_bytes": peak, "loss": [line["loss"] for line in steps]}


def error_of_reclair(model, folder, small):
    if not os.path.exists(f"{folder}/step.safetensors"):
        sys.exit("run the phase torch first")
    path = configuration(model, folder, 1, small)
    command = [benchmark("train", "gradients"), path, f"{folder}/step.safetensors"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def counted(runs, key):
    """The figures of all steps of all turns but the first of each."""
    return [s for run in runs for s in run[key][1:] or run[key]]


def report(results, small):
    print(
        "| step | seconds, best after the first (all) | processor seconds, best after the first (all) | peak memory, GB | error of the loss | of the gradients |"
        "\n|---|---|---|---|---|---|"
    )
    errors = results.get("error", [{}])[-1]
    for name, label in [("torch", "PyTorch, weights in f32"), ("torch-stored", "PyTorch, weights in bfloat16"), ("reclair", "reclair")]:
        if name not in results:
            continue
        runs = results[name]
        best = lambda key: f"{min(counted(runs, key)):.1f} ({'; '.join(' '.join(f'{s:.1f}' for s in run[key]) for run in runs)})"
        peak = max(run["peak_bytes"] for run in runs) / 1e9
        off = errors if name == "reclair" else runs[-1]
        said = [f"{off[key]:.1e}" if key in off else "" for key in ("loss_error", "gradient_error")]
        print(f"| {label} | {best('step_s')} | {best('cpu_s')} | {peak:.2f} | {' | '.join(said)} |")
    if errors:
        print(f"\nof {errors['tensors']} tensors the gradient of {errors['worst']} is the worst, {errors['worst_error']:.1e} of its norm")
    if small:
        print("\nnarrow networks: the figures say nothing about the full size")
        return True
    bars = []
    if errors:
        bars.append(("error of the gradients", errors["gradient_error"], ERROR))
    if ours := results.get("reclair"):
        peak = lambda runs: max(run["peak_bytes"] for run in runs)
        bars.append(("peak memory, bytes", peak(ours), BYTES))
        for name in ["torch", "torch-stored"]:
            if theirs := results.get(name):
                bars.append((f"step / {name}", min(counted(ours, "step_s")) / min(counted(theirs, "step_s")), 1))
                bars.append((f"memory / {name}", peak(ours) / peak(theirs), 1))
    for what, got, bar in bars:
        print(f"{'meets' if got <= bar else 'MISSES'}: {what} {got:.3g}, bar {bar:.3g}")
    return all(got <= bar for _, got, bar in bars)


def phase(name, args):
    model, folder, small = args.model, args.folder, args.small
    if name == "build":
        return build(model, folder, small)
    if name == "reclair":
        return step_in_reclair(model, folder, args.steps, small)
    if name == "error":
        return error_of_reclair(model, folder, small)
    want = None if small else TRAINED[model]
    return step_in_torch(model, network(model, small), folder, args.steps, name == "torch-stored", want)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=TRAINED)
    parser.add_argument("phases", nargs="*", metavar="PHASE", default=PHASES)
    parser.add_argument("--folder", help="default: target/full_size/MODEL, or MODEL-small")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if strange := set(args.phases) - set(PHASES):
        parser.error(f"no phase {' or '.join(sorted(strange))}; choose among {' '.join(PHASES)}")
    args.folder = os.path.abspath(args.folder or f"{ROOT}/target/full_size/{args.model}{'-small' if args.small else ''}")
    os.makedirs(args.folder, exist_ok=True)
    if args.alone:
        print(json.dumps(phase(args.phases[0], args)))
        return 0
    place = f"{args.folder}/training.json"
    results = json.load(open(place)) if os.path.exists(place) else {}
    now = {}
    turn = [name for name in args.phases if name in MEASURED]
    for name in ["build"] * ("build" in args.phases) + turn * args.turns:
        command = [sys.executable, __file__, args.model, name, "--alone", "--folder", args.folder, "--steps", str(args.steps)]
        command += ["--small"] * args.small
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        run = json.loads(done.splitlines()[-1])
        now[name] = now.get(name, []) + [run]
        results |= now  # in place of what an earlier call measured
        with open(place, "w") as file:
            json.dump(results, file, indent=1)
        print(f"{name}: {run}", file=sys.stderr)
    return 0 if "report" not in args.phases or report(results, args.small) else 1


if __name__ == "__main__":
    sys.exit(main())
