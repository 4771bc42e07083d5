"""Scaled dot-product attention, and which form of it to use where.

Shapes: B batch, L queries, S keys, N heads, D head width.

Source: "Attention Is All You Need" (arXiv:1706.03762), section 3.2.1:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V                                   eq. (1)

The three functions compute the same numbers; they differ in how much of the [L, S] score matrix exists at once.
Scores and softmax are always float32: in float16 the scores of a trained network overflow, in bfloat16 they lose
the differences that softmax is made of.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

SCORES_AT_ONCE = 1 << 22  # float32 numbers of scores that may exist at once on a CPU: 16 MiB stays near the cache
SCORES_IN_TRAINING = 1 << 26  # and where gradients are wanted: 256 MiB a layer
QUERY_BLOCK = 1024


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Eq. (1) as written: the whole score matrix at once.

    q is [B, L, N, D], k and v are [B, S, N, D]; ``mask`` broadcasts to [B, N, L, S], True where attention is allowed.
    Returns [B, L, N, D] in the dtype of ``v``.
    """
    scores = jnp.einsum("blnd,bsnd->bnls", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bnls,bsnd->blnd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def blocked_attention(q: Array, k: Array, v: Array, block: int = QUERY_BLOCK) -> Array:
    """Eq. (1) one head and one block of queries at a time: memory grows with S, not with L * S.

    Shapes as in :func:`attention`. Rows of the score matrix are independent, so cutting the queries changes nothing.
    """
    B, L, N, D = q.shape
    blocks = -(-L // block)
    heads_first = lambda x: x.transpose(0, 2, 1, 3).reshape(B * N, x.shape[1], D)
    q, k, v = heads_first(q), heads_first(k), heads_first(v)
    q = jnp.pad(q, ((0, 0), (0, blocks * block - L), (0, 0))).reshape(B * N * blocks, block, D)

    def one(i):
        scores = jnp.dot(q[i], k[i // blocks].T, preferred_element_type=jnp.float32) * D**-0.5
        return jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v[i // blocks]

    again = jax.checkpoint(one, prevent_cse=False)  # a gradient makes the scores again: kept, they would be L * S
    out = lax.map(again, jnp.arange(B * N * blocks)).reshape(B, N, blocks * block, D)
    return out[:, :, :L].transpose(0, 2, 1, 3)


def fused_attention(site: str, q: Array, k: Array, v: Array) -> Array:
    """The default ``attend`` hook: eq. (1) in the form that suits the shape, the dtype and the backend.

    ``site`` is not used: every place in the network is served alike. Choosing happens while tracing.
    """
    B, L, N, D = q.shape
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and D % 8 == 0 and D <= 128:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if B * N * L * k.shape[1] <= SCORES_AT_ONCE:
        return attention(q, k, v)
    return blocked_attention(q, k, v, min(QUERY_BLOCK, L))


def training_attention(site: str, q: Array, k: Array, v: Array) -> Array:
    """:func:`fused_attention` for what is differentiated: as written, as long as the scores fit in memory.

    Going back through the blocks' loop is slow: a training step at 256 tokens, of which this is a part, took two and a
    half times as long.
    """
    B, L, N, _ = q.shape
    if jax.default_backend() == "cpu" and B * N * L * k.shape[1] <= SCORES_IN_TRAINING:
        return attention(q, k, v)
    return fused_attention(site, q, k, v)
