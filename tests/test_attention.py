"""Attention: its forms agree, and it has the symmetries that its equation has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm import attention as module
from ldm.attention import attention, blocked_attention, fused_attention


def qkv(L=37, S=21, N=3, D=8, seed=0):
    """Random queries, keys and values, keys large enough to make softmax uneven."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return tuple(2 * jax.random.normal(k, (2, n, N, D)) for k, n in zip(keys, (L, S, S), strict=True))


def test_the_equation_in_numpy():
    q, k, v = (np.asarray(x, np.float64) for x in qkv())
    scores = np.einsum("blnd,bsnd->bnls", q, k) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnls,bsnd->blnd", weights, v)
    np.testing.assert_allclose(attention(*qkv()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 8, 37, 64])
def test_blocks_change_nothing(block):
    np.testing.assert_allclose(blocked_attention(*qkv(), block=block), attention(*qkv()), rtol=1e-4, atol=1e-5)


def test_blocks_have_the_same_gradient():
    loss = lambda form: lambda *x: jnp.sum(jnp.sin(form(*x)))
    blocked = jax.grad(loss(lambda *x: blocked_attention(*x, block=8)), argnums=(0, 1, 2))(*qkv())
    plain = jax.grad(loss(attention), argnums=(0, 1, 2))(*qkv())
    for a, b in zip(blocked, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_default_takes_blocks_where_the_scores_are_many(monkeypatch):
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 100)
    compiled = jax.jit(lambda *x: fused_attention("anywhere", *x)).lower(*qkv()).as_text()
    assert "while" in compiled
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1 << 22)
    assert "while" not in jax.jit(lambda *x: fused_attention("elsewhere", *x)).lower(*qkv()).as_text()


def test_order_of_keys_does_not_matter():
    q, k, v = qkv()
    order = jnp.array(np.random.default_rng(0).permutation(21))
    np.testing.assert_allclose(attention(q, k[:, order], v[:, order]), attention(q, k, v), rtol=1e-4, atol=1e-5)


def test_a_mask_leaves_out_keys():
    q, k, v = qkv()
    mask = jnp.arange(21) < 5
    np.testing.assert_allclose(attention(q, k, v, mask), attention(q, k[:, :5], v[:, :5]), rtol=1e-4, atol=1e-5)


def test_scores_beyond_float16_are_survived():
    q, k, v = (100 * x.astype(jnp.float16) for x in qkv())
    out = attention(q, k, v)
    assert out.dtype == jnp.float16
    assert bool(jnp.isfinite(out).all())
