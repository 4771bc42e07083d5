"""Distributions whose denoiser is known in closed form, and how the sampler tests run on them.

For x0 drawn from a mixture of Gaussians and x = x0 + sigma * noise, E[x0 | x] is a formula. So a result can be compared
with the truth: the exact end of the ODE for one Gaussian, a very fine run for a mixture.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ldm import samplers
from ldm import spacing as spacings
from ldm.schedule import NoiseSchedule

SD = NoiseSchedule()
SHAPE = (4, 8, 8, 2)
MEAN, SPREAD = 0.7, 0.5
ROOM = 640  # one compilation for every shorter run


def gaussian(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[x0 | x] for x0 ~ N(MEAN, SPREAD^2)."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def mixture(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """E[x0 | x] for x0 from two equally likely Gaussians, about -1 and 1.2, of standard deviation 0.4."""
    means, variance = jnp.array([-1.0, 1.2]), 0.4**2 + sigma**2
    away = x[..., None] - means
    share = jax.nn.softmax(-(away**2) / (2 * variance), axis=-1)
    return jnp.sum(share * (means + 0.4**2 / variance * away), axis=-1)


def unit(seed: int = 0, shape: tuple = SHAPE) -> np.ndarray:
    """Unit noise."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plan_of(levels: np.ndarray, eta: float = 0.0) -> samplers.Plan:
    """A plan over given levels, starting with noise of the first one."""
    levels = np.asarray(levels, np.float32)
    steps = len(levels) - 1
    return samplers.Plan(np.pad(levels, (0, ROOM - steps)), np.int32(steps), np.float32(eta), levels[0])


def karras(name: str, steps: int, eta: float | None = None) -> samplers.Plan:
    """A plan with Karras levels, starting with noise of the first one whatever the sampler."""
    return plan_of(
        spacings.levels(SD, "euler", "karras", steps), samplers.SAMPLERS[name].eta or 0 if eta is None else eta
    )


@functools.lru_cache
def noise_of_steps(seed: int, shape: tuple) -> np.ndarray:
    """Unit noise for every step [steps, *shape]. A table, since compiling a generator takes seconds."""
    return unit(1000 + seed, (ROOM if shape == SHAPE else 100, *shape))


@functools.partial(jax.jit, static_argnums=(0, 1))
def compiled(name: str, denoise, plan: samplers.Plan, start: jax.Array, table: jax.Array) -> jax.Array:
    """A sample in sigma space (undoing the VP form at the last level)."""
    x = samplers.sample(samplers.SAMPLERS[name], denoise, plan.scale * start, plan, lambda i, *_: table[i])
    return x * jnp.sqrt(1 + plan.levels[plan.steps] ** 2)


def run(name: str, denoise, plan: samplers.Plan, start: np.ndarray, seed: int = 0) -> jax.Array:
    """A sample from this start, with noise of this seed at the steps."""
    return compiled(name, denoise, plan, start, noise_of_steps(seed, start.shape))


def distance(a: jax.Array, b: jax.Array) -> float:
    """Root mean square difference."""
    return float(np.sqrt(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)))


def moments(levels: np.ndarray, eta: float) -> tuple[float, float]:
    """Mean and spread of DDIM's result for the Gaussian, exactly: its steps are affine in x. From DDIM eq. (12, 16)."""
    mean, variance = 0.0, float(levels[0]) ** 2
    for sigma, after in np.asarray(list(itertools.pairwise(levels)), np.float64):
        gain = SPREAD**2 / (SPREAD**2 + sigma**2)  # x0 - MEAN = gain * (x - MEAN)
        fresh = eta**2 * after**2 * (sigma**2 - after**2) / sigma**2
        factor = gain + np.sqrt(after**2 - fresh) / sigma * (1 - gain)
        mean, variance = MEAN + factor * (mean - MEAN), factor**2 * variance + fresh
    return mean, variance**0.5
