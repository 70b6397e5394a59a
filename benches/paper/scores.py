"""Validation pictures, degraded and restored, and their scores; what has been scored is kept."""

import json
import shutil
import subprocess

METRICS = ["psnr", "ssim", "niqe", "detail"]
COUNT, SIDE = 6, 256


class Scores:
    def __init__(self, reclair, val, work):
        self.reclair, self.work = reclair, work
        self.file = work / "scores.json"
        self.kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.clean = self.crops(val)

    def crops(self, val):
        """The central SIDE x SIDE of the first COUNT pictures, with captions."""
        from PIL import Image

        clean = self.work / "clean"
        clean.mkdir(parents=True, exist_ok=True)
        for path in sorted(val.glob("*.png"))[:COUNT]:
            if not (clean / path.name).exists():
                image = Image.open(path).convert("RGB")
                left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
                image.crop((left, top, left + SIDE, top + SIDE)).save(clean / path.name)
        self.captions = [p.with_suffix(".txt") for p in sorted(val.glob("*.png"))[:COUNT]]
        return clean

    def run(self, *args):
        return subprocess.run([str(self.reclair), *map(str, args)], check=True, stdout=subprocess.PIPE, text=True).stdout

    def degraded(self, preset):
        lq = self.work / preset
        if not lq.exists():
            self.run("degrade", self.clean, "-o", f"{lq}/", "--preset", preset, "--seed", 0)
            for caption in self.captions:
                shutil.copy(caption, lq / caption.name)
        return lq

    def mean(self, folder):
        out = self.run("eval", "--restored", folder, "--reference", self.clean, "--metrics", ",".join(METRICS), "--json")
        return json.loads(out)["mean"]

    def input(self, preset):
        key = f"input {preset}"
        if key not in self.kept:
            self.keep(key, self.mean(self.degraded(preset)))
        return self.kept[key]

    def restored(self, preset, *options, keep=None):
        """Scores of the restored pictures, and their mean distance from the low-quality latent."""
        key = " ".join(map(str, [preset, *options]))
        if key not in self.kept or (keep and not keep.exists()):
            out = keep or self.work / "restored"
            shutil.rmtree(out, ignore_errors=True)
            lines = self.run("restore", self.degraded(preset), "-o", f"{out}/", "--json", *options).splitlines()
            distance = [json.loads(line)["latent_distance"] for line in lines]
            self.keep(key, {**self.mean(out), "distance": sum(distance) / len(distance)})
        return self.kept[key]

    def strip(self, file, preset, ways):
        """The third picture as it is given and as each of `ways` restores it, side by side."""
        from PIL import Image

        lq = sorted(self.degraded(preset).glob("*.png"))[2]
        pictures = [lq]
        for i, options in enumerate(ways):
            pictures.append(self.work / f"strip-{i}.png")
            self.run("restore", lq, "-o", pictures[-1], "--json", *options)
        strip = Image.new("RGB", (len(pictures) * (SIDE + 8) - 8, SIDE), "white")
        for i, picture in enumerate(pictures):
            strip.paste(Image.open(picture).convert("RGB"), (i * (SIDE + 8), 0))
        strip.save(file, quality=90)

    def keep(self, key, value):
        self.kept[key] = value
        self.file.write_text(json.dumps(self.kept, indent=1))
