"""Goldens of diffusers' samplers beyond Euler and DDIM, with the fake network of steps.py.

Heun, ancestral Euler, EDM's stochastic Euler, DPM-Solver, DPM-Solver++(2M), UniPC, each step by step. What the stochastic ones draw is
given to them by `drawn` and stored.
"""

import sys
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from schedules import FLOW, MULTISTEP, SDXL
from steps import BIAS, FAKE, NOISE, PREDICTIONS, SHAPE, STEPS, fake
from formula import data
from golden import save

VP = MULTISTEP | dict(timestep_spacing="trailing")
LAYOUTS = {layout: VP | dict(timestep_spacing=layout) for layout in ["leading", "linspace"]}
FLOW_SIGMAS = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000)
NAMES = "<run>.start is the latent before the first step, step_n after n steps, sigmas one more than steps. diffusers' f32."


def drawn(steps):
    return [data(f"drawn.{i + 1}", SHAPE) for i in range(steps)]


def walk(scheduler, steps=STEPS, calls=1):
    """The latent before the first and after every step; `calls` of the network make one step but the last."""
    scheduler.set_timesteps(steps)
    latent = NOISE * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else NOISE
    out = {"start": latent, "sigmas": scheduler.sigmas[:1].tolist() + scheduler.sigmas[1:-1:calls].tolist() + [scheduler.sigmas[-1].item()]}
    out["sigmas"] = torch.tensor(out["sigmas"])
    done = 0
    module = sys.modules[type(scheduler).__module__]
    noises = iter(drawn(steps))
    with patch.object(module, "randn_tensor", lambda *_, **__: next(noises), create=True):
        for i, t in enumerate(scheduler.timesteps):
            z = scheduler.scale_model_input(latent, t) if hasattr(scheduler, "scale_model_input") else latent
            latent = scheduler.step(fake(z), t, latent).prev_sample
            if i + 1 == len(scheduler.timesteps) or (i + 1) % calls == 0:
                done += 1
                out[f"step_{done}"] = latent
    assert done == steps and len(out["sigmas"]) == steps + 1, (done, out["sigmas"])
    return out


def golden(name, runs, config, note, **more):
    inputs = {"input.noise": NOISE, "input.bias": BIAS} | more
    out = {f"{run}.{k}": v for run, states in runs.items() for k, v in states.items()}
    print({k: round(v.abs().max().item(), 3) for k, v in out.items() if "step_" in k})
    save(name, inputs | out, config, FAKE + ". " + note + NAMES)


def noises(steps=STEPS):
    return {f"input.drawn_{i + 1}": n for i, n in enumerate(drawn(steps))}


def edm(s_churn, s_tmin, s_tmax, s_noise):
    """EDMEulerScheduler's steps at the sigmas of sgm's LegacyDDPMDiscretization.

    The network is asked at the nearest training sigma, as sgm's DiscreteDenoiser does:
    D(x) = x - s fake(x / sqrt(s^2 + 1)).
    """
    betas = np.linspace(SDXL["beta_start"] ** 0.5, SDXL["beta_end"] ** 0.5, 1000, dtype=np.float64) ** 2
    alphas = np.cumprod(1.0 - betas)
    trained = torch.from_numpy(((1 - alphas) / alphas) ** 0.5)
    at = np.linspace(999, 0, STEPS, endpoint=False).astype(int)
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.cat([trained[torch.from_numpy(at)], torch.zeros(1)]).float()
    latent = NOISE * (1.0 + scheduler.sigmas[0] ** 2) ** 0.5
    out = {"start": latent, "sigmas": scheduler.sigmas, "timesteps": torch.from_numpy(at)}
    module = sys.modules[EDMEulerScheduler.__module__]
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        gamma = min(s_churn / STEPS, 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        hat = sigma * (1 + gamma)
        noise = drawn(STEPS)[i]
        x = latent + noise * s_noise * (hat**2 - sigma**2) ** 0.5
        near = trained[(trained - hat).abs().argmin()].float()
        x0 = x - near * fake(x / (near**2 + 1) ** 0.5)
        scheduler.is_scale_input_called = True
        with patch.object(module, "randn_tensor", lambda *_, **__: noise):
            step = scheduler.step(x0, t, latent, s_churn, s_tmin, s_tmax, s_noise, pred_original_sample=x0)
        latent = step.prev_sample
        out[f"step_{i + 1}"] = latent
    return out


def main():
    runs = {p: walk(HeunDiscreteScheduler(**{k: v for k, v in SDXL.items() if k != "interpolation_type"} | {"prediction_type": p}), calls=2) for p in PREDICTIONS}
    golden("heun_steps", runs, SDXL, "Heun in sigma space, start and network input as in euler_steps; the last step is Euler's. Runs by prediction type. ")
    runs = {"shift_3": walk(FlowMatchHeunDiscreteScheduler(**FLOW), calls=2)}
    golden("flow_heun_steps", runs, FLOW, "Heun in flow space, network input as in flow_euler_steps. ")

    ancestral = {k: v for k, v in SDXL.items() if k not in ("interpolation_type", "use_karras_sigmas")}
    runs = {p: walk(EulerAncestralDiscreteScheduler(**ancestral | {"prediction_type": p})) for p in PREDICTIONS}
    golden("euler_ancestral_steps", runs, SDXL, "Sigma space as in euler_steps; step n draws input.drawn_n, the last one without effect. ", **noises())

    runs = {"churn_2": edm(2.0, 0.0, float("inf"), 1.003), "limits": edm(1.0, 0.5, 10.0, 1.1)}
    note = """EDM's stochastic Euler (Karras et al., algorithm 2 without the second order) at sgm's legacy timesteps int(linspace(999, 0, 6, endpoint
    False)); fake counts as epsilon at the training sigma nearest to sigma (1 + gamma). churn_2: s_churn 2, s_noise 1.003. limits: s_churn 1,
    s_tmin 0.5, s_tmax 10, s_noise 1.1. Step n draws input.drawn_n, where it draws. """
    golden("edm_steps", runs, SDXL, note, **noises())

    noise_prediction = VP | dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    runs = {
        "noise_1": walk(DPMSolverMultistepScheduler(**noise_prediction, solver_order=1)),
        "noise_2": walk(DPMSolverMultistepScheduler(**noise_prediction, solver_order=2)),
        "noise_2_long": walk(DPMSolverMultistepScheduler(**noise_prediction, solver_order=2), 16),
        "data_1": walk(DPMSolverMultistepScheduler(**VP, solver_order=1)),
        "data_2": walk(DPMSolverMultistepScheduler(**VP, solver_order=2)),
        "data_2_v": walk(DPMSolverMultistepScheduler(**VP | {"prediction_type": "v_prediction"}, solver_order=2)),
        "data_2_long": walk(DPMSolverMultistepScheduler(**VP, solver_order=2, final_sigmas_type="sigma_min"), 16),
        "data_2_flow": walk(DPMSolverMultistepScheduler(**FLOW_SIGMAS, solver_order=2)),
    }
    for layout, config in LAYOUTS.items():
        runs[f"noise_2_{layout}"] = walk(DPMSolverMultistepScheduler(**noise_prediction | config, solver_order=2))
        runs[f"data_2_{layout}"] = walk(DPMSolverMultistepScheduler(**config, solver_order=2))
    note = """Variance-preserving space, trailing but for *_leading and *_linspace; noise_<order> is algorithm_type dpmsolver, data_<order> dpmsolver++, both midpoint; noise_* and
    *_long end at sigma_min, the others at 0; *_long have 16 steps; *_v is v-prediction; *_flow has flow sigmas of shift 3. """
    golden("dpm_steps", runs, VP, note)

    runs = {
        "bh2": walk(UniPCMultistepScheduler(**VP, solver_order=2, solver_type="bh2")),
        "bh1": walk(UniPCMultistepScheduler(**VP, solver_order=2, solver_type="bh1", final_sigmas_type="sigma_min")),
        "bh2_v": walk(UniPCMultistepScheduler(**VP | {"prediction_type": "v_prediction"}, solver_order=2)),
        "bh2_flow": walk(UniPCMultistepScheduler(**FLOW_SIGMAS, solver_order=2)),
    }
    for layout, config in LAYOUTS.items():
        runs[f"bh2_{layout}"] = walk(UniPCMultistepScheduler(**config, solver_order=2))
    note = """Variance-preserving space, trailing but for *_leading and *_linspace, order 2, x0 is predicted, ends at 0 (bh1 at sigma_min, because diffusers' bh1 gives NaN at 0); *_v is
    v-prediction, *_flow has flow sigmas of shift 3. A state is what the predictor gave; the scheduler corrects it inside its next step. """
    golden("unipc_steps", runs, VP, note)


if __name__ == "__main__":
    main()
