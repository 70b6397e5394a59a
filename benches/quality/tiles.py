"""Tiled against untiled restoration of one picture: closeness, and whether the seams show.

    python3 benches/quality/tiles.py target/release/reclair PICTURE... [-- OPTION...]

OPTIONs go to the tiled `restore`, `--tile-weights gaussian` for example. Each picture is scaled to 1024x768 and degraded (`mild`, seed 0). Seams are the borders of the denoiser's tiles; a seam shows where the
mean gradient across it, over that across lines midway between seams, differs from the untiled result's. (Lines half a tile away would
themselves be seams here: tiles of 512 begin at 0, 256 and 512.) Needs Pillow and numpy.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

TILE, OVERLAP, GRID = 512, 128, 16


def run(*args):
    subprocess.run([str(a) for a in args], check=True, capture_output=True)


def starts(side):
    """crates/restore/src/tiled.rs, in pixels."""
    if side <= TILE:
        return [0]
    count = -(-(side - OVERLAP) // (TILE - OVERLAP))
    last = side - TILE
    return [last if i + 1 == count else last * i // (count - 1) // GRID * GRID for i in range(count)]


def borders(side):
    edges = {s for s in starts(side)} | {s + TILE for s in starts(side)}
    return sorted(e for e in edges if 0 < e < side)


def gradient(image, axis, lines):
    """Mean absolute difference across each line."""
    across = [np.abs(np.take(image, e, axis) - np.take(image, e - 1, axis)).mean() for e in lines]
    return float(np.mean(across))


def seam_ratio(image):
    seams = away = 0.0
    for axis in (0, 1):
        lines = borders(image.shape[axis])
        ends = [0, *lines, image.shape[axis]]
        between = [(a + b) // 2 for a, b in zip(ends, ends[1:])]
        seams += gradient(image, axis, lines)
        away += gradient(image, axis, between)
    return seams / away


def compare(reclair, picture, work, options):
    clean, lq = work / "clean.png", work / "lq.png"
    Image.open(picture).convert("RGB").resize((1024, 768), Image.LANCZOS).save(clean)
    run(reclair, "degrade", clean, "-o", lq, "--preset", "mild", "--seed", 0)
    images = []
    for tile in (TILE, 0):
        out = work / f"tile{tile}.png"
        run(reclair, "restore", lq, "-o", out, "--tile", tile, *(options if tile else []))
        images.append(np.asarray(Image.open(out)).astype(np.float64) / 255)
    tiled, whole = images
    psnr = 10 * np.log10(1 / np.mean((tiled - whole) ** 2))
    return psnr, seam_ratio(tiled) / seam_ratio(whole)


def main():
    reclair, pictures, options = Path(sys.argv[1]), sys.argv[2:], []
    if "--" in pictures:
        at = pictures.index("--")
        pictures, options = pictures[:at], pictures[at + 1 :]
    print("| picture | tiled against untiled, dB | seam ratio, tiled / untiled |\n|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for picture in pictures:
            rows.append(compare(reclair, picture, Path(work), options))
            print(f"| {Path(picture).stem} | {rows[-1][0]:.2f} | {rows[-1][1]:.4f} |", flush=True)
    psnr, ratio = np.mean(rows, axis=0)
    print(f"| mean | {psnr:.2f} | {ratio:.4f} |")


if __name__ == "__main__":
    main()
