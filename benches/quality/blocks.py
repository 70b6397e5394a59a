"""What `reclair data check` finds of compression: clean pictures, and the same as JPEG and as PNG made from that JPEG.

    python3 benches/quality/blocks.py target/release/reclair ../shared/data/val

Needs Pillow (libjpeg's tables, 4:2:0). `cropped` is the PNG without 3 columns and 5 rows, so that its grid of blocks lies elsewhere.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

QUALITIES = [30, 40, 50, 60, 70, 75, 80, 85, 90, 95]


def check(reclair, folder, *more):
    """Findings by kind."""
    args = [reclair, "data", "check", folder, "--min-side", "1", "--json", *more]
    out = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in map(json.loads, out.splitlines()):
        found.setdefault(line["kind"], []).append(line["value"])
    return found


def row(reclair, name, folder):
    found = check(reclair, folder)
    scores = sorted(check(reclair, folder, "--max-blockiness", "0", "--min-quality", "1").get("compressed", []))
    at = lambda part: scores[round(part * (len(scores) - 1))]
    counts = f"{len(found.get('compressed', []))} | {len(found.get('enlarged', []))}"
    spread = f"{scores[0]:.2f} | {statistics.median(scores):.2f} | {at(0.9):.2f} | {scores[-1]:.2f}"
    print(f"| {name} | {len(scores)} | {counts} | {spread} |", flush=True)


def main():
    reclair, photos = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.png"))
    print("| pictures | scored | compressed | enlarged | least | median | 90 % | largest |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        def folder(name):
            path = Path(work) / name
            path.mkdir()
            return path

        clean = folder("clean")
        for photo in photos:
            Image.open(photo).convert("RGB").save(clean / photo.name)
        row(reclair, "clean", clean)
        for quality in QUALITIES:
            jpeg, png, cropped = (folder(f"{kind}-{quality}") for kind in ["jpeg", "png", "cropped"])
            for photo in photos:
                file = jpeg / f"{photo.stem}.jpg"
                Image.open(photo).convert("RGB").save(file, quality=quality, subsampling="4:2:0")
                image = Image.open(file).convert("RGB")
                image.save(png / photo.name)
                image.crop((3, 5, image.width, image.height)).save(cropped / photo.name)
            for kind, path in [("JPEG", jpeg), ("PNG", png), ("PNG, cropped", cropped)]:
                row(reclair, f"{kind} of quality {quality}", path)


if __name__ == "__main__":
    main()
