"""What one call of ``generate`` asks for, as run-time values, and how they are cut over several devices.

Shapes: N pictures, H W picture size, h w latent size, Z latent channels; V texts that follow one another during a run,
K chunks of a text, L tokens of a chunk, S = K L tokens of a text, E width of the context.
"""

from typing import Any, NamedTuple

import numpy as np
from jax import Array

from ldm.adapters.control import Steering
from ldm.adapters.image_prompt import Showing
from ldm.devices import CUT, CUT_SECOND, WHOLE
from ldm.guidance import Guidance
from ldm.samplers import Plan, State
from ldm.samplers.multistep import History


class Texts(NamedTuple):
    """What is said. Of ``ids`` and ``context`` one is None."""

    ids: Array | None  # [V, 2N, K, L] int32: negative prompts, then prompts
    weights: Array | None  # [V, 2N, K, L] of the tokens; None: all 1
    context: Array | None  # [V, 2N, S, E] in place of what the text tower makes of ids
    below: Array  # [V, 2N] the noise level from which on downwards a text is in force; the first inf, never: -1
    clip_skip: Array  # []


class Start(NamedTuple):
    """What a run starts from, and what it keeps."""

    latents: Array  # [N, h, w, Z] unit noise, where `given`
    given: Array  # [] bool
    origin: Array  # [N, h, w, Z] the latent that the noise is added to: 0 for a picture from nothing
    known: Array  # [N, h, w, Z] the latent that is kept where the mask is 0
    mask: Array  # [N, h, w, 1] 1 to paint
    concat: Array | None  # [N, h, w, C'] stacked on the latent's channels, for models that want it


class Inputs(NamedTuple):
    """The run-time values of one call, a pytree."""

    texts: Texts
    start: Start
    guidance: Guidance
    seed: Array  # [] uint32
    indices: Array  # [N] int32: the pictures' numbers, which their noise follows from
    plan: Plan
    extra: Any = None  # a pytree of whatever a caller's own `wrap` needs
    hints: tuple[Array, ...] = ()  # [N, H, W, C] in [0, 1] of each control
    steering: tuple[Steering, ...] = ()
    tokens: tuple[Array, ...] = ()  # [N, 2, S, E] of each image prompt
    showing: tuple[Showing, ...] = ()


CUT_TEXTS = Texts(CUT_SECOND, CUT_SECOND, CUT_SECOND, CUT_SECOND, WHOLE)
CUT_START = Start(CUT, WHOLE, CUT, CUT, CUT, CUT)
CUT_INPUTS = Inputs(CUT_TEXTS, CUT_START, WHOLE, WHOLE, CUT, WHOLE, WHOLE, CUT, WHOLE, CUT, WHOLE)
CUT_STATE = State(CUT, History(CUT_SECOND, CUT_SECOND, WHOLE))


def dealt(texts: Texts, parts: int) -> Texts:
    """The rows of texts in the order of devices: each has its own negative prompts, then its own prompts."""

    def deal(rows: Array | None) -> Any:
        if rows is None:
            return None
        return np.reshape(rows, (len(rows), 2, parts, -1, *rows.shape[2:])).swapaxes(1, 2).reshape(rows.shape)

    names = ("ids", "weights", "context", "below")
    return texts._replace(**{name: deal(getattr(texts, name)) for name in names})
