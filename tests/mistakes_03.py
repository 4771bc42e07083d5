"""Lesson 03, DDIM: what people write instead, by the misconception that it comes from.

Each dictionary is the ``wrong`` of one exercise of test_03_ddim.py: words that complete "This is what you get from: ".
"""

import jax.numpy as jnp
import numpy as np

from ldm.samplers import Plan
from ldm.schedule import TERMINAL_ALPHA_BAR, sigmas
from ldm.spacing import levels

# ---------------------------------------------------------------------------------------------------------------------
# 03.1 ddim_step


def _stepped(kept, fresh=lambda s, b, eta: eta * b * jnp.sqrt(1 - (b / s) ** 2), sign=1):
    """A step whose share of the old noise is kept(s, b, eta), of the new fresh(s, b, eta)."""
    return lambda x, x0, sigma, sigma_next, noise, eta: (
        x0 + sign * kept(sigma, sigma_next, eta) * (x - x0) / sigma + fresh(sigma, sigma_next, eta) * noise
    )


def _only_outside_of_jit(x, x0, sigma, sigma_next, noise, eta):
    if eta == 0:
        return x0 + sigma_next / sigma * (x - x0)
    return _right(x, x0, sigma, sigma_next, noise, eta)


_down = lambda s, b, eta: b * jnp.sqrt(1 - eta**2 * (1 - (b / s) ** 2))
_right = _stepped(_down)

STEP = {
    "x0 - x, the direction away from x, where x - x0 belongs": _stepped(_down, sign=-1),
    "eta^2 before the noise, where eta scales its amplitude": _stepped(
        lambda s, b, eta: _down(s, b, eta**2), lambda s, b, eta: eta**2 * b * jnp.sqrt(1 - (b / s) ** 2)
    ),
    "the direction at full length, sigma_next, and the noise on top of it": _stepped(lambda s, b, eta: b),
    "a straight mixture of eta = 0 and eta = 1, where amplitudes add up squared": _stepped(
        lambda s, b, eta: (1 - eta) * b + eta * b**2 / s
    ),
    "a quotient by sigma_next, which is 0 at the last step": _stepped(
        lambda s, b, eta: b * jnp.sqrt(1 - (eta * b * jnp.sqrt(1 - (b / s) ** 2) / b) ** 2)
    ),
    "a Python `if` on eta, which is not a number yet while jit traces": _only_outside_of_jit,
    "DDIM's eq. (12) as it is printed, for the variance-preserving form: here x = x0 + sigma * eps": (
        lambda *given: _right(*given) / jnp.sqrt(1 + given[3] ** 2)
    ),
}

# ---------------------------------------------------------------------------------------------------------------------
# 03.2 ddim_timesteps, 03.3 trailing_timesteps


def _leading(steps, train_steps=1000, offset=1):
    stride = train_steps // steps
    return np.arange(steps)[::-1] * float(stride) + min(offset, train_steps - 1 - (steps - 1) * stride)


LEADING = {
    "timesteps that rise; sampling goes from noise down": lambda *a, **k: _leading(*a, **k)[::-1],
    "a stride of T / n, rounded late, where the whole number T // n belongs": lambda n, T=1000, offset=1: (
        np.floor(np.arange(n)[::-1] * T / n) + min(offset, T - 1 - np.floor((n - 1) * T / n))
    ),
    "np.linspace from T-1 to 0, where k * (T // n) belongs": lambda n, T=1000, offset=1: np.linspace(T - 1, 0, n),
    "multiples of the stride without the offset": lambda n, T=1000, offset=1: _leading(n, T, 0),
    "an offset of 1, whatever offset is given": lambda n, T=1000, offset=1: _leading(n, T, 1),
    "an offset that pushes the first timestep past T-1, where the table ends": lambda n, T=1000, offset=1: (
        _leading(n, T, 0) + offset
    ),
    "timesteps that are cut off at T-1, so that T-1 is visited twice": lambda n, T=1000, offset=1: np.minimum(
        _leading(n, T, 0) + offset, T - 1
    ),
}

TRAILING = {
    "T, T - T/n, ..: the timesteps count from 0, so the last of T is T-1": lambda n, T=1000: np.round(
        T - np.arange(n) * T / n
    ),
    "the whole stride T // n from the top down": lambda n, T=1000: T - 1.0 - np.arange(n) * (T // n),
    "np.linspace from T-1 to 0, which has n-1 strides where n belong": lambda n, T=1000: np.round(
        np.linspace(T - 1, 0, n)
    ),
    "timesteps that are cut to whole numbers, where they are rounded": lambda n, T=1000: (
        np.floor(T - np.arange(n) * T / n) - 1
    ),
    "np.arange with a stride that is not whole: rounding may add a point at 0": lambda n, T=1000: (
        np.round(np.arange(T, 0, -T / n)) - 1
    ),
}

# ---------------------------------------------------------------------------------------------------------------------
# 03.4 rescale_to_zero_terminal_snr


def _rescaled(alpha_bar, end=TERMINAL_ALPHA_BAR, scale=True, power=0.5):
    root = alpha_bar**power
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]) if scale else 1.0)
    return np.append(root[:-1] ** (1 / power), end)


TERMINAL = {
    "an exact 0 at the end: sigma is then infinite; TERMINAL_ALPHA_BAR stands for it": lambda a: _rescaled(a, 0.0),
    "a shift without the scale, so that the first step has more noise than before": lambda a: _rescaled(a, scale=False),
    "alpha_bar shifted and scaled, where its square root belongs": lambda a: _rescaled(a, power=1.0),
}

# ---------------------------------------------------------------------------------------------------------------------
# 03.5 rising_plan


def _rising(first=lambda visited, lowest: visited, order=1, scale=None):
    """A plan whose lower end, where the run ends at 0, is first(levels from below, sigma(0))."""

    def plan(schedule, spacing, steps):
        visited, lowest = levels(schedule, "ddim", spacing, steps)[::-1], sigmas(schedule)[0]
        visited = first(visited, lowest)[::order] if visited[0] == 0 else visited[::order]
        made = len(visited) - 1
        start = np.float32(0 if scale is None else visited[0])
        return Plan(np.pad(visited, (0, schedule.train_steps - made)), np.int32(made), np.float32(0), start)

    return plan


_replaced = lambda visited, lowest: np.append(lowest, visited[1:])
_mended = lambda visited, lowest: _replaced(visited, lowest) if visited[1] > lowest else visited[1:]

RISING = {
    "levels that fall: inversion goes up": _rising(_mended, order=-1),
    "a start at sigma 0, where the slope (x - x0) / sigma is 0 / 0": _rising(),
    "the 0 left out and nothing in its place: the first step of the way is missing": _rising(lambda v, low: v[1:]),
    "the lowest level twice: a step that moves nothing and still asks the network": _rising(_replaced),
    "noise on the picture before it is inverted: a scale above 0 is for img2img": _rising(_mended, scale=1),
}

# ---------------------------------------------------------------------------------------------------------------------
# 03.6 slerp


def _turned(a, b, share, axes=None, unit=False, guard=1e-6):
    """The arc, with its parts broken one by one."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    axes = tuple(range(1, a.ndim)) if axes is None else axes
    length = lambda x: np.sqrt((x**2).sum(axis=axes, keepdims=True))
    if unit:
        a, b = a / length(a), b / length(b)
    angle = np.arccos(np.clip((a * b).sum(axis=axes, keepdims=True) / length(a) / length(b), -1, 1))
    near = np.sin(angle) < guard
    with np.errstate(invalid="ignore"):
        weights = [np.where(near, s, np.sin(s * angle) / np.where(near, 1, np.sin(angle))) for s in (1 - share, share)]
    return (weights[0] * a + weights[1] * b).astype(np.float32)


ARC = {
    "the straight line between them": lambda a, b, share: np.asarray((1 - share) * a + share * b, np.float32),
    "one angle for the whole batch": lambda a, b, share: _turned(a, b, share, axes=tuple(range(np.ndim(a)))),
    "unit vectors: noise of D numbers has the length sqrt(D), and must keep it": lambda a, b, share: _turned(
        a, b, share, unit=True
    ),
    "a quotient by sin(0), where both noises are the same": lambda a, b, share: _turned(a, b, share, guard=0),
}
