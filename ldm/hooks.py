"""Hooks: the only way, besides ``control=``, in which a method enters the U-Net.

Shapes: B batch, L queries, S keys, N heads, D head width.

A *site* is the path of a module in the parameter tree, e.g. ``encoder.down.0.attn.1.blocks.0.cross_attn``. Sites are
Python strings while tracing, so choosing by site costs nothing at run time, and a site that a hook leaves alone
compiles to what it would have been without the hook.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from ldm.attention import fused_attention

Attend = Callable[[str, Array, Array, Array], Array]  # (site, q [B,L,N,D], k, v [B,S,N,D]) -> [B,L,N,D]
Tap = Callable[[str, Array], Array]  # (site, features) -> features


def identity(site: str, features: Array) -> Array:
    """The default tap: leaves the features as they are."""
    return features


class Hooks(NamedTuple):
    """What a method may change inside the U-Net.

    ``attend`` replaces the attention of every site. ``tap`` sees, and may replace, the features that leave each
    ``…res.J`` block, each ``…self_attn``, ``…cross_attn`` and ``…ff`` (the residual stream after that layer) and
    ``encoder.middle`` (the bottleneck, called h-space in editing papers). In the encoder also those that leave a whole
    block, ``encoder.down.I.block.J`` (after its transformer, where there is one) and the strided convolution that ends
    a level, ``encoder.down.I.downsample``: what is put there goes into the skip and into all that is deeper. In the
    decoder, those that enter a block, ``decoder.up.I.in.J``, before its skip is joined to them.
    """

    attend: Attend = fused_attention
    tap: Tap = identity


def watching(prefix: str, hooks: Hooks) -> tuple[Hooks, list[Array]]:
    """Hooks that do what ``hooks`` do, and a list to which they add the features of each tap whose site begins with
    ``prefix``, in the order of the network."""
    seen: list[Array] = []

    def tap(site: str, features: Array) -> Array:
        if site.startswith(prefix):
            seen.append(features)
        return hooks.tap(site, features)

    return hooks._replace(tap=tap), seen
