"""A sheet of pictures, a row each: degraded, restored, clean. The pictures of docs/quality.md.

    python3 benches/quality/sheet.py target/release/reclair docs/quality.jpg PRESET PICTURE...

Each picture's central 256x256 is shown after its whole was degraded (seed 0) and restored. Needs Pillow.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIDE = 256


def centre(path):
    image = Image.open(path).convert("RGB")
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def main():
    reclair, out, preset, pictures = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    columns = 2
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (3 * SIDE + 16) - 16, rows * (SIDE + 8) - 8), "white")
    with tempfile.TemporaryDirectory() as work:
        for i, picture in enumerate(pictures):
            restored = Path(work) / "restored.png"
            # The random stream derives from the file's name: keep it.
            lq = Path(work) / f"{Path(picture).stem}.png"
            subprocess.run([reclair, "degrade", picture, "-o", lq, "--preset", preset, "--seed", "0"], check=True, capture_output=True)
            subprocess.run([reclair, "restore", lq, "-o", restored], check=True, capture_output=True)
            for j, path in enumerate([lq, restored, picture]):
                x = (i % columns) * (3 * SIDE + 16) + j * SIDE
                sheet.paste(centre(path), (x, (i // columns) * (SIDE + 8)))
    sheet.save(out, quality=90)


if __name__ == "__main__":
    main()
