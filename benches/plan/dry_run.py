"""What `restore --dry-run` announces beside the run itself: seconds and peak memory.

    python3 benches/plan/dry_run.py target/release/reclair [--prior DIR] [--adapter DIR] [--cold] [WIDTHxHEIGHT ...]

Pictures are docs/sample.jpg and its mirror images side by side. Two steps each. Needs Pillow. The announced time is of the
minute in which it was announced: run it where nothing else runs. With `--cold` the system forgets the prior's files before each
announcement, and what it waited for them is told. Bars: memory within 15 %, time within 30 %; a miss makes
the exit code 1.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
MEMORY, TIME = 0.15, 0.30


def picture(width, height, path):
    tile = Image.open(ROOT / "docs/sample.jpg")
    sheet = Image.new("RGB", (width, height))
    for x in range(0, width, tile.width):
        for y in range(0, height, tile.height):
            part = ImageOps.mirror(tile) if x // tile.width % 2 else tile
            sheet.paste(ImageOps.flip(part) if y // tile.height % 2 else part, (x, y))
    sheet.save(path)


def forget(folder):
    """Lets the system drop the files of a folder from its cache."""
    for path in (path for path in Path(folder).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(command):
    """What it prints, and its peak memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return json.loads(told), 1024 * usage.ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reclair")
    parser.add_argument("--prior")
    parser.add_argument("--adapter")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("sizes", nargs="*", default=["512x512", "1024x768", "2048x1536"])
    args = parser.parse_intermixed_args()
    more = [part for name in ("prior", "adapter") if (value := getattr(args, name)) for part in (f"--{name}", value)]
    print("| size | tiles | announced s | measured s | | announced MB | measured MB | |\n|---|---|---|---|---|---|---|---|")
    within = True
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            given = f"{folder}/{size}.png"
            picture(*map(int, size.split("x")), given)
            command = [args.reclair, "restore", given, "-o", f"{folder}/out.png", "--steps", "2", "--json", *more]
            if args.cold:
                forget(args.prior)
            plan = run([*command, "--dry-run"])[0]["plan"]
            done, peak = run(command)
            time, memory = plan["seconds"] / done["seconds"] - 1, plan["peak_bytes"] / peak - 1
            within &= abs(time) <= TIME and abs(memory) <= MEMORY
            seconds = f"{plan['seconds']:.1f} | {done['seconds']:.1f} | {100 * time:+.0f} %"
            bytes_ = f"{plan['peak_bytes'] / 1e6:.0f} | {peak / 1e6:.0f} | {100 * memory:+.0f} %"
            waited = f" waited for files {plan['reading_seconds']:.1f} s |" if args.cold else ""
            print(f"| {size} | {plan['tiles']} | {seconds} | {bytes_} |{waited}", flush=True)
    print("meets the bars" if within else "MISSES a bar")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
