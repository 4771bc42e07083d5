"""The toybox's two programs, compiled once for each shape: scenes to pictures, and scenes to truth."""

from functools import partial

import jax
import numpy as np
from jax import Array

from ldm.toybox.render import picture
from ldm.toybox.scene import SLOTS, Scene, check
from ldm.toybox.truth import Truth, truth

AT_ONCE = 8  # scenes whose rays stay in a CPU's cache together
LARGEST = 4096


def render(scenes: Scene, size: int | tuple[int, int] = 64, samples: int = 2) -> Array:
    """Pictures of a batch of scenes: [B, H, W, 3] float32 in [0, 1], sRGB.

    ``size``: pixels, (width, height) or one number for both. ``samples``: rays along each side of a pixel, 1 to 8.
    The result depends on the scenes alone, not on how they are batched. Raises ValueError.
    """
    _check(scenes)
    if samples not in range(1, 9):
        raise ValueError(f"a pixel takes 1 to 8 samples along each side, got {samples}")
    return _render(_whole(scenes), *_shape(size), samples)[: len(scenes.kind)]


def truths(scenes: Scene, size: int | tuple[int, int] = 64) -> Truth:
    """What is true of the pictures of a batch of scenes, each field with a first axis B. Raises ValueError."""
    _check(scenes)
    found = _truths(_whole(scenes), *_shape(size))
    return jax.tree.map(lambda values: values[: len(scenes.kind)], found)


def to_uint8(pictures: Array) -> np.ndarray:
    """Values in [0, 1] as bytes, rounded."""
    return np.floor(np.asarray(pictures) * 255 + 0.5).astype(np.uint8)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _render(scenes: Scene, height: int, width: int, samples: int) -> Array:
    return jax.lax.map(lambda one: picture(one, height, width, samples), scenes, batch_size=AT_ONCE)


@partial(jax.jit, static_argnums=(1, 2))
def _truths(scenes: Scene, height: int, width: int) -> Truth:
    return jax.lax.map(lambda one: truth(one, height, width), scenes, batch_size=AT_ONCE)


def _whole(scenes: Scene) -> Scene:
    """The batch filled up with its last scene to a multiple of ``AT_ONCE``: a rest would be a second program."""
    missing = -len(scenes.kind) % AT_ONCE
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(np.asarray(a)[-1:], missing, 0)]), scenes)


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    width, height = (size, size) if isinstance(size, int) else size
    if not (1 <= width <= LARGEST and 1 <= height <= LARGEST):
        raise ValueError(f"pictures are 1 to {LARGEST} pixels wide and high, got {width}x{height}")
    return height, width


def _check(scenes: Scene) -> None:
    if np.ndim(scenes.kind) != 2 or np.shape(scenes.kind)[1] != SLOTS:
        shape = np.shape(scenes.kind)
        raise ValueError(
            f"expected a batch of scenes, kinds of shape (B, {SLOTS}), got {shape}; see toybox.scene.stack"
        )
    check(scenes)
