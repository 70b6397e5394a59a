"""README's picture: the sample beside what README's first command makes of it. Needs Pillow.

    python3 benches/quality/before_after.py target/release/reclair docs/sample.jpg docs/before-after.jpg
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

reclair, sample, out = sys.argv[1:4]
with tempfile.TemporaryDirectory() as work:
    restored = Path(work) / "restored.png"
    subprocess.run([reclair, "restore", sample, "-o", restored], check=True)
    pair = [Image.open(path).convert("RGB") for path in (sample, restored)]
    sheet = Image.new("RGB", (pair[0].width * 2, pair[0].height))
    sheet.paste(pair[0], (0, 0))
    sheet.paste(pair[1], (pair[0].width, 0))
    sheet.save(out, quality=92)
