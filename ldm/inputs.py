"""The run-time values of one call of ``generate``, checked: every mistake of a caller is one sentence, raised here.

Shapes: N pictures, S tokens, K chunks of L tokens, V texts in turn, E width of the context.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm.bundle import Bundle
from ldm.guidance import Guidance
from ldm.prompts import Chunks, chunks, padded, stages
from ldm.request import Texts
from ldm.samplers import Plan
from ldm.tokenizer import Tokenizer

MOST_PIXELS = 2**26  # a side of 8192 squared: beyond it the arrays, not the model, are the mistake
NEVER = -1.0  # a noise level that no run comes down to


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


def real(name: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """``array`` as float32; ValueError unless it is of finite real numbers and of ``shape``."""
    array = np.asarray(array)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, but {shape} is needed here")
    if array.dtype.kind not in "fiuV" or array.dtype.names or not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"{name} must be finite real numbers, got dtype {array.dtype} or NaN")
    return array.astype(np.float32)


def guidance_of(bundle: Bundle, value: Any) -> Guidance:
    """Guidance as numbers; None: the bundle's own scale. Raises ValueError."""
    value = bundle.guidance if value is None else value
    given = value if isinstance(value, Guidance) else Guidance(value)
    scale, rescale = number("guidance", given.scale), number("rescale", given.rescale)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be between 0 and 1, got {rescale}")
    low, high = given.low, given.high
    if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 <= low <= high):
        raise ValueError(f"guidance is on between two noise levels, 0 <= low <= high, got {low!r} and {high!r}")
    return Guidance(*map(np.float32, (scale, rescale, low, high)))


# ---------------------------------------------------------------------------------------------------------------------
# The model


def check_parts(bundle: Bundle) -> None:
    """Raises ValueError unless the widths at which the parts meet are the same."""
    c = bundle.configs
    if c.text is not None and c.text.width != c.unet.context_dim:
        raise ValueError(f"the text tower is {c.text.width} wide, the U-Net's context {c.unet.context_dim}")
    if c.vae is not None and c.vae.latent_channels != c.unet.out_channels:
        raise ValueError(
            f"the autoencoder's latents have {c.vae.latent_channels} channels, the U-Net's {c.unet.out_channels}"
        )


def factor_of(bundle: Bundle) -> int:
    """Pixels of the picture per latent pixel, a side; 8 where there is no autoencoder to say."""
    return 8 if bundle.configs.vae is None else bundle.configs.vae.factor


def latent_size(bundle: Bundle, size: Any) -> tuple[int, int]:
    """(h, w) of the latents of a picture of ``size`` (width, height); ValueError if it is no multiple of 8."""
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
    return height // factor, width // factor


# ---------------------------------------------------------------------------------------------------------------------
# Texts


def clip_skip_of(bundle: Bundle, value: Any) -> np.int32:
    """Layers of the text tower to leave out. Raises ValueError."""
    return np.int32(whole("clip_skip", value, 0, bundle.configs.text.layers - 1))


def tokenizer_of(bundle: Bundle) -> Tokenizer:
    """The tokenizer. Raises ValueError if there is none."""
    if bundle.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer")
    return bundle.tokenizer


def known_ids(bundle: Bundle, ids: np.ndarray) -> np.ndarray:
    """``ids``. Raises ValueError if the text tower does not know them all."""
    if ids.max() >= bundle.configs.text.vocabulary:
        raise ValueError(
            f"the tokenizer gave token {ids.max()}, but the text tower knows {bundle.configs.text.vocabulary}: "
            "they do not belong together"
        )
    return ids


def plain_texts(bundle: Bundle, all_texts: Sequence[str], clip_skip: Any) -> Texts:
    """Texts as they are, cut at the tower's length. ``all_texts``: the negative prompts, then the prompts."""
    ids = known_ids(bundle, tokenizer_of(bundle)(all_texts, bundle.configs.text.length))
    below = np.full((1, len(ids)), np.inf, np.float32)
    return Texts(ids[None, :, None], None, None, below, clip_skip_of(bundle, clip_skip))


def read_texts(bundle: Bundle, all_texts: Sequence[str], clip_skip: Any, plan: Plan) -> Texts:
    """Texts by the rules of ``ldm.prompts``: shorter ones are padded with empty chunks. Raises ValueError."""
    tokenizer, length = tokenizer_of(bundle), bundle.configs.text.length
    turns = [stages(text, int(plan.steps)) for text in all_texts]
    V = max(map(len, turns))
    below = np.full((V, len(turns)), NEVER, np.float32)
    rows: list[list[Chunks]] = []
    for column, turn in enumerate(turns):
        below[: len(turn), column] = [plan.levels[stage.first] if stage.first else np.inf for stage in turn]
        made = [chunks(tokenizer, stage.text, length) for stage in turn]
        rows.append(made + made[-1:] * (V - len(made)))
    K = max(len(one.ids) for row in rows for one in row)
    even = [[padded(one, K, tokenizer) for one in row] for row in rows]
    stack = lambda name: np.stack([[getattr(one, name) for one in row] for row in even], axis=1)
    return Texts(known_ids(bundle, stack("ids")), stack("weights"), None, below, clip_skip_of(bundle, clip_skip))


def given_context(bundle: Bundle, count: int, context: Any, plan: Plan) -> Texts:
    """A context [2N, S, E], or one for each step [V, 2N, S, E], V = steps. Raises ValueError."""
    shape = np.shape(context)
    context = np.asarray(context)[None] if len(shape) == 3 else np.asarray(context)
    if context.ndim != 4 or len(context) not in (1, plan.steps) or context.shape[1] != 2 * count:
        raise ValueError(
            f"context has shape {shape}, but [2 N, S, E] or [steps, 2 N, S, E] is needed, with N = {count} and the "
            "negative prompts first"
        )
    context = real("context", context, (*context.shape[:3], bundle.configs.unet.context_dim))
    below = np.full((len(context), 2 * count), np.inf, np.float32)
    below[1:] = np.asarray(plan.levels)[1 : len(context), None]
    return Texts(None, None, context, below, np.int32(0))


def texts_of(bundle: Bundle, all_texts: Sequence[str], clip_skip: Any, plan: Plan, syntax: bool, context: Any) -> Texts:
    """What is said in a call: a context, texts by the rules of ``ldm.prompts``, or texts as they are."""
    if context is not None:
        return given_context(bundle, len(all_texts) // 2, context, plan)
    return read_texts(bundle, all_texts, clip_skip, plan) if syntax else plain_texts(bundle, all_texts, clip_skip)
