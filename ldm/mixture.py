"""A mixture of Gaussians: the world in which everything that a diffusion model learns is a formula.

Under noise of level sigma a mixture stays a mixture, each part wider: p(x; sigma) = sum_k w_k N(x; m_k, s^2 + sigma^2).
So its log-density, its score, and the best that any denoiser can do are known exactly, and a sampler can be measured
against the truth instead of against another sampler.

Shapes: N points, D coordinates (always the last axis, whatever is before it), K parts.

Sources: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022, arXiv:2206.00364),
appendix B.3, for the exact denoiser of a known distribution; Tweedie's formula after Robbins (1956); Langevin dynamics
as in "Generative Modeling by Estimating Gradients of the Data Distribution" (arXiv:1907.05600), section 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Score = Callable[[Array], Array]  # x [..., D] -> gradient of log p [..., D]


class Mixture(NamedTuple):
    """K round Gaussians: means [K, D], one standard deviation [], weights [K] that sum to 1."""

    means: Array
    spread: Array
    weights: Array


def ring(parts: int = 8, radius: float = 1.0, spread: float = 0.08) -> Mixture:
    """Parts on a circle about 0, their weights growing around it: so that a sampler that forgets some is found out."""
    angle = 2 * np.pi * np.arange(parts) / parts
    means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    weights = np.arange(1, parts + 1, dtype=float)
    return Mixture(means.astype(np.float32), np.float32(spread), (weights / weights.sum()).astype(np.float32))


def draw(mixture: Mixture, key: Array, count: int) -> Array:
    """``count`` samples [N, D] float32."""
    which, where = jax.random.split(key)
    part = jax.random.categorical(which, jnp.log(jnp.asarray(mixture.weights)), shape=(count,))
    noise = jax.random.normal(where, (count, mixture.means.shape[-1]))
    return jnp.asarray(mixture.means)[part] + mixture.spread * noise


def shares(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """p(part | x) [..., K]: how likely each part made x = x0 + sigma * noise. x [..., D], sigma []."""
    return jax.nn.softmax(_log_parts(mixture, x, sigma), axis=-1)


def log_density(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """log p(x; sigma) [...]. x [..., D], sigma []."""
    return jax.nn.logsumexp(_log_parts(mixture, x, sigma), axis=-1)


def denoise(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """E[x0 | x = x0 + sigma * noise]: the least squared error that any denoiser can have. x [..., D], sigma [].

    Each part k alone would say m_k + s^2 / (s^2 + sigma^2) (x - m_k); the parts' shares weigh what they say.
    """
    means, variance = jnp.asarray(mixture.means), mixture.spread**2 + sigma**2
    said = means + mixture.spread**2 / variance * (x[..., None, :] - means)
    return jnp.sum(shares(mixture, x, sigma)[..., None] * said, axis=-2)


def score(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """The gradient of log p(x; sigma) by x. x [..., D], sigma [], which may be 0: the score of the data themselves.

    Each part alone would pull with (m_k - x) / (s^2 + sigma^2). Equal to (E[x0 | x] - x) / sigma^2, Tweedie's formula,
    where that loses digits to the subtraction when sigma is small.
    """
    pulls = (jnp.asarray(mixture.means) - x[..., None, :]) / (mixture.spread**2 + sigma**2)
    return jnp.sum(shares(mixture, x, sigma)[..., None] * pulls, axis=-2)


def eps_from_score(score: Array, sigma: Array) -> Array:
    """The best prediction of the noise, E[noise | x] = -sigma * score. score [..., D], sigma []."""
    return -sigma * score


def langevin(score: Score, key: Array, x: Array, step: float, steps: int) -> Array:
    """Walks of ``steps`` steps along a score, shaken at each: x + step * score + sqrt(2 step) * noise. x [..., D].

    For small steps and many of them the points end distributed as the density that the score belongs to. Step i draws
    its noise with fold_in(key, i).
    """

    def walk(i: Array, x: Array) -> Array:
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return x + step * score(x) + jnp.sqrt(2 * step) * noise

    return jax.lax.fori_loop(0, steps, walk, x)


def _log_parts(mixture: Mixture, x: Array, sigma: Array) -> Array:
    """log w_k N(x; m_k, s^2 + sigma^2) [..., K]."""
    variance = mixture.spread**2 + sigma**2
    away = jnp.sum((x[..., None, :] - jnp.asarray(mixture.means)) ** 2, axis=-1)
    dimensions = np.shape(mixture.means)[-1]
    return (
        jnp.log(jnp.asarray(mixture.weights)) - away / (2 * variance) - dimensions / 2 * jnp.log(2 * jnp.pi * variance)
    )
