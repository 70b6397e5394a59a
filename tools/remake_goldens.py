"""Makes goldens again with the installed packages and compares them with the committed ones.

    python3 tools/remake_goldens.py [SCRIPT...]

Needs torch, diffusers, transformers and peft. The scripts run on a copy in a temporary folder, so nothing is overwritten. By default
three: an autoencoder's, a text encoder's and the U-Net adapter's. Of every golden a script writes, the tensors must be those committed
within 1e-6 + 1e-5 |y|, which another processor's rounding may take; whether the file is the same byte for byte is said.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from safetensors import safe_open

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = ["crates/priors/tests/golden", "crates/restore/tests/golden", "crates/train/tests/golden"]
SCRIPTS = [
    "crates/priors/tests/golden/vae.py",
    "crates/priors/tests/golden/clip.py",
    "crates/restore/tests/golden/unet_adapter.py",
]
ATOL, RTOL = 1e-6, 1e-5


def read(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def compare(old, new):
    """Why the golden is another, or nothing; prints how close it is."""
    (want, told), (got, tells) = read(old), read(new)
    name = os.path.basename(old)
    if want.keys() != got.keys():
        return f"{name}: other tensors: {sorted(want.keys() ^ got.keys())}"
    if told["script"] != tells["script"]:
        return f"{name}: the metadata names {told['script']} and now {tells['script']}"
    worst = 0.0
    for key, y in want.items():
        x = got[key]
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{name}: {key} is {x.dtype}{list(x.shape)} and not {y.dtype}{list(y.shape)}"
        if y.size:
            difference = np.abs(x.astype(np.float64) - y.astype(np.float64)) / (ATOL + RTOL * np.abs(y.astype(np.float64)))
            worst = max(worst, float(difference.max()))
    if not worst <= 1:
        return f"{name}: differs by {worst:.1f} of the tolerance"
    with open(old, "rb") as a, open(new, "rb") as b:
        same = a.read() == b.read()
    before, now = (json.loads(m["versions"]) for m in (told, tells))
    changed = ", ".join(f"{p} {v} -> {now.get(p)}" for p, v in before.items() if now.get(p) != v)
    how = "the same bytes" if same else f"{worst:.2g} of the tolerance"
    print(f"{name}: {len(want)} tensors, {how}{'; ' + changed if changed else ''}")
    return None


def main():
    scripts = [os.path.relpath(path, ROOT) for path in sys.argv[1:]] or SCRIPTS
    failures, made = [], 0
    with tempfile.TemporaryDirectory() as place:
        for folder in FOLDERS:
            shutil.copytree(f"{ROOT}/{folder}", f"{place}/{folder}", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
        for script in scripts:
            folder = os.path.dirname(script)
            before = set(os.listdir(f"{place}/{folder}"))
            subprocess.run([sys.executable, f"{place}/{script}"], check=True, stdout=subprocess.DEVNULL, cwd=f"{place}/{folder}")
            for name in sorted(set(os.listdir(f"{place}/{folder}")) - before):
                if name.endswith(".safetensors"):
                    made += 1
                    failures.append(compare(f"{ROOT}/{folder}/{name}", f"{place}/{folder}/{name}"))
    failures = [failure for failure in failures if failure]
    for failure in failures:
        print(f"DIFFERS: {failure}")
    sys.exit(1 if failures or not made else 0)


if __name__ == "__main__":
    main()
