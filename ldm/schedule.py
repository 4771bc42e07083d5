"""Noise schedules: how much noise the network was trained on at each timestep, and which levels a sampler visits.

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
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

import jax.numpy as jnp
import numpy as np
from jax import Array

BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "uniform", "linspace", "karras")
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


@dataclass(frozen=True)
class Convention:
    """How the public tools run one sampler, where they differ: see `levels` and `initial_scale`."""

    unit_variance_start: bool = False  # starts from sqrt(1 + sigma^2) * noise, the VP form's unit variance
    whole_timesteps: bool = False  # rounds "linspace" timesteps to whole numbers
    spare_point: bool = False  # spaces n+1 points and leaves out the lowest
    may_end_above_zero: bool = False  # its last level obeys final_alpha_one


CONVENTIONS = {
    "ddim": Convention(unit_variance_start=True, whole_timesteps=True, may_end_above_zero=True),
    "ddpm": Convention(unit_variance_start=True, whole_timesteps=True),
    "euler": Convention(),
    "euler_a": Convention(),
    "heun": Convention(),
    "dpmpp_2m": Convention(unit_variance_start=True, whole_timesteps=True, spare_point=True),
}


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


def _sigmas(schedule: NoiseSchedule) -> np.ndarray:
    alpha_bar = _alpha_bars(schedule)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def alpha_bars(schedule: NoiseSchedule) -> np.ndarray:
    """Share of the signal's variance left at each timestep: the product of (1 - beta) so far. float32 [T], falling."""
    return _alpha_bars(schedule).astype(np.float32)


def sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """Noise level at each timestep, sqrt((1 - alpha_bar) / alpha_bar), in units of x0. float32 [T], rising."""
    return _sigmas(schedule).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Between timesteps: log(sigma) is taken as linear between whole t (as k-diffusion does). Both run under jit.


def sigma_at(schedule: NoiseSchedule, t: Array) -> Array:
    """Noise level at timestep t, any shape, fractions allowed; clamped to 0 and T-1. float32."""
    log_sigma = np.log(_sigmas(schedule)).astype(np.float32)
    return jnp.exp(jnp.interp(jnp.asarray(t, jnp.float32), np.arange(log_sigma.size, dtype=np.float32), log_sigma))


def t_at(schedule: NoiseSchedule, sigma: Array) -> Array:
    """Timestep of a noise level, any shape: the inverse of `sigma_at`; clamped to 0 and T-1 (sigma 0 gives 0). float32.

    A result within 1e-3 of a whole number becomes it: training saw whole t only, and the network turns t into
    sines and cosines, so float32's rounding of log(sigma), up to 1e-4 in t, would not be harmless.
    """
    log_sigma = np.log(_sigmas(schedule)).astype(np.float32)
    tiny = jnp.finfo(jnp.float32).tiny
    wanted = jnp.log(jnp.maximum(jnp.asarray(sigma, jnp.float32), tiny))
    t = jnp.interp(wanted, log_sigma, np.arange(log_sigma.size, dtype=np.float32))
    whole = jnp.round(t)
    return jnp.where(jnp.abs(t - whole) < SNAP, whole, t)


# ---------------------------------------------------------------------------------------------------------------------
# The levels a sampler visits (host side, numpy float64)


def ddim_timesteps(steps: int, train_steps: int = 1000, offset: int = 1) -> np.ndarray:
    """ "leading" spacing, the subsequence of the DDIM paper: t = k * (T // n) + offset for k = n-1..0. float64 [n].

    Where the offset would push the first beyond T-1 (n = T), it gives way.
    """
    stride = train_steps // steps
    offset = min(offset, train_steps - 1 - (steps - 1) * stride)
    return np.arange(steps - 1, -1, -1) * float(stride) + offset


def trailing_timesteps(steps: int, train_steps: int = 1000) -> np.ndarray:
    """ "trailing" spacing: starts at T-1 and strides down by T/n, rounded to whole timesteps. float64 [n]."""
    down = np.arange(train_steps, 0, -train_steps / steps)  # rounding of the stride may add a point at 0
    return np.round(down[:steps]) - 1


def uniform_timesteps(steps: int, train_steps: int = 1000) -> np.ndarray:
    """ "uniform" spacing: n points from T-1 down to 0, both included (n = 1: T-1), fractions kept. float64 [n]."""
    return np.linspace(0, train_steps - 1, max(steps, 2))[::-1][:steps]


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho). float64 [n]; Karras et al. eq. (5)."""
    ramp = np.linspace(0, 1, steps)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def _timesteps(schedule: NoiseSchedule, convention: Convention, spacing: str, steps: int) -> np.ndarray:
    total = schedule.train_steps
    spare = convention.spare_point and spacing in ("leading", "linspace")
    points = min(steps + spare, total)
    if spacing == "leading":
        return ddim_timesteps(points, total, schedule.steps_offset)[:steps]
    if spacing == "trailing":
        return trailing_timesteps(points, total)
    t = uniform_timesteps(points, total)[:steps]
    return np.round(t) if spacing == "linspace" and convention.whole_timesteps else t


def _falling_sigmas(schedule: NoiseSchedule, convention: Convention, spacing: str, steps: int) -> np.ndarray:
    table = _sigmas(schedule)
    if spacing == "karras":
        return karras_sigmas(steps, table[0], table[-1])
    t, grid = _timesteps(schedule, convention, spacing, steps), np.arange(table.size)
    if spacing == "linspace":
        return np.interp(t, grid, table)
    return np.exp(np.interp(t, grid, np.log(table)))


def levels(schedule: NoiseSchedule, sampler: str, spacing: str, steps: int) -> np.ndarray:
    """The noise levels that a sampler visits, strictly falling, the last being where it stops. float32 [steps+1].

    | spacing  | timesteps, n = steps                            | the public tool that does so              |
    |----------|-------------------------------------------------|-------------------------------------------|
    | leading  | k * (T // n) + steps_offset                     | diffusers "leading" (SD's own files)      |
    |          | dpmpp_2m: of n+1 such points the lowest is left |                                           |
    | trailing | round(T - k * T/n) - 1                          | diffusers "trailing"                      |
    | uniform  | n points T-1..0, sigma geometric between whole t| k-diffusion `get_sigmas`                  |
    | linspace | the same points, sigma linear between whole t   | diffusers "linspace"                      |
    |          | ddim, ddpm, dpmpp_2m: rounded to whole t        |                                           |
    |          | dpmpp_2m: of n+1 such points the lowest is left |                                           |
    | karras   | evenly in sigma^(1/7) from sigma(T-1) to sigma(0)| k-diffusion `get_sigmas_karras`          |

    The last level is 0, except for ddim with final_alpha_one False: sigma(0), unless the level before is sigma(0)
    already (a step to the same level would pay for the network and move nothing), when it is 0 too.

    Where diffusers is not self-consistent we are, and so differ from it. Its DDIM steps from t to t - T // n, which is
    not the next timestep it visits with "linspace", nor with "trailing" unless n divides T. Its "linspace" starts at
    t = 0 when n = 1, ours at T-1. Its "leading" timesteps leave the table when n = T (dpmpp_2m: T-1). Its "trailing"
    adds an extra t = -1 by a rounding error for some n (61 is the first). Its rounded "karras" timesteps are not ours.

    Raises ValueError: sampler or spacing unknown, steps not in 1..T.
    """
    convention = CONVENTIONS[check_name("sampler", sampler, CONVENTIONS)]
    check_name("spacing", spacing, SPACINGS)
    steps = operator.index(steps)
    if not 1 <= steps <= schedule.train_steps:
        raise ValueError(f"steps must be between 1 and {schedule.train_steps}, got {steps}")
    falling, lowest = _falling_sigmas(schedule, convention, spacing, steps), _sigmas(schedule)[0]
    above_zero = convention.may_end_above_zero and not schedule.final_alpha_one and falling[-1] > lowest * (1 + 1e-6)
    return np.append(falling, lowest if above_zero else 0.0).astype(np.float32)


def initial_scale(sampler: str, spacing: str, sigma_max: float) -> float:
    """Standard deviation of the starting x, which is this times unit noise; sigma_max is the first level.

    ddim, ddpm, dpmpp_2m: sqrt(1 + sigma_max^2), unit variance in the VP form, for every spacing. euler, euler_a, heun:
    the same for "leading", else sigma_max. These are diffusers' `init_noise_sigma`; k-diffusion uses sigma_max always.
    """
    convention = CONVENTIONS[check_name("sampler", sampler, CONVENTIONS)]
    check_name("spacing", spacing, SPACINGS)
    unit_variance = convention.unit_variance_start or spacing == "leading"
    return (1 + sigma_max**2) ** 0.5 if unit_variance else sigma_max
