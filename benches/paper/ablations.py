"""The paper's ablations at mini's size: tables and plots of docs/paper.md.

    python3 benches/paper/ablations.py target/release/reclair ../shared/data runs/paper docs/paper [NAME...]

Trains and scores what `runs/paper` does not hold yet. NAME: data, diffusion-adapter, rss, encoder, tradeoff, prompt,
controlnet; all by default. Needs Pillow and numpy.
"""

import statistics
import sys
from pathlib import Path

from arms import Arms, lora_update, parameters
from plot import lines
from scores import METRICS, Scores

SEEDS = [0, 1, 2]
NOISE = ["--start", "noise", "--steps", 12, "--sharpen", 0]
LQ = ["--start", "lq", "--strength", 0.5, "--steps", 8, "--sharpen", 0]
DIGITS = {"psnr": 2, "ssim": 4, "niqe": 2, "detail": 4, "distance": 4}
DEGRADATION = "low quality, low resolution, blurry, noisy, compressed"


def spread(values, digits):
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def cells(results, names=METRICS):
    """Mean and standard deviation over the seeds."""
    return " | ".join(spread([r[name] for r in results], DIGITS[name]) for name in names)


class Ablations:
    def __init__(self, reclair, data, work, docs):
        work.mkdir(parents=True, exist_ok=True)
        docs.mkdir(parents=True, exist_ok=True)
        prior = Path(__file__).parents[2] / "models/mini/prior"
        self.arms = Arms(reclair, data.resolve(), prior.resolve(), work.resolve())
        self.scores = Scores(reclair, data / "val", work)
        self.docs, self.prior = docs, prior

    def trained(self, file, arms, preset="mixture"):
        """A table of trained arms, each from noise and from the noised low-quality latent."""
        print("| arm | start | trained values | loss, last 40 | fastest step s | PSNR dB | SSIM | NIQE | detail |")
        print("|---|---|---|---|---|---|---|---|---|")
        rows = []
        given = self.scores.input(preset)
        print("| input | | | | | " + " | ".join(f"{given[m]:.{DIGITS[m]}f}" for m in METRICS) + " |")
        for arm in arms:
            folders = [self.arms.train(arm, seed) for seed in SEEDS]
            logs = [self.arms.log(arm, seed) for seed in SEEDS]
            about = f"{parameters(folders[0]):,} | {spread([l for l, _ in logs], 4)} | {min(s for _, s in logs):.3f}"
            for name, start in [("noise", NOISE), ("lq", LQ)]:
                results = [
                    self.scores.restored(preset, "--prior", self.prior, "--adapter", folder, *start) for folder in folders
                ]
                print(f"| {arm} | {name} | {about} | {cells(results)} |", flush=True)
                rows.append((f"{arm}, {name}", results))
        # The first arm is what the others are beside; from the low-quality latent, as restoration goes.
        rows = [row for row in rows if row[0].endswith("lq")]
        names = [name.split(",")[0] for name, _ in rows]
        lines(self.docs / f"{file}.svg", "arm", names, relative(rows, METRICS), f"relative to {names[0]}, from the low-quality latent")

    def data(self):
        self.trained("data", ["tenth", "full"])

    def diffusion_adapter(self):
        self.trained("lora", ["no-lora", "full"])
        update = [lora_update(self.prior / "unet", self.arms.train("full", seed)) for seed in SEEDS]
        print(f"\nLoRA's update of a weight, root mean square, over the weight's: {spread(update, 4)}")

    def encoder(self):
        print("| loss | first ten steps | last ten | PSNR dB of validation crops | decoded from their latents | gain | SSIM | detail |")
        print("|---|---|---|---|---|---|---|---|")
        for arm in ["encoder", "stated"]:
            for seed in SEEDS:
                self.arms.train(arm, seed)
            logs = [self.arms.lines(arm, seed) for seed in SEEDS]
            losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
            last = [[line for line in log if "validation_psnr" in line][-1] for log in logs]
            values = [
                *[spread([sum(part) / 10 for part in parts], 4) for parts in ([l[:10] for l in losses], [l[-10:] for l in losses])],
                *[spread([v[f"validation_{name}"] for v in last], 2) for name in ["lq_psnr", "psnr"]],
                # A seed's crops are others than another's: what is gained is of the same.
                spread([v["validation_psnr"] - v["validation_lq_psnr"] for v in last], 2),
                *[spread([v[f"validation_{name}"] for v in last], 4) for name in ["ssim", "detail"]],
            ]
            print(f"| {arm} | " + " | ".join(values) + " |", flush=True)
        print()
        self.trained("robust", ["full", "robust"])

    def controlnet(self):
        self.trained("controlnet", ["full", "no-lora", "controlnet"])

    def sampled(self, options, seeds=SEEDS):
        """mini's own adapter with these options, a seed of the noise each."""
        return [self.scores.restored("mixture", *options, "--seed", seed) for seed in seeds]

    def rss(self):
        names = [*METRICS, "distance"]
        print("| a | PSNR dB | SSIM | NIQE | detail | distance to c_lq |\n|---|---|---|---|---|---|")
        rows = []
        for a in [None, 0.8, 0.6, 0.4, 0.2]:
            pull = [] if a is None else ["--rss-weight", 0.05, "--rss-threshold", a]
            results = self.sampled([*NOISE, "--sampler", "edm", *pull])
            rows.append(("off" if a is None else str(a), results))
            print(f"| {rows[-1][0]} | {cells(results, names)} |", flush=True)
        ticks = [name for name, _ in rows]
        lines(self.docs / "rss.svg", "threshold a (lower: pulled for longer)", ticks, relative(rows, names), "relative to no guidance")

    def tradeoff(self):
        print("| options | PSNR dB | SSIM | NIQE | detail |\n|---|---|---|---|---|")
        points = {}
        for strength in [0.2, 0.5, 0.8]:
            points[f"strength {strength}"] = ["--start", "lq", "--strength", strength, "--steps", 8, "--sharpen", 0]
        for steps in [2, 4, 8, 16]:
            points[f"noise, {steps} steps"] = ["--start", "noise", "--steps", steps, "--sharpen", 0]
        rows = []
        for name, options in points.items():
            rows.append((name, self.sampled(options)))
            print(f"| {name} | {cells(rows[-1][1])} |", flush=True)
        for part, file, label in [(rows[:3], "strength", "strength"), (rows[3:], "steps", "steps from noise")]:
            ticks = [name.split()[-1] if file == "strength" else name.split()[1] for name, _ in part]
            lines(self.docs / f"{file}.svg", label, ticks, relative(part, METRICS), "relative to the first")

    def prompt(self):
        names = [*METRICS, "distance"]
        print("| prompt | start | PSNR dB | SSIM | NIQE | detail | distance to c_lq |\n|---|---|---|---|---|---|---|")
        rows = []
        prompts = {"caption": ["--captioner", "false"], "(none)": ["--prompt", ""], DEGRADATION: ["--prompt", DEGRADATION]}
        for name, prompt in prompts.items():
            for at, start in [("noise", NOISE), ("lq", LQ)]:
                results = self.sampled([*start, *prompt])
                print(f"| {name} | {at} | {cells(results, names)} |", flush=True)
                if at == "noise":
                    rows.append(({DEGRADATION: "degradation"}.get(name, name), results))
        ticks = [name for name, _ in rows]
        lines(self.docs / "prompt.svg", "prompt, from noise", ticks, relative(rows, names), "relative to the caption")
        self.scores.strip(self.docs / "prompt.jpg", "mixture", [[*NOISE, *prompt, "--seed", 0] for prompt in prompts.values()])


def relative(rows, names):
    """For each metric its mean at every row over the first row's, and its deviation likewise."""
    series = {}
    for name in names:
        first = statistics.mean(r[name] for r in rows[0][1])
        values = [[r[name] / first for r in results] for _, results in rows]
        series[name] = [(statistics.mean(v), statistics.stdev(v)) for v in values]
    return series


def main():
    reclair, data, work, docs = map(Path, sys.argv[1:5])
    ablations = Ablations(reclair, data, work, docs)
    for name in sys.argv[5:] or ["data", "diffusion-adapter", "rss", "encoder", "tradeoff", "prompt", "controlnet"]:
        print(f"\n## {name}\n", flush=True)
        getattr(ablations, name.replace("-", "_"))()


if __name__ == "__main__":
    main()
