"""`reclair train --plan` beside the runs that it announces: seconds a step and peak memory.

    python3 benches/plan/accuracy.py PROGRAM PHOTOS [--folder DIR] [--steps N] [CASE ...]

Needs diffusers and transformers (for the middle-sized prior: an SDXL-shaped U-Net and its encoders with random weights in bfloat16). Cases,
all but `sdxl` and `sdxl-encoder` by default: `joint-64`, `joint-96` (mini's last leg at two crops), `adapter-mini` (adapter and LoRA over mini, the gradient in pieces), `adapter`
(the same over the middle-sized prior), `sdxl` (the same over SDXL at full size, 512x512, one sample: `--sdxl` is the folder of
`benches/peers/full_size.py sdxl pipeline`), `sdxl-encoder` (SDXL's degradation-robust encoder at 512x512, of the same folder), `encoder` (mini's degradation-robust encoder) and `vae`. Only `adapter` needs diffusers. A run's peak memory is the kernel's (wait4); its seconds are the mean over its steps without the first three. Few
decoded photographs are kept, so that the runs fill their room, as longer ones with more room would. Bars: memory within 15 %, time within
30 %; a miss makes the exit code 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import time

MEMORY, TIME = 0.15, 0.30
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def middle(folder):
    """An SDXL-shaped prior of 87 M parameters in the network."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if os.path.exists(f"{folder}/model_index.json"):
        return
    torch.manual_seed(0)
    known = lambda part: json.load(open(f"{ROOT}/crates/priors/src/known/sdxl/{part}.json"))
    unet = known("unet") | {"block_out_channels": [64, 128, 256], "attention_head_dim": [2, 4, 8], "cross_attention_dim": 320}
    unet |= {"transformer_layers_per_block": [1, 2, 6], "projection_class_embeddings_input_dim": 192 + 6 * 256}
    save = lambda net, part: net.to(torch.bfloat16).save_pretrained(f"{folder}/{part}")
    net = UNet2DConditionModel.from_config(unet)
    print(f"{sum(p.numel() for p in net.parameters())} parameters in the network")
    save(net, "unet")
    AutoencoderKL.from_config(known("vae") | {"block_out_channels": [32, 64, 128, 128]}).save_pretrained(f"{folder}/vae")
    for part, kind, width in [("text_encoder", CLIPTextModel, 128), ("text_encoder_2", CLIPTextModelWithProjection, 192)]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 4, "num_attention_heads": width // 64}
        save(kind(CLIPTextConfig(projection_dim=width, hidden_act="gelu", eos_token_id=2, **sizes)), part)
    for part, pad in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")]:
        write(f"{folder}/{part}/tokenizer_config.json", json.dumps({"pad_token": pad}))
    write(f"{folder}/scheduler/scheduler_config.json", json.dumps(known("scheduler")))
    write(f"{folder}/model_index.json", json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}))


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def config(case, folder, photos, steps, sdxl):
    data = f"""[data]
images = "{photos}"
crop_px = %d
reduce = [1.0, 2.0]
cache_mb = %d
degradations = [{{ preset = "mixture", weight = 1.0 }}]
[optimise]
steps = {steps}
batch = %d
lr = 1e-4
ema_halflife_images = 6000
precision = "%s"
%s
[every]
checkpoint = {steps}
validate = 0
"""
    start = 'stage = "%s"\nmodel = "%s"\nout = "run"\nstart = "fresh"\n'
    d_emb = lambda width, channels: f"""[adapter]
_class_name = "UnetRestorationAdapter"
block = "%s"
after = [0, 1, 2, 3, 4, 5]
lq_channels = {channels}
d_emb = {width}
groups = 16
"""
    mini = f"{ROOT}/models/mini/prior"
    if case == "sdxl-encoder":
        more = start % ("encoder", sdxl) + data % (512, 250, 1, "f32", "gradient = { cut = 100 }")
        return more.replace('start = "fresh"', 'start = "model"')
    if case == "encoder":
        more = start % ("encoder", mini) + data % (96, 250, 12, "f32", "")
        return more.replace('start = "fresh"', 'start = "model"')
    if case == "adapter-mini":
        more = d_emb(256, 16) % "D1" + "[lora]\nrank = 8\nalpha = 8\n"
        return start % ("adapter", mini) + data % (96, 250, 12, "f32", "gradient = { cut = 20 }") + more
    if case == "vae":
        return start % ("vae", f"{ROOT}/recipes/mini/model") + data % (96, 250, 12, "f32", "")
    if case.startswith("joint"):
        more = "[denoise]\nmetric = \"pixels\"\n" + d_emb(256, 16) % "D1"
        return start % ("joint", mini) + data % (int(case[6:]), 250, 12, "bf16", "") + more
    lora = "[lora]\nrank = 32\nalpha = 32\n"
    if case == "sdxl":
        more = d_emb(1280, 4).replace("groups = 16", "groups = 32") % "D3" + lora
        return start % ("adapter", sdxl) + data % (512, 250, 1, "f32", "gradient = { cut = 100 }") + more
    more = d_emb(256, 4) % "D3" + lora
    return start % ("adapter", f"{folder}/middle") + data % (256, 30, 2, "f32", "gradient = { cut = 20 }") + more


def measured(command):
    """Peak memory of a command, from the kernel, and its output."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, command
    return out, 1024 * usage.ru_maxrss


def main():
    cases = ["joint-64", "joint-96", "adapter-mini", "adapter", "encoder", "vae"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("photos")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=cases)
    parser.add_argument("--folder", default="/tmp/plan-accuracy")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sdxl", metavar="DIR")
    args = parser.parse_intermixed_args()
    photos = os.path.abspath(args.photos)
    if "adapter" in args.cases:
        middle(f"{args.folder}/middle")
    print("| case | announced s a step | measured s | | announced GB | measured GB | | plan took s |\n|---|---|---|---|---|---|---|---|")
    within = True
    for case in args.cases:
        shutil.rmtree(f"{args.folder}/run", ignore_errors=True)
        path = f"{args.folder}/{case}.toml"
        write(path, config(case, args.folder, photos, args.steps, args.sdxl and os.path.abspath(args.sdxl)))
        begin = time.perf_counter()
        plan = json.loads(subprocess.run([args.program, "train", path, "--plan", "--json"], stdout=subprocess.PIPE, check=True).stdout)["plan"]
        took = time.perf_counter() - begin
        out, peak = measured([args.program, "train", path, "--json"])
        steps = [line for line in map(json.loads, out.splitlines()) if "seconds" in line]
        seconds = [line["seconds"] for line in steps[3:]]
        mean = sum(seconds) / len(seconds)
        said, bytes_said = plan["seconds_per_step"], plan["peak_bytes"]
        of_time, of_memory = said / mean - 1, bytes_said / peak - 1
        within &= abs(of_time) <= TIME and abs(of_memory) <= MEMORY
        print(
            f"| {case} ({plan['trained']:,} trained, {plan['frozen']:,} frozen) | {said:.2f} | {mean:.2f} | {100 * of_time:+.0f} % "
            f"| {bytes_said / 1e9:.2f} | {peak / 1e9:.2f} | {100 * of_memory:+.0f} % | {took:.0f} |", flush=True
        )
    print("meets the bars" if within else "MISSES a bar")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
