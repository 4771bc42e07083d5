"""Fresh noise for samplers, keyed per image: it depends on seed, image index and step, and on nothing else.

Two ways to draw it, of one form, ``noise_at(step, part, start, stop)``: unit noise [B,H,W,C] of the way from level
start to level stop.

    per step    independent noise for each step and each part of a step
    Brownian    increments of one random path over the levels, so that short steps add up to the noise of a long one:
                samples along an SDE then converge as steps are added (k-diffusion's ``BrownianTreeNoiseSampler``)

Shapes: B images, [H,W,C] of one. Source of the tree: "Scalable Gradients for Stochastic Differential Equations" (Li et
al. 2020, arXiv:2001.01328), section 4, alg. 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

NoiseAt = Callable[[Array, int, Array, Array], Array]  # (step [], part, start [], stop []) -> unit noise [B,H,W,C]
START = 0xFFFFFFFF  # the step number whose noise is the starting one: no step of a run has it
PATH = 0xFFFFFFFE  # the one whose key a Brownian path has
DEPTH = 20  # halvings: two levels nearer than 2^-20 of the first one would share a leaf


def image_keys(seed: Array, indices: Array) -> Array:
    """One random key per image: fold_in(key(seed), index). seed [] uint32 or int32, indices [B] integer -> keys [B]."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index))(indices)


def unit_noise(keys: Array, step: Array, shape: tuple[int, ...], part: int = 0) -> Array:
    """Unit Gaussian noise of each image at a step: fold_in(key, step), and part folded in unless it is 0.

    keys [B], shape [H,W,C] -> float32 [B,H,W,C]. An image is the same alone, in any batch, on any device. The start is
    unit_noise(keys, START, shape).
    """
    fold = lambda key: jax.random.fold_in(key, step)
    inner = (lambda key: jax.random.fold_in(fold(key), part)) if part else fold
    return jax.vmap(lambda key: jax.random.normal(inner(key), shape, jnp.float32))(keys)


def noise_per_step(keys: Array, shape: tuple[int, ...]) -> NoiseAt:
    """Independent noise: see :func:`unit_noise`."""
    return lambda step, part, start, stop: unit_noise(keys, step, shape, part)


def brownian_noise(keys: Array, shape: tuple[int, ...], highest: Array) -> NoiseAt:
    """Increments of a Brownian path over the levels 0..highest, each divided by its standard deviation."""
    folded = jax.vmap(lambda key: jax.random.fold_in(key, PATH))(keys)

    def noise_at(step: Array, part: int, start: Array, stop: Array) -> Array:
        a, b = (jnp.clip(jnp.asarray(level, jnp.float32) / highest, 0, 1) for level in (start, stop))
        rise = jax.vmap(lambda key: brownian(key, a, shape) - brownian(key, b, shape))(folded)
        return rise / jnp.sqrt(jnp.maximum(a - b, jnp.finfo(jnp.float32).tiny))

    return noise_at


def brownian(key: Array, time: Array, shape: tuple[int, ...]) -> Array:
    """The value of the path of a key at a time in [0, 1]: float32, of variance time.

    Found by halving: the middle of an interval is the mean of its ends and a normal number of the interval's own key.
    """
    draw = lambda node: jax.random.normal(jax.random.fold_in(key, node), shape, jnp.float32)

    def halve(_: int, carry: tuple) -> tuple:
        left, width, low, high, node = carry
        middle = (low + high) / 2 + jnp.sqrt(width) / 2 * draw(node)
        right = time >= left + width / 2
        inner = jnp.where(right, middle, low), jnp.where(right, high, middle)
        return jnp.where(right, left + width / 2, left), width / 2, *inner, 2 * node + right.astype(jnp.uint32)

    start = (jnp.float32(0), jnp.float32(1), jnp.zeros(shape, jnp.float32), draw(jnp.uint32(0)), jnp.uint32(1))
    left, width, low, high, node = jax.lax.fori_loop(0, DEPTH, halve, start)
    share = (time - left) / width
    bridge = jnp.sqrt(width * share * (1 - share)) * draw(node)
    return low + share * (high - low) + bridge
