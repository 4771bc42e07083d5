"""Samplers: from noise to a sample by calling a denoiser at falling noise levels.

All work in sigma space, x = x0 + sigma * noise, where the probability-flow ODE is as simple as it gets,
    dx/dsigma = (x - x0(x, sigma)) / sigma
and begin each step with the prediction x0 = denoise(x, sigma). A step is a pure function of it that reads like its
paper; one loop drives them all. What falls out of this form, and the tests prove:

    ddim (eta = 0)  is  euler                             dpmpp_2m     is  euler with x0 extrapolated from the last two
    ddim (eta)      is  euler_a (eta)                     dpmpp_2m     is  dpmpp_2m_sde (eta = 0), and unipc's predictor
    ddpm            is  ddim (eta = 1)                    dpmpp_2s_a, dpm2_a (eta = 0)  are  DPM-Solver++(2S), dpm2

What then differs between those names in public tools is only where the levels lie: see `ldm.spacing.levels`.

    one_step    steps that look at nothing but where they are         noise   fresh noise, keyed per image
    multistep   steps that remember earlier predictions               loop    the table, the plan of a run, the loop
    names       what other tools call them
"""

from ldm.samplers.loop import (
    SAMPLERS,
    Path,
    Plan,
    Remembering,
    Sampler,
    State,
    Step,
    initial,
    make_plan,
    proceed,
    sample,
    sample_path,
)
from ldm.samplers.names import named
from ldm.samplers.noise import START, NoiseAt, brownian_noise, image_keys, noise_per_step, unit_noise

__all__ = [
    "SAMPLERS",
    "START",
    "NoiseAt",
    "Path",
    "Plan",
    "Remembering",
    "Sampler",
    "State",
    "Step",
    "brownian_noise",
    "image_keys",
    "initial",
    "make_plan",
    "named",
    "noise_per_step",
    "proceed",
    "sample",
    "sample_path",
    "unit_noise",
]
