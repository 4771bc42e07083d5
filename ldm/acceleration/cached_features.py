"""Cached deep features: most steps compute only the U-Net's outermost blocks, and take what is below from before.

Features deep in the network change slowly from one noise level to the next. Every n-th step is whole, and keeps the
features that enter one block of the decoder. The steps between take them from there: with that entrance replaced by
a constant, all that leads to it (the deeper levels of the encoder, the middle, the deeper levels of the decoder) has no
use, and the compiler leaves it out. The skips of the outermost blocks are fresh in every step.

B batch, H W size of the features, C channels.
Source: "DeepCache: Accelerating Diffusion Models for Free" (arXiv:2312.00858), section 3.3: uniform 1:N caching.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ldm.hooks import Hooks, watching
from ldm.models.unet import UNetConfig


def place(config: UNetConfig, blocks: int) -> tuple[int, int]:
    """(level of the decoder, the coarsest is 0; block in it) where the last ``blocks`` residual blocks begin.

    Raises ValueError unless that leaves something to save: 1 .. all blocks of the decoder but one.
    """
    each = config.blocks + 1
    total = each * len(config.channels)
    if not 1 <= blocks < total:
        raise ValueError(
            f"blocks computed in every step must be 1 to {total - 1} of the decoder's {total}, got {blocks}"
        )
    return divmod(total - blocks, each)


def entrance(config: UNetConfig, blocks: int) -> str:
    """The tap site of the features that enter the last ``blocks`` residual blocks of the decoder."""
    level, block = place(config, blocks)
    return f"decoder.up.{level}.in.{block}"


def recalling(site: str, features: Array, hooks: Hooks) -> Hooks:
    """Hooks that put ``features`` in the place of those at ``site``."""
    return hooks._replace(tap=lambda at, h: hooks.tap(at, features if at == site else h))


def cached(run: Callable[[Hooks], Array], site: str, hooks: Hooks, memory: Array, whole: Array) -> tuple[Array, Array]:
    """(output, features at ``site``) of a network: computed whole, or from ``memory`` onwards.

    run(hooks) is the network, its input closed over. whole [] bool is a run-time value; only one of both is computed.
    """

    def computed() -> tuple[Array, Array]:
        own, kept = watching(site, hooks)
        output = run(own)
        return output, kept[0]

    return lax.cond(whole, computed, lambda: (run(recalling(site, memory, hooks)), memory))


def no_features(config: UNetConfig, blocks: int, batch: int, size: tuple[int, int], dtype: Any) -> Array:
    """Zeros [B, H, W, C] in the shape of the features that are kept: the memory before the first step, which is whole.

    size: (rows, columns) of the latents.
    """
    above, block = place(config, blocks)
    level = len(config.channels) - 1 - above
    rows, columns = (-(-side // 2**level) for side in size)
    return jnp.zeros((batch, rows, columns, config.channels[level + (block == 0)]), dtype)
