"""The Restoration Sampling Strategy from pure noise, over its threshold: the table and plot of docs/rss.md.

    python3 benches/quality/rss.py target/release/reclair ../shared/data/val docs/rss.svg

Eight pictures' central 256x256 under `mild`, seed 0; Euler, T = 20, w = 0.05 for a hundred steps, no sharpening.
Needs Pillow for the crops.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

THRESHOLDS = [None, 0.9, 0.8, 0.6, 0.4]
METRICS = ["psnr", "niqe", "detail"]


def run(*args):
    return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True).stdout


def plot(rows, path):
    """Each figure relative to its value without guidance."""
    names = ["distance", *METRICS]
    colours = ["#444444", "#1b6ca8", "#c0392b", "#2e8b57"]
    w, h, left, top = 640, 320, 60, 20
    low, high = 0.5, 1.3
    x = lambda i: left + i * (w - left - 120) / (len(rows) - 1)
    y = lambda v: top + (high - min(max(v, low), high)) / (high - low) * (h - top - 50)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-family="sans-serif" font-size="12">',
           f'<rect width="{w}" height="{h}" fill="white"/>']
    for v in [0.6, 0.8, 1.0, 1.2]:
        out.append(f'<line x1="{left}" x2="{w - 120}" y1="{y(v)}" y2="{y(v)}" stroke="#dddddd"/><text x="{left - 34}" y="{y(v) + 4}">{v:.1f}</text>')
    for i, row in enumerate(rows):
        out.append(f'<text x="{x(i)}" y="{h - 30}" text-anchor="middle">{row["a"]}</text>')
    out.append(f'<text x="{(left + w - 120) / 2}" y="{h - 8}" text-anchor="middle">threshold a (lower: pulled for longer)</text>')
    for name, colour in zip(names, colours):
        values = [row[name] / rows[0][name] for row in rows]
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{w - 114}" y="{y(values[-1]) + 4:.1f}" fill="{colour}">{name} / off</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def main():
    reclair, val, svg = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    rows = []
    with tempfile.TemporaryDirectory() as work:
        clean, lq = Path(work) / "clean", Path(work) / "lq"
        clean.mkdir()
        for path in sorted(val.glob("*.png"))[:8]:
            image = Image.open(path).convert("RGB")
            left, top = (image.width - 256) // 2, (image.height - 256) // 2
            image.crop((left, top, left + 256, top + 256)).save(clean / path.name)
        run(reclair, "degrade", clean, "-o", f"{lq}/", "--preset", "mild", "--seed", 0)
        print("| a | distance to c_lq | PSNR dB | NIQE | detail |\n|---|---|---|---|---|")
        for a in THRESHOLDS:
            out = Path(work) / f"a{a}"
            guided = [] if a is None else ["--rss-weight", 0.05, "--rss-threshold", a]
            lines = run(reclair, "restore", lq, "-o", f"{out}/", "--start", "noise", "--steps", 20,
                        "--sharpen", 0, "--json", *guided)
            distance = [json.loads(line)["latent_distance"] for line in lines.splitlines()]
            mean = json.loads(run(reclair, "eval", "--restored", out, "--reference", clean, "--metrics", ",".join(METRICS), "--json"))["mean"]
            row = {"a": "off" if a is None else a, "distance": sum(distance) / len(distance), **mean}
            rows.append(row)
            print(f"| {row['a']} | {row['distance']:.4f} | {mean['psnr']:.2f} | {mean['niqe']:.2f} | {mean['detail']:.4f} |", flush=True)
    plot(rows, svg)


if __name__ == "__main__":
    main()
