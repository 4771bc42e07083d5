"""Pictures that are worse than renders: a little, so that samples can be read, and wholly, which nothing should read.

B pictures of 64x64 pixels in [0, 1], P pictures of one kind. All is pure and jitted by those who use it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def blur(pictures: Array, sigma: Any) -> Array:
    """Gaussian blur of square pictures [B, H, H, C], ``sigma`` pixels: one number or [B]; weights sum to 1 at edges."""
    size = pictures.shape[1]
    apart = (jnp.arange(size)[:, None] - jnp.arange(size)) ** 2
    sigma = jnp.maximum(jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), pictures.shape[:1]), 0.05)
    weights = jax.nn.softmax(-apart / (2 * sigma[:, None, None] ** 2), -1)
    return jnp.einsum("bij,bjkc,blk->bilc", weights, pictures, weights)


def mild(key: Array, pictures: Array) -> Array:
    """Pictures [B, H, H, 3] a little changed, as decoders and files do: soft, noisy, blotched, brighter or darker."""
    B = len(pictures)
    keys = iter(jax.random.split(key, 7))
    some = lambda low, high, *shape: jax.random.uniform(next(keys), (B, *shape), minval=low, maxval=high)
    often = lambda: jax.random.uniform(next(keys), (B,)) < 0.6
    x = blur(pictures, jnp.where(often(), some(0.2, 1.1), 0.0))
    x = (x - 0.5) * some(0.92, 1.08, 1, 1, 1) + 0.5 + some(-0.05, 0.05, 1, 1, 1)
    noise = jax.random.normal(next(keys), pictures.shape)
    amount = jnp.where(often(), some(0.0, 0.05), 0.0)[:, None, None, None]
    x = x + amount * noise + 2 * amount * blur(jnp.flip(noise, 1), 1.5)
    return jnp.clip(x, 0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures that are none of the toybox. Each takes a key and renders [P, H, H, 3], and returns as many.


def uniform(key: Array, pictures: Array) -> Array:
    """Uniform noise about a grey level, of any strength."""
    a, b, c = jax.random.split(key, 3)
    low = jax.random.uniform(a, (len(pictures), 1, 1, 1), maxval=0.8)
    high = low + (1 - low) * jax.random.uniform(b, (len(pictures), 1, 1, 1), minval=0.15)
    return low + (high - low) * jax.random.uniform(c, pictures.shape)


def gaussian(key: Array, pictures: Array) -> Array:
    """Gaussian noise about a colour, of any strength."""
    a, b, c = jax.random.split(key, 3)
    middle = jax.random.uniform(a, (len(pictures), 1, 1, 3), minval=0.2, maxval=0.8)
    spread = jax.random.uniform(b, (len(pictures), 1, 1, 1), minval=0.02, maxval=0.5)
    return jnp.clip(middle + spread * jax.random.normal(c, pictures.shape), 0, 1)


def blank(key: Array, pictures: Array) -> Array:
    """One colour, with or without a little noise."""
    a, b, c = jax.random.split(key, 3)
    colour = jax.random.uniform(a, (len(pictures), 1, 1, 3))
    grey = jax.random.bernoulli(b, 0.5, (len(pictures), 1, 1, 1))
    noise = 0.02 * jax.random.normal(c, pictures.shape) * grey
    return jnp.clip(jnp.where(grey, colour[..., :1], colour) + noise, 0, 1)


def gradient(key: Array, pictures: Array) -> Array:
    """From one colour to another, in any direction; a table without toys looks like this."""
    a, b, c = jax.random.split(key, 3)
    first, second = jax.random.uniform(a, (2, len(pictures), 1, 1, 3))
    angle = jax.random.uniform(b, (len(pictures), 1, 1, 1), maxval=2 * np.pi)
    steep = jax.random.uniform(c, (len(pictures), 1, 1, 1), minval=0.5, maxval=4)
    line = jnp.linspace(-1, 1, pictures.shape[1])
    across = jnp.cos(angle) * line[:, None, None] + jnp.sin(angle) * line[:, None]
    return first + (second - first) * jax.nn.sigmoid(steep * across * 2)


def empty(key: Array, pictures: Array) -> Array:
    """The table without its toys: each row runs from its left border to its right one."""
    del key
    return blur(_table(pictures), 1.0)


def shuffled(patch: int) -> Any:
    """A picture's square patches of ``patch`` pixels in another order."""

    def shuffle(key: Array, pictures: Array) -> Array:
        B, H, _, C = pictures.shape
        n = H // patch
        cut = pictures.reshape(B, n, patch, n, patch, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, n * n, patch, patch, C)
        order = jnp.argsort(jax.random.uniform(key, (B, n * n)), -1)
        same = (order == jnp.arange(n * n)).all(-1, keepdims=True)
        cut = jnp.take_along_axis(cut, jnp.where(same, jnp.roll(order, 1, -1), order)[..., None, None, None], 1)
        return cut.reshape(B, n, n, patch, patch, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, H, H, C)

    return shuffle


def blended(key: Array, pictures: Array) -> Array:
    """Two pictures at once."""
    share = jax.random.uniform(key, (len(pictures), 1, 1, 1), minval=0.35, maxval=0.65)
    return share * pictures + (1 - share) * jnp.roll(pictures, 1, 0)


def noised(key: Array, pictures: Array) -> Array:
    """Noise that hides what a toy is."""
    a, b = jax.random.split(key)
    amount = jax.random.uniform(a, (len(pictures), 1, 1, 1), minval=0.35, maxval=1.0)
    return jnp.clip(pictures + amount * jax.random.normal(b, pictures.shape), 0, 1)


def blurred(key: Array, pictures: Array) -> Array:
    """Blur that hides what a toy is."""
    return blur(pictures, jax.random.uniform(key, (len(pictures),), minval=4.0, maxval=12.0))


def erased(key: Array, pictures: Array, boxes: Array) -> Array:
    """About half of a toy replaced by the table beside it. ``boxes`` [P, 4]: the toys', as fractions."""
    a, b = jax.random.split(key)
    side = jax.random.randint(a, (len(pictures), 1, 1), 0, 4)
    share = jax.random.uniform(b, (len(pictures), 1, 1), minval=0.42, maxval=0.62)
    size = pictures.shape[1]
    x0, y0, x1, y1 = (size * boxes[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(size)[:, None] + 0.5, jnp.arange(size) + 0.5
    inside = (columns > x0 - 1) & (columns < x1 + 1) & (rows > y0 - 1) & (rows < y1 + 1)
    along, up = (columns - x0) / (x1 - x0), (rows - y0) / (y1 - y0)
    halves = [along < share, along > 1 - share, up < share, up > 1 - share]
    gone = inside & jnp.select([side == i for i in range(4)], [jnp.broadcast_to(h, inside.shape) for h in halves])
    return jnp.where(gone[..., None], _table(pictures), pictures)


def _table(pictures: Array) -> Array:
    """Each row from its left border's colour to its right one's."""
    share = jnp.linspace(0, 1, pictures.shape[2])[:, None]
    return (1 - share) * pictures[:, :, :1] + share * pictures[:, :, -1:]


# ---------------------------------------------------------------------------------------------------------------------
# Kept out of training, to see whether what was learned goes beyond it.


def clouds(key: Array, pictures: Array) -> Array:
    """Smooth coloured noise."""
    a, b = jax.random.split(key)
    soft = blur(jax.random.normal(a, pictures.shape), jax.random.uniform(b, (len(pictures),), minval=1.5, maxval=8.0))
    low, high = soft.min((1, 2, 3), keepdims=True), soft.max((1, 2, 3), keepdims=True)
    return (soft - low) / (high - low)


def torn(key: Array, pictures: Array) -> Array:
    """Bands of four rows, each moved sideways by up to half the width."""
    B, H, W, _ = pictures.shape
    shift = jnp.repeat(jax.random.randint(key, (B, H // 4), -W // 2, W // 2), 4, 1)
    columns = (jnp.arange(W) + shift[..., None]) % W
    return jnp.take_along_axis(pictures, columns[..., None], 2)


def stripes(key: Array, pictures: Array) -> Array:
    """Stripes of two colours."""
    a, b, c = jax.random.split(key, 3)
    first, second = jax.random.uniform(a, (2, len(pictures), 1, 1, 3))
    angle, period = jax.random.uniform(b, (2, len(pictures), 1, 1, 1)) * jnp.array([2 * np.pi, 12]).reshape(
        2, 1, 1, 1, 1
    )
    line = jnp.arange(pictures.shape[1])
    across = (jnp.cos(angle) * line[:, None, None] + jnp.sin(angle) * line[:, None]) / (period + 3)
    phase = jax.random.uniform(c, (len(pictures), 1, 1, 1))
    return jnp.where(jnp.sin(2 * np.pi * (across + phase)) > 0, first, second)


TRAINED = {
    "uniform noise": uniform,
    "gaussian noise": gaussian,
    "blank": blank,
    "gradient": gradient,
    "empty table": empty,
    "patches of 4": shuffled(4),
    "patches of 8": shuffled(8),
    "patches of 32": shuffled(32),
    "blend of two": blended,
    "heavy noise": noised,
    "heavy blur": blurred,
}
UNSEEN = {"patches of 16": shuffled(16), "clouds": clouds, "torn": torn, "stripes": stripes}


def unreadable(key: Array, pictures: Array, boxes: Array) -> Array:
    """A quarter of the pictures half erased; the others go through the kinds of ``TRAINED`` in turn: [B, H, H, 3]."""
    quarter = len(pictures) // 4
    first = pictures[:quarter]
    parts = [erased(jax.random.fold_in(key, 0), first, boxes[:quarter])]
    shares = np.array_split(np.arange(quarter, len(pictures)), len(TRAINED))
    for number, (make, share) in enumerate(zip(TRAINED.values(), shares, strict=True), 1):
        several = jnp.concatenate([pictures[share], first])  # a blend needs another picture
        parts.append(make(jax.random.fold_in(key, number), several)[: len(share)])
    return jnp.concatenate(parts)
