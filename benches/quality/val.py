"""Scores `reclair restore` on clean pictures under degradations: the table of docs/quality.md.

    python3 benches/quality/val.py target/release/reclair ../shared/data/val [more options for restore]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

METRICS = ["psnr", "ssim", "niqe", "detail"]


def run(*args):
    return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True).stdout


def score(reclair, folder, reference):
    out = run(reclair, "eval", "--restored", folder, "--reference", reference, "--metrics", ",".join(METRICS), "--json")
    return json.loads(out)["mean"]


def main():
    reclair, val, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    print("| degradation | picture | PSNR dB | SSIM | NIQE | detail | s a picture |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for preset in ["mild", "mixture", "realesrgan", "light", "clean"]:
            lq, out = Path(work) / preset, Path(work) / f"{preset}-restored"
            if preset == "clean":
                lq = val
            else:
                run(reclair, "degrade", val, "-o", f"{lq}/", "--preset", preset, "--seed", 0)
            lines = run(reclair, "restore", lq, "-o", f"{out}/", "--json", *more).splitlines()
            seconds = [json.loads(line)["seconds"] for line in lines]
            for name, folder, time in [("input", lq, ""), ("restored", out, f"{sum(seconds) / len(seconds):.2f}")]:
                mean = score(reclair, folder, val)
                row = " | ".join(f"{mean[m]:.{2 if m in ('psnr', 'niqe') else 4}f}" for m in METRICS)
                print(f"| {preset} | {name} | {row} | {time} |", flush=True)


if __name__ == "__main__":
    main()
