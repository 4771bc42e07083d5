"""Samplers and the wrapping of a network, against diffusers' schedulers and k-diffusion.

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
from ldm import spacing as spacings
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
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
}
PREDICTIONS = ("epsilon", "v_prediction")


def toy(xp: Any, x: Any, t: Any, wave: float) -> Any:
    """A network that is not linear in x, mixes its channels, and depends on t by ``wave``. xp: jnp or torch."""
    return xp.tanh(0.9 * x) + 0.2 * xp.roll(x, 1, -1) + wave * xp.sin(0.01 * t)


def noises() -> np.ndarray:
    """Unit noise of the start (the last entry), of every step, and of every step's second part."""
    return oracle.gaussian(5, 2 * MOST + 1, *SHAPE)


def noise_from(table: Any) -> samplers.NoiseAt:
    """Ours out of such a table."""
    return lambda step, part, *_: table[step + MOST * part]


@functools.lru_cache
def compiled(name: str, numbers: NoiseSchedule, wave: float) -> Callable:
    """(plan, unit noise) -> our sample, compiled once for every spacing, number of steps and eta."""

    def run(plan: samplers.Plan, noise: jax.Array) -> jax.Array:
        denoise = from_network(lambda x, t: toy(jnp, x, t, wave), numbers)
        return samplers.sample(samplers.SAMPLERS[name], denoise, plan.scale * noise[-1], plan, noise_from(noise))

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
    if name == "plms" and prediction == "v_prediction":
        return  # theirs combines earlier velocities, not the noises of the paper's eq. (12)
    numbers = dataclasses.replace(SD, prediction=prediction)
    for steps in (1, 10, 50)[name == "plms" :]:  # all divide T, see `levels` for ddim with "trailing"; PNDM: 2 or more
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


def k_levels(spacing: str, steps: int) -> Any:
    """k-diffusion's levels: a torch tensor [steps+1]."""
    if spacing == "uniform":
        return k_denoiser("epsilon").get_sigmas(steps)
    lowest, *_, highest = schedule.noise_levels(SD)
    return oracle.import_k_diffusion().get_sigmas_karras(steps, lowest, highest)


STOCHASTIC = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
K_NAMES = {
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "heun": "heun",
    "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_ancestral",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "lms": "lms",
}
ETAS = [(name, None) for name in K_NAMES] + [(name, 0.4) for name, theirs in K_NAMES.items() if theirs in STOCHASTIC]


def k_sample(name: str, model: Any, x: Any, levels: Any, eta: float | None) -> np.ndarray:
    """k-diffusion's sample, with the noise of ``noises``."""
    torch, noise, theirs = oracle.torch, noises(), K_NAMES[name]
    parts = (0, MOST) if name == "dpmpp_sde" else (0,)
    drawn = iter([noise[step + part] for step in range(MOST) for part in parts])
    options = {"noise_sampler": lambda *_: torch.tensor(next(drawn)).to(x.dtype)} if theirs in STOCHASTIC else {}
    options |= {} if eta is None else {"eta": eta}
    return getattr(oracle.import_k_diffusion(), f"sample_{theirs}")(model, x, levels, disable=True, **options).numpy()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize(("name", "eta"), ETAS)
def test_k_diffusion(name: str, eta: float | None, spacing: str, prediction: str):
    torch, numbers = oracle.torch, dataclasses.replace(SD, prediction=prediction)
    for steps in (1, 9, 40)[name in ("dpmpp_2m_sde", "dpmpp_3m_sde") :]:  # theirs fail at a run of one step
        visited = k_levels(spacing, steps)
        # some start with the VP form's unit variance in our convention, which is diffusers'
        unit = spacings.CONVENTIONS[name].unit_variance_start
        scale = math.sqrt(1 + visited[0] ** 2) if unit else visited[0]
        wanted = k_sample(name, k_denoiser(prediction), torch.tensor(noises()[-1]) * scale, visited, eta)
        result = ours(name, spacing, steps, numbers, eta)
        limit = 3 * LIMIT if name == "dpmpp_3m_sde" else LIMIT  # differences of differences: see float64 below
        oracle.agree(f"k-diffusion {name} {eta} {spacing} {prediction} {steps}", result, wanted, limit)


def toy_denoiser(xp: Any, x: Any, sigma: Any) -> Any:
    """A denoiser in any precision, not linear in x and mixing its channels. xp: jnp or torch."""
    return xp.tanh(x / (1 + sigma**2)) + 0.1 * xp.roll(x, 1, -1) / (1 + sigma)


def ours_in_float64(name: str, eta: float, levels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Our sample in sigma space, of the toy denoiser."""
    with jax.enable_x64(True):
        plan = samplers.Plan(levels, np.int32(len(levels) - 1), np.float64(eta), levels[0])
        denoise, noise_at = functools.partial(toy_denoiser, jnp), noise_from(jnp.asarray(noise))
        run = lambda x: samplers.sample(samplers.SAMPLERS[name], denoise, x, plan, noise_at)
        return np.asarray(jax.jit(run)(plan.scale * noise[-1])) * np.sqrt(1 + levels[-1] ** 2)


@pytest.mark.parametrize(("name", "eta"), ETAS)
def test_k_diffusion_in_float64(name: str, eta: float | None):
    """Formulas, not rounding: to 1e-11."""
    torch, noise = oracle.torch, noises().astype(np.float64)
    own_eta = samplers.SAMPLERS[name].eta or 0.0 if eta is None else eta
    model = lambda x, sigma: toy_denoiser(torch, x, sigma[:, None, None, None])
    for levels in (np.geomspace(14.6, 0.03, 13), np.append(np.linspace(9.0, 0.5, 25), 0.0)):
        wanted = k_sample(name, model, torch.tensor(noise[-1] * levels[0]), torch.tensor(levels), eta)
        result = ours_in_float64(name, own_eta, levels, noise)
        assert result.dtype == np.float64
        oracle.agree(f"k-diffusion float64 {name} {eta}", result, wanted, 1e-11)


# ---- the rest of diffusers ----


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_diffusers_lcm(prediction: str, monkeypatch: pytest.MonkeyPatch):
    """Its boundary scalings, which we leave out, are most of the difference."""
    numbers = dataclasses.replace(SD, prediction=prediction)
    for steps in (1, 4, 8, 50):
        scheduler = oracle.diffusers.LCMScheduler(**BETAS, prediction_type=prediction, clip_sample=False)
        scheduler.set_timesteps(steps)
        assert np.array_equal(scheduler.timesteps.numpy(), spacings.lcm_timesteps(steps))
        wanted = theirs(scheduler, steps, monkeypatch)
        oracle.agree(f"lcm {prediction} {steps}", ours("lcm", "lcm", steps, numbers), wanted, LIMIT)
