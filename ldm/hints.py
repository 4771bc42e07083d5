"""Hints for ControlNets, as pictures: Canny's edges of a photograph, and a user's own picture brought to size.

Shapes: H W pixels, C colours. Axes of a gradient: x to the right, y downwards.

Canny, "A Computational Approach to Edge Detection", IEEE PAMI 8(6), 1986: smoothing, gradient, non-maximum suppression,
hysteresis. What he leaves open is settled as in OpenCV, which the program of the public Canny ControlNets calls on
pictures in colour: Sobel's gradient of the colour that changes most, |dx| + |dy| for its magnitude, four directions,
nothing smoothed beforehand. The result is OpenCV's to the pixel.
"""

import math
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from ldm.pictures import on_white

TANGENT = 13573 / 2**15  # of 22.5 degrees, as OpenCV rounds it: times a gradient of bytes it is exact in float32


def canny(picture: Any, low: float = 100, high: float = 200, sigma: float = 0.0) -> np.ndarray:
    """The edges of a picture, white on black: [H, W, 3] uint8.

    ``picture`` is what :func:`hint_picture` takes. An edge begins where the gradient's magnitude is above ``high`` and
    goes on as long as it is above ``low``; a step from 0 to 255 has 1020. ``sigma``: of the Gaussian that smooths the
    picture before, in pixels; compiled in, the thresholds are not. Raises ValueError.
    """
    if not 0 <= low <= high:
        raise ValueError(f"Canny's thresholds are 0 <= low <= high, got low {low} and high {high}")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is 0 (nothing is smoothed) or a number of pixels, got {sigma}")
    found = np.asarray(edges(_rgb("picture", picture), jnp.float32(low), jnp.float32(high), float(sigma)))
    return np.repeat(found[..., None], 3, axis=-1) * np.uint8(255)


def hint_picture(picture: Any, size: tuple[int, int]) -> np.ndarray:
    """A user's picture as the hint of one of ``size`` (width, height): [H, W, 3] uint8.

    Takes uint8 [H, W] or [H, W, 1] (grey), [H, W, 3], or [H, W, 4], whose transparency is laid on white. One of another
    size is resized (Lanczos), with a UserWarning that states both sizes. Raises ValueError for anything else.
    """
    colours = _rgb("hint", picture)
    height, width = colours.shape[:2]
    if (width, height) == tuple(size):
        return colours
    how = "resized" if width * size[1] == height * size[0] else "stretched"
    wanted = f"{size[0]}x{size[1]}"
    warnings.warn(
        f"the hint is {width}x{height} and the picture {wanted}: it is {how}; draw it at {wanted} to keep its lines",
        stacklevel=2,
    )
    return np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.LANCZOS))


def _rgb(name: str, picture: Any) -> np.ndarray:
    """Grey, coloured or partly transparent [H, W], [H, W, 1 | 3 | 4] uint8 -> [H, W, 3] uint8. Raises ValueError."""
    array = np.asarray(picture)
    channels = array.shape[2:] if array.ndim > 2 else (1,)
    if array.dtype != np.uint8 or array.ndim < 2 or channels not in ((1,), (3,), (4,)):
        raise ValueError(
            f"the {name} must be uint8 of [H, W], or [H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels, "
            f"got {array.dtype} {array.shape}"
        )
    if not array.size:
        raise ValueError(f"the {name} has no pixels: its shape is {array.shape}")
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] == 4:
        return np.asarray(on_white(Image.fromarray(array)))
    return np.broadcast_to(array, (*array.shape[:2], 3))


# ---------------------------------------------------------------------------------------------------------------------
# Canny's detector, on arrays.


@partial(jax.jit, static_argnums=3)
def edges(picture: Array, low: Array, high: Array, sigma: float) -> Array:
    """Canny's edges of a picture [H, W, C] of values 0 to 255: bool [H, W]. ``low`` <= ``high`` are run-time values."""
    colours = smoothed(jnp.asarray(picture, jnp.float32), sigma)
    dx, dy = slope(colours), slope(colours.swapaxes(0, 1)).swapaxes(0, 1)
    magnitude = jnp.abs(dx) + jnp.abs(dy)
    most = magnitude.argmax(-1, keepdims=True)  # the first of equals
    dx, dy, magnitude = (jnp.take_along_axis(values, most, -1)[..., 0] for values in (dx, dy, magnitude))
    crest = is_crest(dx, dy, magnitude)
    return connected(crest & (magnitude > low), crest & (magnitude > high))


def smoothed(colours: Array, sigma: float) -> Array:
    """[H, W, C] under a Gaussian of ``sigma`` pixels, the border repeated outwards; 0 leaves it as it is."""
    if sigma == 0:
        return colours
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        size = colours.shape[axis]
        padded = jnp.pad(colours, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        colours = sum(w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, w in enumerate(weights))
    return colours


def slope(colours: Array) -> Array:
    """Sobel's derivative of [H, W, C] to the right: differences (-1, 0, 1) under (1, 2, 1). The border is repeated."""
    padded = jnp.pad(colours, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    return across[:-2] + 2 * across[1:-1] + across[2:]


def is_crest(dx: Array, dy: Array, magnitude: Array) -> Array:
    """Where the magnitude is greatest among the two neighbours along the gradient, rounded to 45 degrees. bool [H, W].

    Of two equal pixels across an edge the left or the upper one is kept, of two along a diagonal none. Outside of the
    picture the magnitude is 0.
    """
    h, w = magnitude.shape
    padded = jnp.pad(magnitude, 1)

    def at(row: int, column: int) -> Array:
        return padded[1 + row : 1 + row + h, 1 + column : 1 + column + w]

    x, y = jnp.abs(dx), jnp.abs(dy)
    across = (magnitude > at(0, -1)) & (magnitude >= at(0, 1))
    upright = (magnitude > at(-1, 0)) & (magnitude >= at(1, 0))
    falling = (magnitude > at(-1, -1)) & (magnitude > at(1, 1))
    rising = (magnitude > at(-1, 1)) & (magnitude > at(1, -1))
    slanted = jnp.where(dx * dy >= 0, falling, rising)
    steep = y - 2 * x > TANGENT * x  # tan 67.5 = 2 + tan 22.5; written so, both sides are exact
    return jnp.where(y < TANGENT * x, across, jnp.where(steep, upright, slanted))


def connected(weak: Array, strong: Array) -> Array:
    """Hysteresis: the pixels of ``weak`` that a path of weak pixels, diagonals included, joins to a strong one.

    bool [H, W]; ``strong`` is part of ``weak``. As many dilations as the longest path has pixels.
    """

    def wider(mask: Array) -> Array:
        rows = jnp.pad(mask, ((1, 1), (0, 0)))
        rows = rows[:-2] | rows[1:-1] | rows[2:]
        columns = jnp.pad(rows, ((0, 0), (1, 1)))
        return columns[:, :-2] | columns[:, 1:-1] | columns[:, 2:]

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = state
        more = weak & wider(found)
        return more, (more != found).any()

    return jax.lax.while_loop(lambda state: state[1], grow, (strong, strong.any()))[0]
