"""Goldens of diffusers' schedules: sigmas, timesteps and alphas of Euler, DDIM, the multistep ones and flow-matching Euler; sgm's legacy timesteps."""

import os
import sys

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

from golden import save

# stable-diffusion-xl-base-1.0/scheduler/scheduler_config.json
SDXL = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    timestep_spacing="leading",
    steps_offset=1,
    prediction_type="epsilon",
    interpolation_type="linear",
    use_karras_sigmas=False,
)
DDIM = {k: v for k, v in SDXL.items() if k not in ("interpolation_type", "use_karras_sigmas")}
DDIM |= dict(clip_sample=False, set_alpha_to_one=False)
# What DPM-Solver and UniPC take of SDXL's file.
MULTISTEP = {k: v for k, v in DDIM.items() if k not in ("clip_sample", "set_alpha_to_one")}
FLOW = dict(num_train_timesteps=1000, shift=3.0)

NOTE = """euler.<spacing>.<T>: sigmas (T+1, last 0), timesteps and init_noise_sigma. ddim.<spacing>.<T>: timesteps, alphas (cumulative, at the
timesteps) and alphas_prev (after each step; the last is alpha_0 as set_alpha_to_one is false). multistep.<spacing>.<T>: sigmas and timesteps of DPM-Solver and of UniPC, which are the same. flow.<shift>.<T>: sigmas (T+1), timesteps =
1000 sigma; legacy.<T>.timesteps: sgm's LegacyDDPMDiscretization; diffusers shifts sigma_min twice (issue 13243): the last sigma before 0 for shift 3 is 0.0089. These are diffusers' own f32 values,
so expect 1e-6 relative (flow: f64 inside numpy, then f32). f64.alphas_cumprod: at f64 indices `alphas_cumprod.index`, the same formula in f64 by numpy."""


def main():
    out = {}
    for spacing in ["leading", "trailing"]:
        for steps in [10, 20, 100]:
            euler = EulerDiscreteScheduler(**SDXL | {"timestep_spacing": spacing})
            euler.set_timesteps(steps)
            at = f"euler.{spacing}.{steps}."
            out[at + "sigmas"] = euler.sigmas
            out[at + "timesteps"] = euler.timesteps
            out[at + "init_noise_sigma"] = torch.as_tensor(euler.init_noise_sigma, dtype=torch.float32)
        ddim = DDIMScheduler(**DDIM | {"timestep_spacing": spacing})
        ddim.set_timesteps(10)
        at = f"ddim.{spacing}.10."
        out[at + "timesteps"] = ddim.timesteps
        out[at + "alphas"] = ddim.alphas_cumprod[ddim.timesteps]
        previous = ddim.timesteps - 1000 // 10
        alphas_prev = [ddim.alphas_cumprod[t] if t >= 0 else ddim.final_alpha_cumprod for t in previous]
        out[at + "alphas_prev"] = torch.stack(alphas_prev)
    for spacing in ["leading", "trailing", "linspace"]:
        for steps in [7, 10, 20, 100]:
            dpm, unipc = (kind(**MULTISTEP | {"timestep_spacing": spacing}) for kind in [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
            dpm.set_timesteps(steps)
            unipc.set_timesteps(steps)
            assert dpm.timesteps.equal(unipc.timesteps) and dpm.sigmas.equal(unipc.sigmas), (spacing, steps)
            out[f"multistep.{spacing}.{steps}.sigmas"] = dpm.sigmas
            out[f"multistep.{spacing}.{steps}.timesteps"] = dpm.timesteps
    for shift in [3.0, 1.0]:
        for steps in [10, 28]:
            flow = FlowMatchEulerDiscreteScheduler(**FLOW | {"shift": shift})
            flow.set_timesteps(steps)
            out[f"flow.{shift:.0f}.{steps}.sigmas"] = flow.sigmas
            out[f"flow.{shift:.0f}.{steps}.timesteps"] = flow.timesteps
    for steps in [30, 50, 100]:
        out[f"legacy.{steps}.timesteps"] = torch.from_numpy(np.linspace(999, 0, steps, endpoint=False).astype(int))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    index = np.array([0, 1, 10, 99, 250, 499, 500, 750, 981, 999])
    out["alphas_cumprod.index"] = torch.from_numpy(index)
    out["f64.alphas_cumprod"] = torch.from_numpy(np.cumprod(1.0 - betas)[index])
    f32 = ddim.alphas_cumprod[index].double()
    print("f32 alphas_cumprod against f64, relative:", ((f32 / out["f64.alphas_cumprod"]) - 1).abs().max().item())
    save("schedules", out, {"euler": SDXL, "ddim": DDIM, "flow": FLOW}, NOTE)


if __name__ == "__main__":
    main()
