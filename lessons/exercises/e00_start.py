"""Exercises of lesson 00, start: write each function, then run

    pytest tests/test_00_start.py

with --hints 1, --hints 2 for hints. To begin again: git checkout lessons/exercises/e00_start.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from collections.abc import Sequence
from jax import Array

from ldm.samplers.multistep import History
from ldm.toybox.scene import Scene


# 00.1, about 5 minutes; the library's own is in ldm.toybox.world
def to_uint8(pictures: Array) -> np.ndarray:
    """Values in [0, 1] as bytes, rounded."""
    raise NotImplementedError("00.1: roughly 1 line")


# 00.2, about 10 minutes; the library's own is in ldm.models.layers
def upsample_nearest(h: Array) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: each pixel becomes a 2x2 block."""
    raise NotImplementedError("00.2: roughly 2 lines")


# 00.3, about 10 minutes; the library's own is in ldm.samplers.noise
def image_keys(seed: Array, indices: Array) -> Array:
    """One random key per image: fold_in(key(seed), index). seed [] uint32 or int32, indices [B] integer -> keys [B]."""
    raise NotImplementedError("00.3: roughly 1 line")


# 00.4, about 10 minutes; the library's own is in ldm.samplers.noise
def unit_noise(keys: Array, step: Array, shape: tuple[int, ...], part: int = 0) -> Array:
    """Unit Gaussian noise of each image at a step: fold_in(key, step), and part folded in unless it is 0.

    keys [B], shape [H,W,C] -> float32 [B,H,W,C]. An image is the same alone, in any batch, on any device. The start is
    unit_noise(keys, START, shape).
    """
    raise NotImplementedError("00.4: roughly 3 lines")


# 00.5, about 10 minutes; the library's own is in ldm.toybox.scene
def stack(scenes: Sequence[Scene]) -> Scene:
    """A batch of scenes: every array gets a first axis."""
    raise NotImplementedError("00.5: roughly 1 line")


# 00.6, about 10 minutes; the library's own is in ldm.samplers.multistep
def remember(past: History, x: Array, x0: Array, sigma: Array) -> History:
    """The history one step later."""
    raise NotImplementedError("00.6: roughly 2 lines")
