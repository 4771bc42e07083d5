"""What people build on ``generate``: variations, ways from one prompt or seed to another, large pictures in two passes.

Shapes: N pictures, h w latent size, Z latent channels.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldm.bundle import Bundle
from ldm.generate import generate
from ldm.inputs import factor_of, latent_size, whole
from ldm.samplers import START, image_keys, unit_noise


def starting_noise(
    bundle: Bundle, seed: int = 0, count: int = 1, size: tuple[int, int] | None = None, index: int = 0
) -> np.ndarray:
    """The noise [N, h, w, Z] that ``generate`` starts pictures index .. index + count - 1 of a seed from."""
    h, w = latent_size(bundle, size)
    keys = image_keys(np.uint32(whole("seed", seed, 0, 2**32 - 1)), jnp.arange(index, index + count))
    return np.asarray(unit_noise(keys, START, (h, w, bundle.configs.unet.out_channels)))


def slerp(a: Any, b: Any, share: float) -> np.ndarray:
    """From a (share 0) to b (share 1) along the arc: noise between two noises is noise again, of unit variance.

    Arrays [N, ...], each of the N for itself. On a straight line the middle of two noises would have half the variance.
    """
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    axes = tuple(range(1, a.ndim))
    length = lambda x: np.sqrt((x.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    angle = np.arccos(np.clip((a.astype(np.float64) * b).sum(axis=axes, keepdims=True) / length(a) / length(b), -1, 1))
    sine = np.sin(angle)
    near = sine < 1e-6  # nearly parallel: the line is the arc
    safe = np.where(near, 1.0, sine)
    first = np.where(near, 1 - share, np.sin((1 - share) * angle) / safe)
    return (first * a + np.where(near, share, np.sin(share * angle) / safe) * b).astype(np.float32)


def variations(bundle: Bundle, prompt: str, seed: int, share: float, count: int = 4, **options: Any) -> np.ndarray:
    """Pictures near the one that ``seed`` gives: its noise, turned by ``share`` towards that of other indices.

    share 0: the same picture each time; 1: others altogether. options: of ``generate``. [N, H, W, 3] uint8.
    """
    size = options.get("size")
    own = np.repeat(starting_noise(bundle, seed, 1, size), count, axis=0)
    others = starting_noise(bundle, seed, count, size, index=1)
    return generate(bundle, [prompt] * count, latents=slerp(own, others, share), seed=seed, **options)


def between(a: Any, b: Any, count: int, curve: Any = slerp) -> list[np.ndarray]:
    """``count`` arrays from a to b, both included: noises along the arc, or contexts by ``curve=straight``."""
    return [curve(a, b, share) for share in np.linspace(0, 1, whole("count", count, 2, 10_000))]


def straight(a: Any, b: Any, share: float) -> np.ndarray:
    """From a (share 0) to b (share 1) along a line: for contexts."""
    return ((1 - share) * np.asarray(a, np.float32) + share * np.asarray(b, np.float32)).astype(np.float32)


def enlarge(
    bundle: Bundle, pictures: np.ndarray, prompts: str | Sequence[str], size: Any, **options: Any
) -> np.ndarray:
    """Pictures [N, H, W, 3] at another size (width, height): resized, then drawn over by img2img.

    What "hires fix" does after a first pass at the size that the model was trained at: large shapes come from there,
    detail from here. options: of ``generate``; a strength of 0.5 to 0.7 is usual. Raises ValueError.
    """
    latent_size(bundle, size)
    resized = [Image.fromarray(one).resize(tuple(size), Image.Resampling.LANCZOS) for one in pictures]
    options = {"strength": 0.6} | options
    return generate(bundle, prompts, image=np.stack([np.asarray(one) for one in resized]), **options)


def two_passes(
    bundle: Bundle, prompts: str | Sequence[str], size: tuple[int, int], strength: float = 0.6, **options: Any
) -> np.ndarray:
    """Pictures [N, H, W, 3] larger than the model was trained at: a pass at its own size, then :func:`enlarge`.

    The first pass has the shape of ``size`` and about the area of ``bundle.size``. Raises ValueError.
    """
    latent_size(bundle, size)
    factor = factor_of(bundle)
    shrink = min(1.0, (bundle.size[0] * bundle.size[1] / (size[0] * size[1])) ** 0.5)
    first = tuple(max(factor, round(side * shrink / factor) * factor) for side in size)
    return enlarge(
        bundle, generate(bundle, prompts, size=first, **options), prompts, size, strength=strength, **options
    )
