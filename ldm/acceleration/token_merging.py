"""Token merging: self-attention over fewer tokens, those that are most alike taken together.

Of every 2x2 cell of tokens one, chosen at random, is a destination, all others are sources. Each source is matched to
the destination that is most like it, and the best of these matches are merged: a destination becomes the mean of
itself and of what merged into it. Attention runs over what is left; each merged token then gets the answer of its
destination. With half of the tokens merged, attention takes a quarter of the arithmetic.

The source merges the input of the layer; here it happens to q, k and v in the ``attend`` hook. Those are linear in the
input, without bias, and so is what comes after: the means are the same, and so is the result, for the same matching.
What differs: likeness is of keys, which "Token Merging: Your ViT But Faster" (arXiv:2210.09461) found best, not of the
input; the projections are still made of all tokens; and the destinations are chosen once, not at each step, so that a
picture depends on its seed alone.

B batch, L tokens, D destinations, S = L - D sources, R of them merged, N heads.
Source: "Token Merging for Fast Stable Diffusion" (arXiv:2303.17604), sections 3 and 4.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ldm.hooks import Attend
from ldm.models.unet import UNetConfig

CELL = 2


class Matching(NamedTuple):
    """Who is merged into whom, for one batch of token maps."""

    destinations: np.ndarray  # [D] int: tokens, the same for every map
    merged: Array  # [B, R] int32: tokens that are merged
    kept: Array  # [B, S - R] int32: sources that are not
    into: Array  # [B, R] int32: places in ``destinations``, one for each of ``merged``


def destinations_of(rows: int, columns: int, seed: int) -> np.ndarray:
    """One token of each whole 2x2 cell of a map, [D] int, at random by ``seed``."""
    r, c = rows // CELL, columns // CELL
    offset = np.random.default_rng(seed).integers(0, CELL, (2, r, c))
    return ((CELL * np.arange(r)[:, None] + offset[0]) * columns + CELL * np.arange(c) + offset[1]).reshape(-1)


def match(k: Array, destinations: np.ndarray, count: int) -> Matching:
    """Bipartite soft matching by the cosine of keys [B, L, N, ...]: the ``count`` sources most like a destination."""
    B, L = k.shape[:2]
    sources = np.setdiff1d(np.arange(L), destinations)
    unit = k.reshape(B, L, -1).astype(jnp.float32)
    unit = unit * lax.rsqrt((unit**2).sum(-1, keepdims=True) + jnp.finfo(jnp.float32).tiny)
    likeness = jnp.einsum("bsc,bdc->bsd", unit[:, sources], unit[:, destinations])
    order = jnp.argsort(-likeness.max(-1), axis=-1)  # [B, S], the most alike first
    tokens = jnp.asarray(sources)[order]
    into = jnp.take_along_axis(likeness.argmax(-1), order[:, :count], 1)
    return Matching(destinations, tokens[:, :count], tokens[:, count:], into)


def merge(x: Array, m: Matching) -> Array:
    """[B, L, N, ...] -> [B, L - R, N, ...]: the sources that are kept, then the destinations, as means."""
    pick = jax.vmap(lambda x, index: x[index])
    add = jax.vmap(lambda target, index, values: target.at[index].add(values))
    wide = x[:, m.destinations].astype(jnp.float32)
    total = add(wide, m.into, pick(x, m.merged).astype(jnp.float32))
    sizes = add(jnp.ones(total.shape[:2]), m.into, jnp.ones(m.into.shape))
    means = total / sizes.reshape(*sizes.shape, *[1] * (x.ndim - 2))
    return jnp.concatenate([pick(x, m.kept), means.astype(x.dtype)], axis=1)


def unmerge(y: Array, m: Matching) -> Array:
    """[B, L - R, ...] -> [B, L, ...]: every merged token gets what its destination has."""
    kept = m.kept.shape[1]
    length = y.shape[1] + m.merged.shape[1]

    def one(y: Array, merged: Array, kept_at: Array, into: Array) -> Array:
        whole = jnp.zeros((length, *y.shape[1:]), y.dtype)
        whole = whole.at[kept_at].set(y[:kept]).at[m.destinations].set(y[kept:])
        return whole.at[merged].set(y[kept:][into])

    return jax.vmap(one)(y, m.merged, m.kept, m.into)


def merging(attend: Attend, grid: tuple[int, int], share: float) -> Attend:
    """``attend`` with a share of the tokens merged wherever a self-attention has a map of ``grid`` (rows, columns).

    share 0..1, compiled in: at most the three quarters that are no destinations are merged. 0 is ``attend`` itself.
    """
    rows, columns = grid
    length = rows * columns
    count = min(int(length * share), length - (rows // CELL) * (columns // CELL))

    def merged(site: str, q: Array, k: Array, v: Array) -> Array:
        if not count or not site.endswith("self_attn") or q.shape[1] != length:
            return attend(site, q, k, v)
        m = match(k, destinations_of(rows, columns, zlib.crc32(site.encode())), count)
        return unmerge(attend(site, *(merge(x, m) for x in (q, k, v))), m)

    return merged


def finest_grid(config: UNetConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the finest maps with attention in a U-Net whose latents are ``size`` (rows, columns)."""
    level = next((i for i, depth in enumerate(config.depth) if depth), len(config.depth) - 1)
    return tuple(-(-side // 2**level) for side in size)
