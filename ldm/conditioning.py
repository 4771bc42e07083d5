"""What a diffusion network is told besides the noisy picture.

Shapes: B batch, S text tokens, E context width, P width of the pooled vector, H W latent size.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Conditioning(NamedTuple):
    """A pytree of the ways in which conditions enter the U-Net; ``None`` where a model has no such entrance.

    ``context`` [B, S, E] is attended to by every cross-attention. ``pooled`` [B, P] is added to the time embedding
    through a small MLP (SDXL). ``concat`` [B, H, W, C'] is stacked on the noisy latent's channels (inpainting: mask
    and masked latent; instruct-pix2pix and Zero-1-to-3: the latent of the input picture). ``guidance`` [] or [B] is the
    guidance scale, for networks that were trained to answer as if guided by it (latent consistency models).
    """

    context: Array
    pooled: Array | None = None
    concat: Array | None = None
    guidance: Array | None = None


def stack(first: Conditioning, second: Conditioning) -> Conditioning:
    """Joins two conditionings along the batch: [2B, …]. Both must use the same entrances."""
    join = lambda a, b: None if a is None else jnp.concatenate([a, b])
    return Conditioning(*map(join, first, second))
