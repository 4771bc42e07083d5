"""Exercises of lesson 01, noise: write each function, then run

    pytest tests/test_01_noise.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e01_noise.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.mixture import Mixture
from ldm.mixture import Score
from ldm.schedule import NoiseSchedule


# 01.1, about 10 minutes; the library's own is in ldm.schedule
def alpha_bars(schedule: NoiseSchedule) -> np.ndarray:
    """Share of the signal's variance left at each timestep: the product of (1 - beta) so far. float32 [T], falling."""
    raise NotImplementedError("01.1: roughly 4 lines")


# 01.2, about 5 minutes; the library's own is in ldm.denoiser
def to_variance_preserving(x: Array, sigma: Array) -> Array:
    """x of sigma space as DDPM writes it, sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise: x / sqrt(1 + sigma^2)."""
    raise NotImplementedError("01.2: roughly 1 line")


# 01.3, about 15 minutes; the library's own is in ldm.mixture
def denoise(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """E[x0 | x = x0 + sigma * noise]: the least squared error that any denoiser can have. x [..., D], sigma [].

    Each part k alone would say m_k + s^2 / (s^2 + sigma^2) (x - m_k); the parts' shares weigh what they say.
    """
    raise NotImplementedError("01.3: roughly 3 lines")


# 01.4, about 10 minutes; the library's own is in ldm.mixture
def score(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """The gradient of log p(x; sigma) by x. x [..., D], sigma [], which may be 0: the score of the data themselves.

    Each part alone would pull with (m_k - x) / (s^2 + sigma^2). Equal to (E[x0 | x] - x) / sigma^2, Tweedie's formula,
    where that loses digits to the subtraction when sigma is small.
    """
    raise NotImplementedError("01.4: roughly 2 lines")


# 01.5, about 5 minutes; the library's own is in ldm.mixture
def eps_from_score(score: Array, sigma: Array) -> Array:
    """The best prediction of the noise, E[noise | x] = -sigma * score. score [..., D], sigma []."""
    raise NotImplementedError("01.5: roughly 1 line")


# 01.6, about 15 minutes; the library's own is in ldm.mixture
def langevin(score: Score, key: Array, x: Array, step: float, steps: int) -> Array:
    """Walks of ``steps`` steps along a score, shaken at each: x + step * score + sqrt(2 step) * noise. x [..., D].

    For small steps and many of them the points end distributed as the density that the score belongs to. Step i draws
    its noise with fold_in(key, i).
    """
    raise NotImplementedError("01.6: roughly 5 lines")
