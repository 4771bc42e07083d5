"""Which noise levels a sampler visits, and how strong its starting noise is: the conventions of the public tools.

Everything is computed on the host in float64, and stored in float32.

Shape letters: T training timesteps, n sampling steps.
Sources: EDM (Karras et al. 2022, eq. 5, table 1); "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin
et al. 2023, table 2); DDIM (Song et al. 2021, appendix D.2); latent consistency models (Luo et al. 2023, section 4.3);
"Align Your Steps" (Sabour et al. 2024, arXiv:2404.14507), tables of its project page.
"""

import operator
from dataclasses import dataclass

import numpy as np

from ldm.schedule import NoiseSchedule, check_name, noise_levels

ALIGN_YOUR_STEPS = {  # found for ten steps; other numbers are read off the curve through them
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),  # Stable Diffusion 1.5
    "ays_xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),  # Stable Diffusion XL
}
LCM_GRID = 50  # timesteps that latent consistency models are trained on: every T/50-th, down from T-1
SPACINGS = (
    "leading",
    "trailing",
    "uniform",
    "linspace",
    "sgm_uniform",
    "karras",
    "exponential",
    *ALIGN_YOUR_STEPS,
    "lcm",
)


@dataclass(frozen=True)
class Convention:
    """How the public tools run one sampler, where they differ: see `levels` and `initial_scale`."""

    unit_variance_start: bool = False  # starts from sqrt(1 + sigma^2) * noise, the VP form's unit variance
    whole_timesteps: bool = False  # rounds "linspace" timesteps to whole numbers
    spare_point: bool = False  # spaces n+1 points and leaves out the lowest
    may_end_above_zero: bool = False  # its last level obeys final_alpha_one


_DDIM = Convention(unit_variance_start=True, whole_timesteps=True, may_end_above_zero=True)
_DDPM = Convention(unit_variance_start=True, whole_timesteps=True)
_SOLVER = Convention(unit_variance_start=True, whole_timesteps=True, spare_point=True)
CONVENTIONS = {
    "ddim": _DDIM,
    "ddpm": _DDPM,
    "euler": Convention(),
    "euler_a": Convention(),
    "heun": Convention(),
    "dpm2": Convention(),
    "dpm2_a": Convention(),
    "dpmpp_2s_a": Convention(),
    "dpmpp_2m": _SOLVER,
    "dpmpp_sde": Convention(),
    "dpmpp_2m_sde": _SOLVER,
    "dpmpp_3m_sde": _SOLVER,
    "lms": Convention(),
    "plms": _DDIM,
    "unipc": _SOLVER,
    "lcm": _DDPM,
}


# ---------------------------------------------------------------------------------------------------------------------
# Timesteps


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


def sgm_uniform_timesteps(steps: int, train_steps: int = 1000) -> np.ndarray:
    """ "sgm_uniform" spacing: n+1 points from T-1 down to 0, without the last; fractions kept. float64 [n]."""
    return uniform_timesteps(steps + 1, train_steps)[:-1]


def lcm_timesteps(steps: int, train_steps: int = 1000) -> np.ndarray:
    """ "lcm" spacing: n of the 50 timesteps that a consistency model was trained on, evenly, from the top. float64 [n].

    Raises ValueError for more steps than there are.
    """
    stride = train_steps // LCM_GRID
    if not 1 <= steps <= LCM_GRID <= train_steps:
        raise ValueError(f"spacing 'lcm' has at most {LCM_GRID} steps, got {steps}")
    grid = np.arange(LCM_GRID, 0, -1) * float(stride) - 1
    return grid[np.floor(np.linspace(0, LCM_GRID, steps, endpoint=False)).astype(int)]


# ---------------------------------------------------------------------------------------------------------------------
# Levels without timesteps


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho). float64 [n]; Karras et al. eq. (5)."""
    ramp = np.linspace(0, 1, steps)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Levels from sigma_max down to sigma_min, evenly spaced in log(sigma). float64 [n]; rho = infinity in `karras`."""
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), steps))


def ays_sigmas(steps: int, table: str = "ays") -> np.ndarray:
    """Levels of a table of ``ALIGN_YOUR_STEPS``, between its entries linear in log(sigma). float64 [n]."""
    known = np.log(ALIGN_YOUR_STEPS[table])
    return np.exp(np.interp(np.linspace(0, len(known) - 1, steps + 1), np.arange(len(known)), known))[:-1]


# ---------------------------------------------------------------------------------------------------------------------
# What a sampler visits


def timesteps(schedule: NoiseSchedule, convention: Convention, spacing: str, steps: int) -> np.ndarray:
    """The timesteps of a spacing that has them. float64 [n], falling."""
    total = schedule.train_steps
    if spacing == "sgm_uniform":
        return sgm_uniform_timesteps(steps, total)
    if spacing == "lcm":
        return lcm_timesteps(steps, total)
    spare = convention.spare_point and spacing in ("leading", "linspace")
    points = min(steps + spare, total)
    if spacing == "leading":
        return ddim_timesteps(points, total, schedule.steps_offset)[:steps]
    if spacing == "trailing":
        return trailing_timesteps(points, total)
    t = uniform_timesteps(points, total)[:steps]
    return np.round(t) if spacing == "linspace" and convention.whole_timesteps else t


def _falling(schedule: NoiseSchedule, convention: Convention, spacing: str, steps: int) -> np.ndarray:
    table = noise_levels(schedule)
    if spacing == "karras":
        return karras_sigmas(steps, table[0], table[-1])
    if spacing == "exponential":
        return exponential_sigmas(steps, table[0], table[-1])
    if spacing in ALIGN_YOUR_STEPS:
        return ays_sigmas(steps, spacing)
    t, grid = timesteps(schedule, convention, spacing, steps), np.arange(table.size)
    if spacing == "linspace":
        return np.interp(t, grid, table)
    return np.exp(np.interp(t, grid, np.log(table)))


def levels(schedule: NoiseSchedule, sampler: str, spacing: str, steps: int) -> np.ndarray:
    """The noise levels that a sampler visits, strictly falling, the last being where it stops. float32 [steps+1].

    | spacing     | timesteps, n = steps                            | the public tool that does so              |
    |-------------|-------------------------------------------------|-------------------------------------------|
    | leading     | k * (T // n) + steps_offset                     | diffusers "leading" (SD's own files)      |
    |             | *: of n+1 such points the lowest is left        |                                           |
    | trailing    | round(T - k * T/n) - 1                          | diffusers "trailing"                      |
    | uniform     | n points T-1..0, sigma geometric between whole t| k-diffusion `get_sigmas`                  |
    | linspace    | the same points, sigma linear between whole t   | diffusers "linspace"                      |
    |             | **: rounded to whole t                          |                                           |
    |             | *: of n+1 such points the lowest is left        |                                           |
    | sgm_uniform | n+1 points T-1..0 but the last, sigma geometric | "SGM uniform" of the graphical tools      |
    | karras      | evenly in sigma^(1/7) from sigma(T-1) to sigma(0)| k-diffusion `get_sigmas_karras`          |
    | exponential | evenly in log(sigma) from sigma(T-1) to sigma(0)| k-diffusion `get_sigmas_exponential`      |
    | ays, ays_xl | the tables of "Align Your Steps"                | diffusers `AysSchedules`                  |
    | lcm         | n of the 50 timesteps T - 1 - k * T // 50       | diffusers `LCMScheduler`                  |

    *: dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc. **: these, ddim, ddpm, plms, lcm.
    The last level is 0, except for ddim and plms with final_alpha_one False: sigma(0), unless the level before is
    sigma(0) already (a step to the same level would pay for the network and move nothing), when it is 0 too.

    Where diffusers is not self-consistent we are, and so differ from it. Its DDIM and PNDM step from t to t - T // n,
    which is not the next timestep they visit with "linspace", nor with "trailing" unless n divides T. Its "linspace"
    starts at t = 0 when n = 1, ours at T-1. Its "leading" timesteps leave the table when n = T (dpmpp_2m: T-1). Its
    "trailing" adds an extra t = -1 by a rounding error for some n (61 is the first). Its rounded "karras" timesteps are
    not ours.

    Raises ValueError: sampler or spacing unknown, steps not in 1..T (lcm: 1..50).
    """
    convention = CONVENTIONS[check_name("sampler", sampler, CONVENTIONS)]
    check_name("spacing", spacing, SPACINGS)
    steps = operator.index(steps)
    if not 1 <= steps <= schedule.train_steps:
        raise ValueError(f"steps must be between 1 and {schedule.train_steps}, got {steps}")
    falling, lowest = _falling(schedule, convention, spacing, steps), noise_levels(schedule)[0]
    above_zero = convention.may_end_above_zero and not schedule.final_alpha_one and falling[-1] > lowest * (1 + 1e-6)
    return np.append(falling, lowest if above_zero else 0.0).astype(np.float32)


def initial_scale(sampler: str, spacing: str, sigma_max: float) -> float:
    """Standard deviation of the starting x, which is this times unit noise; sigma_max is the first level.

    Samplers whose convention says so: sqrt(1 + sigma_max^2), unit variance in the VP form, for every spacing. The
    others: the same for "leading", else sigma_max. These are diffusers' `init_noise_sigma`; k-diffusion uses sigma_max
    always.
    """
    convention = CONVENTIONS[check_name("sampler", sampler, CONVENTIONS)]
    check_name("spacing", spacing, SPACINGS)
    unit_variance = convention.unit_variance_start or spacing == "leading"
    return (1 + sigma_max**2) ** 0.5 if unit_variance else sigma_max
