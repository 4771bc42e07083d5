"""Samplers, levels and the wrapping of a network, against diffusers' schedulers and k-diffusion.

Both sides integrate one toy network, written twice, from the same unit noise and with the same noise at every step, so
they differ by float32 rounding alone: 1e-5 relative. The oracles compute alpha_bar and 1 - alpha_bar in float32, which
gives their sigma(0) a relative error of up to 7e-5 (1 - 0.99915 loses three digits); we compute it in float64.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm import samplers, schedule
from ldm.denoiser import from_network
from ldm.schedule import NoiseSchedule

from . import oracle

LIMIT = 1e-5
SHAPE = (2, 3, 5, 4)
MOST = 60
SD = NoiseSchedule()
BETAS = {"beta_start": SD.beta_start, "beta_end": SD.beta_end, "beta_schedule": SD.betas}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
}
PREDICTIONS = ("epsilon", "v_prediction")


def toy(xp: Any, x: Any, t: Any, wave: float) -> Any:
    """A network that is not linear in x, mixes its channels, and depends on t by ``wave``. xp: jnp or torch."""
    return xp.tanh(0.9 * x) + 0.2 * xp.roll(x, 1, -1) + wave * xp.sin(0.01 * t)


def noises(count: int = MOST) -> np.ndarray:
    """Unit noise of the start (the last entry) and of every step."""
    return oracle.gaussian(5, count + 1, *SHAPE)


@functools.lru_cache
def compiled(name: str, numbers: NoiseSchedule, wave: float) -> Callable:
    """(plan, unit noise) -> our sample, compiled once for every spacing, number of steps and eta."""

    def run(plan: samplers.Plan, noise: jax.Array) -> jax.Array:
        denoise = from_network(lambda x, t: toy(jnp, x, t, wave), numbers)
        return samplers.sample(samplers.SAMPLERS[name], denoise, plan.scale * noise[-1], plan, lambda i: noise[i])

    return jax.jit(run)


def ours(name: str, spacing: str, steps: int, numbers: NoiseSchedule, eta: float | None = None, wave: float = 0.3):
    """Our sample from the unit noise of ``noises``."""
    plan = samplers.make_plan(numbers, name, spacing, steps, eta=eta, most=MOST)
    return compiled(name, numbers, wave)(plan, noises())


def scheduler_of(name: str, spacing: str, numbers: NoiseSchedule, **more: Any) -> Any:
    """diffusers' scheduler with the settings of a Stable Diffusion folder."""
    kind, settings = SCHEDULERS[name]
    settings = BETAS | settings | {"prediction_type": numbers.prediction, "timestep_spacing": spacing}
    return getattr(oracle.diffusers, kind)(**settings, steps_offset=numbers.steps_offset, **more)


def theirs(
    scheduler: Any, steps: int, monkeypatch: pytest.MonkeyPatch, wave: float = 0.3, **options: Any
) -> np.ndarray:
    """diffusers' sample: its pipeline's loop, with its random numbers replaced by those of ``noises``."""
    torch, noise = oracle.torch, noises()
    drawn = iter(noise)
    module = sys.modules[type(scheduler).__module__]  # heun's draws no noise, and does not import the function
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.tensor(next(drawn)), raising=False)
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise[-1]) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = toy(torch, scheduler.scale_model_input(x, t), t, wave)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x.numpy()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers(name: str, spacing: str, prediction: str, monkeypatch: pytest.MonkeyPatch):
    numbers = dataclasses.replace(SD, prediction=prediction)
    for steps in (1, 10, 50):  # all divide T, see `levels` for ddim with "trailing"
        wanted = theirs(scheduler_of(name, spacing, numbers), steps, monkeypatch)
        oracle.agree(f"{name} {spacing} {prediction} {steps}", ours(name, spacing, steps, numbers), wanted, LIMIT)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_when_steps_do_not_divide(name: str, monkeypatch: pytest.MonkeyPatch):
    for steps in (3, 7, 14, 15, 33):  # 14 and 15: where DPMSolverMultistep's lower order at the end sets in
        wanted = theirs(scheduler_of(name, "leading", SD), steps, monkeypatch)
        oracle.agree(f"{name} leading {steps}", ours(name, "leading", steps, SD), wanted, LIMIT)


@pytest.mark.parametrize("name", ["ddpm", "euler", "euler_a", "heun", "dpmpp_2m"])
def test_diffusers_linspace(name: str, monkeypatch: pytest.MonkeyPatch):
    """Fractions of t differ by up to 0.05 (theirs linear in sigma, ours in its logarithm): a network without t."""
    for steps in (2, 20, 33):
        wanted = theirs(scheduler_of(name, "linspace", SD), steps, monkeypatch, wave=0)
        oracle.agree(f"{name} linspace {steps}", ours(name, "linspace", steps, SD, wave=0), wanted, LIMIT)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_diffusers_ddim_with_noise(prediction: str, eta: float, monkeypatch: pytest.MonkeyPatch):
    numbers = dataclasses.replace(SD, prediction=prediction)
    wanted = theirs(scheduler_of("ddim", "leading", numbers), 20, monkeypatch, eta=eta)
    oracle.agree(f"ddim eta {eta} {prediction}", ours("ddim", "leading", 20, numbers, eta), wanted, LIMIT)


def test_diffusers_ddim_that_ends_without_noise(monkeypatch: pytest.MonkeyPatch):
    numbers = dataclasses.replace(SD, final_alpha_one=True, steps_offset=0)
    scheduler = oracle.diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    wanted = theirs(scheduler, 20, monkeypatch)
    oracle.agree("ddim to sigma 0", ours("ddim", "leading", 20, numbers), wanted, LIMIT)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_diffusers_karras(name: str, monkeypatch: pytest.MonkeyPatch):
    """dpmpp_2m there rounds t to whole numbers: a network without t."""
    wave = 0.0 if name == "dpmpp_2m" else 0.3
    scheduler = scheduler_of(name, "linspace", SD, use_karras_sigmas=True)
    wanted = theirs(scheduler, 20, monkeypatch, wave=wave)
    oracle.agree(f"{name} karras", ours(name, "karras", 20, SD, wave=wave), wanted, LIMIT)


@pytest.mark.parametrize("name", ["euler", "euler_a", "dpmpp_2m"])
def test_diffusers_zero_terminal_snr(name: str, monkeypatch: pytest.MonkeyPatch):
    numbers = dataclasses.replace(SD, prediction="v_prediction", zero_terminal_snr=True)
    scheduler = scheduler_of(name, "trailing", numbers, rescale_betas_zero_snr=True)
    wanted = theirs(scheduler, 20, monkeypatch)
    oracle.agree(f"{name} zero terminal snr", ours(name, "trailing", 20, numbers), wanted, LIMIT)


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
    scheduler, convention, different = scheduler_of(name, spacing, SD), schedule.CONVENTIONS[name], []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        wanted = scheduler.timesteps.numpy()
        if not np.allclose(schedule._timesteps(SD, convention, spacing, steps), wanted[:steps], atol=1e-3):
            different.append(steps)
    assert set(different) <= {1, 999, 1000}


# ---- k-diffusion ----


def k_denoiser(prediction: str) -> Any:
    """k-diffusion's wrapping of the toy network."""
    external, torch = oracle.import_k_diffusion("external"), oracle.torch
    kind = {"epsilon": external.DiscreteEpsDDPMDenoiser, "v_prediction": external.DiscreteVDDPMDenoiser}[prediction]
    alpha_bar = torch.tensor(schedule._alpha_bars(SD), dtype=torch.float64).float()
    return kind(lambda x, t: toy(torch, x, t[:, None, None, None], 0.3), alpha_bar, quantize=False)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_k_diffusion_denoiser(prediction: str):
    torch, x = oracle.torch, oracle.gaussian(1, *SHAPE)
    denoise = from_network(lambda x, t: toy(jnp, x, t, 0.3), dataclasses.replace(SD, prediction=prediction))
    for sigma in (0.03, 0.5, 3.0, 14.6):
        wanted = k_denoiser(prediction)(torch.tensor(x * sigma), torch.full([2], sigma)).numpy()
        oracle.agree(f"denoiser {prediction} at {sigma}", denoise(x * sigma, sigma), wanted, LIMIT)


def test_k_diffusion_between_sigma_and_t():
    torch, theirs = oracle.torch, k_denoiser("epsilon")
    t = np.linspace(0, 999, 4001, dtype=np.float32)
    oracle.agree("sigma_at", schedule.sigma_at(SD, t), theirs.t_to_sigma(torch.tensor(t)).numpy(), LIMIT)
    sigma = np.geomspace(0.02, 20, 4001).astype(np.float32)
    oracle.agree("t_at", schedule.t_at(SD, sigma), theirs.sigma_to_t(torch.tensor(sigma)).numpy(), LIMIT)


def k_levels(spacing: str, steps: int) -> Any:
    """k-diffusion's levels: a torch tensor [steps+1]."""
    if spacing == "uniform":
        return k_denoiser("epsilon").get_sigmas(steps)
    lowest, *_, highest = schedule._sigmas(SD)
    return oracle.import_k_diffusion().get_sigmas_karras(steps, lowest, highest)


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_k_diffusion_levels(spacing: str):
    for steps in (1, 2, 10, 333, 1000):
        wanted = k_levels(spacing, steps).numpy()
        oracle.agree(f"levels {spacing} {steps}", schedule.levels(SD, "euler", spacing, steps), wanted, LIMIT)


K_SAMPLERS: dict[str, Callable] = {
    "euler": lambda k, noise, *run: k.sample_euler(*run, disable=True),
    "euler_a": lambda k, noise, *run: k.sample_euler_ancestral(*run, noise_sampler=noise, disable=True),
    "euler_a 0.4": lambda k, noise, *run: k.sample_euler_ancestral(*run, eta=0.4, noise_sampler=noise, disable=True),
    "heun": lambda k, noise, *run: k.sample_heun(*run, disable=True),
    "dpmpp_2m": lambda k, noise, *run: k.sample_dpmpp_2m(*run, disable=True),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("name", K_SAMPLERS)
def test_k_diffusion(name: str, spacing: str, prediction: str):
    torch, noise, numbers = oracle.torch, noises(), dataclasses.replace(SD, prediction=prediction)
    ours_name, eta = name.split()[0], float(name.split()[1]) if " " in name else None
    for steps in (1, 9, 40):
        drawn, visited = iter(noise), k_levels(spacing, steps)
        # dpmpp_2m starts with the VP form's unit variance in our convention, which is diffusers'
        scale = math.sqrt(1 + visited[0] ** 2) if ours_name == "dpmpp_2m" else visited[0]
        run = (k_denoiser(prediction), torch.tensor(noise[-1]) * scale, visited)
        noise_at = functools.partial(lambda drawn, *_: torch.tensor(next(drawn)), drawn)
        wanted = K_SAMPLERS[name](oracle.import_k_diffusion(), noise_at, *run).numpy()
        result = ours(ours_name, spacing, steps, numbers, eta)
        oracle.agree(f"k-diffusion {name} {spacing} {prediction} {steps}", result, wanted, LIMIT)
