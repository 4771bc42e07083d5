"""Exercises of lesson 03, ddim: write each function, then run

    pytest tests/test_03_ddim.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e03_ddim.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from typing import Any

from ldm.samplers import Plan
from ldm.schedule import NoiseSchedule


# 03.1, about 15 minutes; the library's own is in ldm.samplers.one_step
def ddim_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, noise: Array, eta: Array) -> Array:
    """ "predicted x0" + "direction pointing to x" + "random noise": DDIM eq. (12), divided by sqrt(alpha_bar)."""
    raise NotImplementedError("03.1: roughly 4 lines")


# 03.2, about 5 minutes; the library's own is in ldm.spacing
def ddim_timesteps(steps: int, train_steps: int = 1000, offset: int = 1) -> np.ndarray:
    """ "leading" spacing, the subsequence of the DDIM paper: t = k * (T // n) + offset for k = n-1..0. float64 [n].

    Where the offset would push the first beyond T-1 (n = T), it gives way.
    """
    raise NotImplementedError("03.2: roughly 3 lines")


# 03.3, about 8 minutes; the library's own is in ldm.spacing
def trailing_timesteps(steps: int, train_steps: int = 1000) -> np.ndarray:
    """ "trailing" spacing: starts at T-1 and strides down by T/n, rounded to whole timesteps. float64 [n]."""
    raise NotImplementedError("03.3: roughly 2 lines")


# 03.4, about 8 minutes; the library's own is in ldm.schedule
def rescale_to_zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that it ends at 0 and starts where it did. [T] -> [T]; Lin et al. alg. 1."""
    raise NotImplementedError("03.4: roughly 3 lines")


# 03.5, about 15 minutes; the library's own is in ldm.inversion
def rising_plan(schedule: NoiseSchedule, spacing: str, steps: int) -> Plan:
    """The levels of a DDIM run, from below. One that ends at 0 begins at the lowest level that the network knows."""
    raise NotImplementedError("03.5: roughly 5 lines")


# 03.6, about 12 minutes; the library's own is in ldm.workflows
def slerp(a: Any, b: Any, share: float) -> np.ndarray:
    """From a (share 0) to b (share 1) along the arc: noise between two noises is noise again, of unit variance.

    Arrays [N, ...], each of the N for itself. On a straight line the middle of two noises would have half the variance.
    """
    raise NotImplementedError("03.6: roughly 7 lines")
