"""Short trainings that differ in one thing each: configurations, runs, and where their results lie."""

import json
import os
import shutil
import subprocess
from pathlib import Path

STEPS, BATCH, CROP = 800, 8, 64
ENCODER_STEPS = 800

COMMON = """\
stage = "{stage}"
model = "{prior}"
out = "{out}"
start = "{start}"
seed = {seed}
{more}
[data]
images = "{images}"
{validation}crop_px = {crop}
reduce = [1.0, 2.0]
null_text = 0.7
cache_mb = 1100
degradations = [{{ preset = "mixture", weight = 0.5 }}, {{ preset = "mild", weight = 0.5 }}]

[optimise]
steps = {steps}
batch = {batch}
lr = {lr}
warmup = 12
final_lr = 0.02
beta2 = 0.99
weight_decay = 0.01
ema_halflife_images = 200

[every]
checkpoint = {steps}
validate = {validate}
"""

DENOISE = """
[denoise]
sigma_mean = -0.5
sigma_std = 1.1
metric = "pixels"
lq_target = 0.05
"""

ADAPTER = """
[adapter]
_class_name = "UnetRestorationAdapter"
block = "D1"
after = [0, 1, 2, 3, 4, 5]
lq_channels = 16
d_emb = 256
groups = 16
"""

CONTROLNET = """
[adapter]
_class_name = "UnetControlNet"
lq_channels = 16
"""

LORA = """
[lora]
rank = 8
alpha = 8
"""

# What an arm trains, beside what all share.
ARMS = {
    "full": ADAPTER + LORA,
    "tenth": ADAPTER + LORA,
    "no-lora": ADAPTER,
    "encoder": "",
    "stated": """
[encoder]
pixels = 1.0
latent = 0.0
clean = 0.0
target = "itself"
""",
    "robust": ADAPTER + LORA,
    "controlnet": CONTROLNET,
}


def tenth(photos, folder, seed):
    """Every tenth photograph, beginning with number `seed`, with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted(p for p in photos.iterdir() if p.suffix in {".jpg", ".jpeg", ".png", ".webp"})
    for picture in pictures[seed::10]:
        for file in [picture, picture.with_suffix(".txt")]:
            if file.exists() and not (folder / file.name).exists():
                os.link(file.resolve(), folder / file.name)
    return folder


class Arms:
    def __init__(self, reclair, data, prior, work):
        self.reclair, self.prior, self.work = reclair, prior, work
        self.photos, self.validation = data / "train", data / "val"

    def config(self, arm, seed, out):
        images = self.photos
        if arm == "tenth":
            images = tenth(self.photos, self.work / f"photos-{seed}", seed)
        more = ""
        if arm == "robust":
            more = f'encoder_model = "{self.train("encoder", seed)}"\n'
        encoder = arm in {"encoder", "stated"}
        steps = ENCODER_STEPS if encoder else STEPS
        text = COMMON.format(
            stage="encoder" if encoder else "adapter",
            start="model" if encoder else "fresh",
            prior=self.prior, out=out, seed=seed, more=more, images=images, crop=CROP, batch=BATCH, steps=steps,
            validation=f'validation = "{self.validation}"\n' if encoder else "",
            validate=steps if encoder else 0, lr=2e-4 if encoder else 8e-4,
        )
        return text + ("" if encoder else DENOISE) + ARMS[arm]

    def train(self, arm, seed):
        """Trains the arm unless it has been; returns the adapter's folder."""
        out = self.work / f"{arm}-{seed}"
        config = self.config(arm, seed, out)
        file = self.work / f"{arm}-{seed}.toml"
        if file.exists() and file.read_text() != config and out.exists():
            shutil.rmtree(out)
        file.write_text(config)
        if not (out / "run.json").exists():
            print(f"# training {arm}, seed {seed}", flush=True)
            subprocess.run([str(self.reclair), "train", str(file)], check=True, stdout=subprocess.DEVNULL)
        return out / "adapter"

    def lines(self, arm, seed):
        """The log of a run."""
        return [json.loads(line) for line in (self.work / f"{arm}-{seed}/log.jsonl").read_text().splitlines()]

    def log(self, arm, seed):
        """Mean loss of the last forty steps, and the fastest step's seconds."""
        steps = [line for line in self.lines(arm, seed) if "loss" in line]
        last = [line["loss"] for line in steps[-40:]]
        return sum(last) / len(last), min(line["seconds"] - line["waited"] for line in steps)


def tensors(file):
    """A safetensors file's values, by name."""
    import numpy

    data = Path(file).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        raw = data[8 + size + begin : 8 + size + end]
        if about["dtype"] == "BF16":
            values = (numpy.frombuffer(raw, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            values = numpy.frombuffer(raw, {"F16": numpy.float16, "F32": numpy.float32}[about["dtype"]]).astype(numpy.float32)
        found[name] = values.reshape(about["shape"])
    return found


def lora_update(network, adapter):
    """How far LoRA moves the weights it is on: the root mean square of its update over theirs, mean of all."""
    weights = tensors(network / "diffusion_pytorch_model.safetensors")
    lora = tensors(adapter / "pytorch_lora_weights.safetensors")
    rms = lambda values: float((values**2).mean() ** 0.5)
    parts = []
    for name, down in lora.items():
        if not name.endswith("lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight").removeprefix("unet.")
        # Rank and alpha are equal: the update is not scaled.
        parts.append(rms(lora[name.replace("lora_A", "lora_B")] @ down) / rms(weights[f"{module}.weight"]))
    return sum(parts) / len(parts)


def parameters(adapter):
    """Trained values in an adapter's folder."""
    count = 0
    for file in Path(adapter).rglob("*.safetensors"):
        with file.open("rb") as data:
            header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for side in tensor["shape"]:
                    size *= side
                count += size
    return count
