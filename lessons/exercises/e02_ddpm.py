"""Exercises of lesson 02, ddpm: write each function, then run

    pytest tests/test_02_ddpm.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e02_ddpm.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.training.losses import Metrics


# 02.1, about 5 minutes; the library's own is in ldm.denoiser
def v_from_x0(x0: Array, noise: Array, sigma: Array) -> Array:
    """The velocity, sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0: what a v-network is trained to answer."""
    raise NotImplementedError("02.1: roughly 1 line")


# 02.2, about 8 minutes; the library's own is in ldm.denoiser
def x0_from_v(x: Array, v: Array, sigma: Array) -> Array:
    """The clean sample from the velocity: sqrt(alpha_bar) * x_t - sqrt(1 - alpha_bar) * v, written in sigma space."""
    raise NotImplementedError("02.2: roughly 1 line")


# 02.3, about 8 minutes; the library's own is in ldm.training.losses
def diffusion_loss(prediction: Array, target: Array, weight: Array | float = 1.0) -> tuple[Array, Metrics]:
    """Weighted squared error, [DDPM] eq. (14): prediction, target [B, h, w, Z], weight [B] or []. Metrics: mse."""
    raise NotImplementedError("02.3: roughly 3 lines")


# 02.4, about 10 minutes; the library's own is in ldm.training.losses
def min_snr_weight(sigma: Array, gamma: float, prediction: str) -> Array:
    """Weight of the squared error at noise level sigma > 0, any shape. [MinSNR] section 3.4.

    With SNR = 1 / sigma^2: min(SNR, gamma) for x0, the same over SNR for eps, over SNR + 1 for v. All three weight the
    error of x0 alike.
    """
    raise NotImplementedError("02.4: roughly 3 lines")


# 02.5, about 15 minutes; the library's own is in ldm.samplers.one_step
def ddpm_step(x: Array, x0: Array, sigma: Array, sigma_next: Array, noise: Array) -> Array:
    """Draws from the posterior q(x_next | x, x0): DDPM eq. (6, 7) in sigma space, with the smaller variance.

    Two Gaussian observations of x_next, one from x0 (variance sigma_next^2), one from x (sigma^2 - sigma_next^2).
    """
    raise NotImplementedError("02.5: roughly 3 lines")


# 02.6, about 10 minutes; the library's own is in ldm.models.unet
def timestep_embedding(t: Array, width: int) -> Array:
    """[B] timesteps -> [B, width] float32: cosines, then sines, of t at geometric frequencies 10000^(-k/h), k = 0..h-1.

    DDPM (arXiv:2006.11239) takes it from "Attention Is All You Need", section 3.5.
    """
    raise NotImplementedError("02.6: roughly 3 lines")
