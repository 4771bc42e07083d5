"""The run-time values of one call of ``generate``, checked: every mistake of a caller is one sentence, raised here.

Shapes: N pictures, S tokens, h w latent size, Z latent channels, C' extra input channels.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from ldm.bundle import Bundle
from ldm.samplers import Plan

MOST_PIXELS = 2**26  # a side of 8192 squared: beyond it the arrays, not the model, are the mistake


class Inputs(NamedTuple):
    """The run-time values, a pytree: none of them is compiled in."""

    ids: Array  # [2N, S] int32: negative prompts, then prompts
    clip_skip: Array  # []
    guidance: Array  # []
    seed: Array  # [] uint32
    plan: Plan
    latents: Array  # [N, h, w, Z] unit noise, where `given`
    given: Array  # [] bool
    concat: Array | None  # [N, h, w, C'] stacked on the latent's channels, for models that want it


def texts(name: str, value: Any, count: int | None = None) -> list[str]:
    """One text or several as a list; with ``count``, one text stands for all. Raises ValueError."""
    value = [value] * (count or 1) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a text or a list of texts, got {value!r}"[:200])
    if not value:
        raise ValueError("no prompt: give one text or a list of them")
    if count is not None and len(value) != count:
        raise ValueError(f"{len(value)} {name} prompts for {count} prompts: give one, or one for each")
    return list(value)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """``value`` as an int in ``least``..``most``; ValueError otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """``value`` as a finite float; ValueError otherwise."""
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def token_ids(bundle: Bundle, prompts: Sequence[str], negatives: Sequence[str]) -> np.ndarray:
    """[2N, S] int32: the negative prompts, then the prompts. Raises ValueError if the tokenizer does not fit."""
    if bundle.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer")
    ids = bundle.tokenizer([*negatives, *prompts], bundle.configs.text.length)
    if ids.max() >= bundle.configs.text.vocabulary:
        raise ValueError(
            f"the tokenizer gave token {ids.max()}, but the text tower knows {bundle.configs.text.vocabulary}: "
            "they do not belong together"
        )
    return ids


def check_parts(bundle: Bundle) -> None:
    """Raises ValueError unless the widths at which the parts meet are the same."""
    c = bundle.configs
    if c.text.width != c.unet.context_dim:
        raise ValueError(f"the text tower is {c.text.width} wide, the U-Net's context {c.unet.context_dim}")
    if c.vae is not None and c.vae.latent_channels != c.unet.out_channels:
        raise ValueError(
            f"the autoencoder's latents have {c.vae.latent_channels} channels, the U-Net's {c.unet.out_channels}"
        )


def latent_shape(bundle: Bundle, size: Any) -> tuple[int, int, int]:
    """(h, w, Z) of the latents of a picture of ``size`` (width, height); ValueError if it is no multiple of 8."""
    size = bundle.size if size is None else size
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be (width, height) in pixels, got {size!r}")
    width, height = (whole("a side of size", side, 0, MOST_PIXELS) for side in size)
    factor = factor_of(bundle)
    if width < factor or height < factor or width % factor or height % factor:
        near = [max(factor, round(n / factor) * factor) for n in (width, height)]
        raise ValueError(f"size {width}x{height} is not a multiple of {factor} both ways; try {near[0]}x{near[1]}")
    if width * height > MOST_PIXELS:
        raise ValueError(f"size {width}x{height} is more than {MOST_PIXELS} pixels")
    return height // factor, width // factor, bundle.configs.unet.out_channels


def factor_of(bundle: Bundle) -> int:
    """Pixels of the picture per latent pixel, a side; 8 where there is no autoencoder to say."""
    return 8 if bundle.configs.vae is None else bundle.configs.vae.factor


def real(name: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``array`` as float32; ValueError unless it is of finite real numbers and of ``shape``."""
    array = np.asarray(array)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, but {shape} is needed here")
    if array.dtype.kind not in "fiuV" or array.dtype.names or not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"{name} must be finite real numbers, got dtype {array.dtype} or NaN")
    return array.astype(np.float32)


def arrays(bundle: Bundle, count: int, size: Any, latents: Any, concat: Any) -> tuple[np.ndarray, bool, Any]:
    """Latents (zeros where none are given), whether they were given, and concat; all checked."""
    if size is None and latents is not None and np.ndim(latents) == 4:
        size = tuple(int(side) * factor_of(bundle) for side in (np.shape(latents)[2], np.shape(latents)[1]))
    h, w, z = latent_shape(bundle, size)
    extra = bundle.configs.unet.in_channels - z
    if extra and concat is None:
        raise ValueError(
            f"this model takes {extra} channels beside the latent (inpainting and its like): give them as concat"
        )
    given = latents is not None
    latents = real("latents", latents, (count, h, w, z)) if given else np.zeros((count, h, w, z), np.float32)
    return latents, given, None if concat is None else real("concat", concat, (count, h, w, extra))
