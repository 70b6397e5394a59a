"""Times a training step of mini's prior in reclair and in PyTorch, turn by turn, and prints the ratios.

    python3 benches/peers/training_step.py

Needs PyTorch and diffusers. PyTorch trains diffusers' UNet2DConditionModel of the same configuration, batch and precision: forward, squared error, backward,
AdamW; bf16 is its autocast. Each side runs three times, in turn, the best counts; once at the end reclair without its kernels.
"""

import json
import os
import re
import subprocess
import time

import torch
from diffusers import UNet2DConditionModel

from programs import ROOT, benchmark


def peer(dtype):
    torch.manual_seed(0)
    with open(f"{ROOT}/recipes/mini/model/unet/config.json") as file:
        unet = UNet2DConditionModel.from_config(json.load(file)).train()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    x, target, text = torch.randn(12, 16, 32, 32), torch.randn(12, 16, 32, 32), torch.randn(12, 32, 128)
    t, best = torch.full((12,), 500.0), float("inf")
    for _ in range(8):
        start = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            y = unet(x, t, text).sample
        ((y.float() - target) ** 2).mean().backward()
        optimiser.step()
        best = min(best, time.perf_counter() - start)
    return best


def ours(program, **more):
    out = subprocess.run([program], capture_output=True, text=True, check=True, env={**os.environ, **more}).stdout
    found = re.findall(r"training step (\w+)\s+([\d.]+) s, loss ([\d.]+) to ([\d.]+)", out)
    return {kind: (float(seconds), float(first), float(last)) for kind, seconds, first, last in found}


def main():
    program = benchmark("train", "step")
    torch.set_num_threads(os.cpu_count())
    mine, theirs = {}, {}
    for _ in range(3):
        for kind, run in ours(program).items():
            mine[kind] = min(mine.get(kind, run), run)
        for kind in ["f32", "bf16"]:
            theirs[kind] = min(theirs.get(kind, float("inf")), peer(kind))
    off = ours(program, RECLAIR_KERNELS="off")
    print("| step | reclair s | PyTorch s | times faster | without kernels s | times faster |\n|---|---|---|---|---|---|")
    for kind in ["f32", "bf16"]:
        a, b, c = mine[kind][0], theirs[kind], off[kind][0]
        print(f"| {kind} | {a:.3f} | {b:.3f} | {b / a:.2f} | {c:.3f} | {c / a:.2f} |")
    print("\nloss of the first step and of the eighth, the same values and samples:")
    for name, (_, first, last) in {"f32": mine["f32"], "bf16": mine["bf16"], "without kernels": off["f32"]}.items():
        print(f"  {name}: {first:.6f}, {last:.6f}")


if __name__ == "__main__":
    main()
