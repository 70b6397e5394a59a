"""Goldens of six steps of diffusers' Euler, DDIM and flow-matching Euler with a stated fake network.

fake(z) = 0.7 tanh(z / 2) + 0.3 bias, with z what the scheduler gives the network; its output counts as epsilon, as v or as
the flow's velocity.
"""

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from schedules import DDIM, FLOW, SDXL
from formula import data
from golden import save

torch.set_num_threads(1)

STEPS = 6
SHAPE = [1, 4, 4, 4]
BIAS = data("fake.bias", SHAPE)
FAKE = "fake(z) = 0.7 tanh(z / 2) + 0.3 input.bias, z = the network's input"


def fake(z):
    return 0.7 * torch.tanh(z * 0.5) + 0.3 * BIAS


def walk(scheduler, latent):
    """The latent before the first and after every step, and the x0 prediction where the scheduler gives one."""
    scheduler.set_timesteps(STEPS)
    latent = latent * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else latent
    out = {"start": latent, "timesteps": scheduler.timesteps}
    if hasattr(scheduler, "sigmas"):
        out["sigmas"] = scheduler.sigmas
    for i, t in enumerate(scheduler.timesteps):
        z = scheduler.scale_model_input(latent, t) if hasattr(scheduler, "scale_model_input") else latent
        result = scheduler.step(fake(z), t, latent)
        latent = result.prev_sample
        out[f"step_{i + 1}"] = latent
        if getattr(result, "pred_original_sample", None) is not None:
            out[f"x0_{i + 1}"] = result.pred_original_sample
    return out


def golden(name, runs, config, note):
    inputs = {"input.noise": NOISE, "input.bias": BIAS}
    out = {f"{run}.{k}": v for run, scheduler in runs.items() for k, v in walk(scheduler, NOISE).items()}
    print({k: round(v.abs().max().item(), 3) for k, v in out.items() if "step_" in k})
    save(name, inputs | out, config, FAKE + ". " + note)


NOISE = data("input.noise", SHAPE)
PREDICTIONS = ["epsilon", "v_prediction"]
NAMES = "<run>.start is the latent before the first step, step_n after n of 6, x0_n the prediction in step n. diffusers' f32."


def main():
    euler = {p: EulerDiscreteScheduler(**SDXL | {"prediction_type": p}) for p in PREDICTIONS}
    note = """Sigma space: start = input.noise * init_noise_sigma = noise * sqrt(sigma_max^2 + 1) (leading spacing);
    z = latent / sqrt(sigma^2 + 1). Runs by prediction type. """
    golden("euler_steps", euler, SDXL, note + NAMES)
    ddim = {p: DDIMScheduler(**DDIM | {"prediction_type": p}) for p in PREDICTIONS}
    note = """Variance-preserving space: start = input.noise, z = latent; eta 0, the last step goes to alpha_0, not 1.
    In sigma space x = latent / sqrt(alpha). Runs by prediction type. """
    golden("ddim_steps", ddim, DDIM, note + NAMES)
    flow = {"shift_3": FlowMatchEulerDiscreteScheduler(**FLOW)}
    golden("flow_euler_steps", flow, FLOW, "start = input.noise, z = latent, latent += (sigma' - sigma) fake(z). " + NAMES)


if __name__ == "__main__":
    main()
