"""Noise schedules: how much noise the network was trained on at each timestep.

Everything downstream works in *sigma space*: x = x0 + sigma * noise. The training process of DDPM is written in its
variance-preserving (VP) form, x_t = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise; dividing by sqrt(alpha_bar)
gives sigma = sqrt((1 - alpha_bar) / alpha_bar). Timesteps t run from 0 (least noise) to T-1 (most).

Tables are computed in float64 on the host and stored in float32, never lower: in bfloat16 alpha_bar[0] = 0.99915
rounds to 1, so sigma would be 0.

Shape letters: T training timesteps, n sampling steps.
Sources: DDPM (Ho et al. 2020, eq. 4); improved DDPM (Nichol & Dhariwal 2021, eq. 17, the cosine schedule); EDM (Karras
et al. 2022, eq. 5, table 1); "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023, alg. 1
and table 2, the spacings); DDIM (Song et al. 2021, appendix D.2).
"""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

import jax.numpy as jnp
import numpy as np
from jax import Array

BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TERMINAL_ALPHA_BAR = 2.0**-24  # stands for the exact 0 of a zero terminal signal: sigma is then 4096, not infinite
SNAP = 1e-3  # a timestep this near to a whole number is that number


@dataclass(frozen=True)
class NoiseSchedule:
    """The numbers that define a training noise schedule; hashable, so it is static under jit. Defaults: SD 1.x and 2.x.

    beta_start, beta_end, betas   first and last variance of one noising step, and the curve between them
    train_steps                   T
    prediction                    what the network predicts: "epsilon" (noise), "v_prediction" or "sample" (x0)
    steps_offset                  added to the timesteps of "leading" spacing
    final_alpha_one               DDIM's last step goes to sigma 0 (True) or stops at sigma(0) (False; SD's own setting)
    zero_terminal_snr             rescale so that t = T-1 holds no signal (Lin et al. 2023, alg. 1)
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: str = "scaled_linear"
    train_steps: int = 1000
    prediction: str = "epsilon"
    steps_offset: int = 1
    final_alpha_one: bool = False
    zero_terminal_snr: bool = False

    def __post_init__(self):
        check_name("beta schedule", self.betas, BETAS)
        check_name("prediction type", self.prediction, PREDICTIONS)
        if not isinstance(self.train_steps, Integral) or self.train_steps < 2:
            raise ValueError(f"train_steps must be a whole number of at least 2, got {self.train_steps!r}")
        ends = (self.beta_start, self.beta_end)
        if not all(isinstance(beta, Real) for beta in ends) or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < start <= end < 1, got {self.beta_start!r} and {self.beta_end!r}")


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is known; otherwise a ValueError that lists the known ones and suggests the nearest."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


# ---------------------------------------------------------------------------------------------------------------------
# Tables over the T training timesteps


def beta_table(schedule: NoiseSchedule) -> np.ndarray:
    """Variance added by each noising step, float64 [T], before any rescaling."""
    first, last, count = schedule.beta_start, schedule.beta_end, schedule.train_steps
    if schedule.betas == "linear":
        return np.linspace(first, last, count)
    if schedule.betas == "scaled_linear":  # linear in sqrt(beta): the latent diffusion schedule
        return np.linspace(first**0.5, last**0.5, count) ** 2
    edges = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2  # iDDPM eq. (17)
    return np.minimum(1 - edges[1:] / edges[:-1], 0.999)


def rescale_to_zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that it ends at 0 and starts where it did. [T] -> [T]; Lin et al. alg. 1."""
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return np.append(root[:-1] ** 2, TERMINAL_ALPHA_BAR)


@functools.lru_cache(maxsize=64)
def _alpha_bars(schedule: NoiseSchedule) -> np.ndarray:
    alpha_bar = np.cumprod(1 - beta_table(schedule))  # DDPM eq. (4)
    return rescale_to_zero_terminal_snr(alpha_bar) if schedule.zero_terminal_snr else alpha_bar


def noise_levels(schedule: NoiseSchedule) -> np.ndarray:
    """As `sigmas`, in float64: what levels are computed from."""
    alpha_bar = _alpha_bars(schedule)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def alpha_bars(schedule: NoiseSchedule) -> np.ndarray:
    """Share of the signal's variance left at each timestep: the product of (1 - beta) so far. float32 [T], falling."""
    return _alpha_bars(schedule).astype(np.float32)


def sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """Noise level at each timestep, sqrt((1 - alpha_bar) / alpha_bar), in units of x0. float32 [T], rising."""
    return noise_levels(schedule).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Between timesteps: log(sigma) is taken as linear between whole t (as k-diffusion does). Both run under jit.


def sigma_at(schedule: NoiseSchedule, t: Array) -> Array:
    """Noise level at timestep t, any shape, fractions allowed; clamped to 0 and T-1. float32."""
    log_sigma = np.log(noise_levels(schedule)).astype(np.float32)
    return jnp.exp(jnp.interp(jnp.asarray(t, jnp.float32), np.arange(log_sigma.size, dtype=np.float32), log_sigma))


def t_at(schedule: NoiseSchedule, sigma: Array) -> Array:
    """Timestep of a noise level, any shape: the inverse of `sigma_at`; clamped to 0 and T-1 (sigma 0 gives 0). float32.

    A result within 1e-3 of a whole number becomes it: training saw whole t only, and the network turns t into
    sines and cosines, so float32's rounding of log(sigma), up to 1e-4 in t, would not be harmless.
    """
    log_sigma = np.log(noise_levels(schedule)).astype(np.float32)
    tiny = jnp.finfo(jnp.float32).tiny
    wanted = jnp.log(jnp.maximum(jnp.asarray(sigma, jnp.float32), tiny))
    t = jnp.interp(wanted, log_sigma, np.arange(log_sigma.size, dtype=np.float32))
    whole = jnp.round(t)
    return jnp.where(jnp.abs(t - whole) < SNAP, whole, t)
