"""Noise schedules, timesteps and noise levels, against diffusers' schedulers and k-diffusion: to 1e-6 relative.

The oracles compute them in float32, and so sigma from 1 - alpha_bar, which for the lowest ones loses three digits.
"""

import dataclasses

import numpy as np
import pytest

from ldm import schedule
from ldm import spacing as spacings

from . import oracle
from .test_samplers import SD, k_denoiser, k_levels, scheduler_of

LIMIT = 1e-6


# ---- diffusers ----


@pytest.mark.parametrize("betas", schedule.BETAS)
@pytest.mark.parametrize("zero", [False, True])
def test_diffusers_alpha_bars(betas: str, zero: bool):
    numbers = dataclasses.replace(SD, betas=betas, zero_terminal_snr=zero)
    scheduler = oracle.diffusers.EulerDiscreteScheduler(
        beta_start=SD.beta_start, beta_end=SD.beta_end, beta_schedule=betas, rescale_betas_zero_snr=zero
    )
    oracle.agree(f"alpha_bars {betas} {zero}", schedule.alpha_bars(numbers), scheduler.alphas_cumprod.numpy(), LIMIT)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_diffusers_timesteps_of_every_number_of_steps(name: str, spacing: str):
    """Equal for all n but its degenerate ends, and where its "trailing" adds a timestep -1 (62 of the n)."""
    scheduler, convention, different = scheduler_of(name, spacing, SD), spacings.CONVENTIONS[name], []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        wanted = scheduler.timesteps.numpy()
        if not np.allclose(spacings.timesteps(SD, convention, spacing, steps), wanted[:steps], atol=1e-3):
            different.append(steps)
    assert set(different) <= {1, 999, 1000}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["euler", "euler_a", "heun", "lms"])
def test_diffusers_levels(name: str, spacing: str):
    scheduler = scheduler_of(name, spacing, SD)
    for steps in (2, 10, 33, 50, 333):
        scheduler.set_timesteps(steps)
        wanted = scheduler.sigmas.numpy()
        wanted = np.append(wanted[:-1:2], 0) if name == "heun" else wanted  # each but the last one stands twice there
        oracle.agree(f"levels {name} {spacing} {steps}", spacings.levels(SD, name, spacing, steps), wanted, LIMIT)


def test_diffusers_published_tables():
    tables = oracle.diffusers.schedulers.AysSchedules
    for ours_name, theirs_name in {"ays": "StableDiffusionSigmas", "ays_xl": "StableDiffusionXLSigmas"}.items():
        wanted = np.array(tables[theirs_name])
        oracle.agree(ours_name, spacings.levels(SD, "euler", ours_name, 10), wanted, LIMIT)


# ---- k-diffusion ----


def test_k_diffusion_between_sigma_and_t():
    torch, theirs = oracle.torch, k_denoiser("epsilon")
    t = np.linspace(0, 999, 4001, dtype=np.float32)
    oracle.agree("sigma_at", schedule.sigma_at(SD, t), theirs.t_to_sigma(torch.tensor(t)).numpy(), LIMIT)
    sigma = np.geomspace(0.02, 20, 4001).astype(np.float32)
    oracle.agree("t_at", schedule.t_at(SD, sigma), theirs.sigma_to_t(torch.tensor(sigma)).numpy(), LIMIT)


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_k_diffusion_levels(spacing: str):
    for steps in (1, 2, 10, 333, 1000):
        wanted = k_levels(spacing, steps).numpy()
        oracle.agree(f"levels {spacing} {steps}", spacings.levels(SD, "euler", spacing, steps), wanted, LIMIT)


@pytest.mark.parametrize("spacing", ["exponential", "sgm_uniform"])
def test_k_diffusion_more_levels(spacing: str):
    lowest, *_, highest = schedule.noise_levels(SD)
    for steps in (1, 2, 10, 333):
        if spacing == "exponential":
            wanted = oracle.import_k_diffusion().get_sigmas_exponential(steps, lowest, highest)
        else:  # the graphical tools' own definition, on k-diffusion's t_to_sigma
            t = oracle.torch.linspace(999, 0, steps + 1)[:-1]
            wanted = oracle.torch.cat([k_denoiser("epsilon").t_to_sigma(t), oracle.torch.zeros(1)])
        oracle.agree(f"{spacing} {steps}", spacings.levels(SD, "euler", spacing, steps), wanted.numpy(), LIMIT)
