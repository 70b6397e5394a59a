"""Where in the spectrum the error of pictures lies, beside the clean pictures' own energy.

    python3 benches/quality/bands.py CLEAN FOLDER...

Mean square per pixel (8 bit, mean over channels and pictures) by bands of spatial frequency in cycles per pixel. Needs numpy and Pillow.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

EDGES = [0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]


def load(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


def bands(picture):
    height, width, _ = picture.shape
    power = (np.abs(np.fft.fft2(picture, axes=(0, 1))) ** 2).mean(-1) / (height * width) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return [power[(radius >= low) & (radius < high)].sum() for low, high in zip(EDGES, EDGES[1:])]


def main():
    clean, folders = Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]]
    names = sorted(path.name for path in folders[0].glob("*.png"))
    print("| | " + " | ".join(f"to 1/{1 / high:.0f}" for high in EDGES[1:-1]) + " | above | in all |\n" + "|---" * (len(EDGES) + 1) + "|")

    def row(label, pictures):
        mean = np.mean([bands(picture) for picture in pictures], axis=0)
        print(f"| {label} | " + " | ".join(f"{value:.1f}" for value in mean) + f" | {mean.sum():.1f} |", flush=True)

    originals = {name: load(clean / name) for name in names}
    row("clean pictures, less their mean", (picture - picture.mean((0, 1)) for picture in originals.values()))
    for folder in folders:
        row(folder.name, (load(folder / name) - originals[name] for name in names))


if __name__ == "__main__":
    main()
