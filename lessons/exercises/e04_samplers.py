"""Exercises of lesson 04, samplers: write each function, then run

    pytest tests/test_04_samplers.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e04_samplers.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.denoiser import Denoiser
from ldm.samplers.multistep import History


# 04.1, about 5 minutes; the library's own is in ldm.samplers.one_step
def euler_step(x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """One straight line along the ODE: EDM alg. 1, lines 4 and 5. First order."""
    raise NotImplementedError("04.1: roughly 2 lines")


# 04.2, about 15 minutes; the library's own is in ldm.samplers.one_step
def heun_step(denoise: Denoiser, x: Array, x0: Array, sigma: Array, sigma_next: Array) -> Array:
    """Euler, then again with the mean of the slopes at both ends: EDM alg. 1, lines 4-8. Second order.

    The step to sigma 0 stays an Euler step, and the network is not asked a second time.
    """
    raise NotImplementedError("04.2: roughly 6 lines")


# 04.3, about 25 minutes; the library's own is in ldm.samplers.multistep
def dpmpp_2m_step(
    x: Array, x0: Array, sigma: Array, sigma_next: Array, past: History, noise: Array | float = 0.0, eta: Array = 0.0
) -> Array:
    """DPM-Solver++(2M): Euler with x0 extrapolated from the last two to the middle of the step: alg. 2.

    eta > 0: along an SDE, with fresh noise (SDE-DPM-Solver++ 2M for eta = 1). Second order in x0, one call a step.
    """
    raise NotImplementedError("04.3: roughly 6 lines")


# 04.4, about 15 minutes; the library's own is in ldm.samplers.one_step
def ancestral_sigmas(sigma: Array, sigma_next: Array, eta: Array) -> tuple[Array, Array]:
    """Splits a step to sigma_next: go down to `down` without noise, then add `up` of fresh noise. 0 <= eta <= 1.

    up^2 + down^2 = sigma_next^2, and with r = sigma_next / sigma,
        up = eta * sigma_next * sqrt(1 - r^2)                                                                     (2)
    This is DDIM's sigma_t(eta), eq. (16): eta^2 * (1-a')/(1-a) * (1 - a/a') is a variance of the VP form; divided by a'
    for sigma space, with a = 1/(1 + sigma^2) and a' = 1/(1 + sigma_next^2), it becomes (2). eta = 0: no noise;
    eta = 1: down = sigma_next^2 / sigma. Written so that neither loses digits: no difference of near squares.
    """
    raise NotImplementedError("04.4: roughly 4 lines")


# 04.5, about 10 minutes; the library's own is in ldm.spacing
def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho). float64 [n]; Karras et al. eq. (5)."""
    raise NotImplementedError("04.5: roughly 2 lines")


# 04.6, about 5 minutes; the library's own is in ldm.spacing
def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Levels from sigma_max down to sigma_min, evenly spaced in log(sigma). float64 [n]; rho = infinity in `karras`."""
    raise NotImplementedError("04.6: roughly 1 line")
