"""What a gradient keeps of the way there: less where it is told so, and the same gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.attention import attention, blocked_attention
from ldm.conditioning import Conditioning
from ldm.models.layers import bind, init
from ldm.models.unet import UNet, UNetConfig
from ldm.training.parts import TRAINING
from ldm.training.step import REMAT, rematerialised

CONFIG = UNetConfig(channels=(16,), blocks=1, depth=(1,), middle_depth=0, heads=(2,), context_dim=16, groups=8)


def gaussian(seed: int, *shape: int) -> jax.Array:
    """Unit Gaussian numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def kept(function, *args) -> int:
    """Bytes of all that the way back is given: the arrays of the function that ``jax.vjp`` returns."""
    back = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))


@pytest.fixture(scope="module")
def params():
    return init(UNet, CONFIG, 0)


def loss_of(remat: str):
    """A function of the parameters alone."""
    x, cond, wanted = gaussian(1, 2, 8, 8, 4), Conditioning(gaussian(2, 2, 5, 16)), gaussian(3, 2, 8, 8, 4)

    def loss(params, frozen, batch, keys):
        answer = bind(UNet, CONFIG, params)(x, jnp.float32(400), cond, hooks=TRAINING)
        return jnp.mean((answer - wanted) ** 2), {}

    return lambda params: rematerialised(loss, remat)(params, None, None, None)[0]


@pytest.mark.long
def test_gradients_are_the_same_but_for_rounding(params):
    value, wanted = jax.jit(jax.value_and_grad(loss_of("none")))(params)
    for remat in set(REMAT) - {"none"}:
        again, grads = jax.jit(jax.value_and_grad(loss_of(remat)))(params)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        for name, grad in grads.items():
            scale = float(jnp.abs(wanted[name]).max())
            np.testing.assert_allclose(grad, wanted[name], atol=1e-5 * scale + 1e-9, err_msg=f"{remat} {name}")


def test_less_is_kept(params):
    own = sum(array.nbytes for array in params.values())
    bytes_of = {remat: kept(loss_of(remat), params) - own for remat in REMAT}
    assert bytes_of["blocks"] < 0.2 * bytes_of["none"] and bytes_of["dots"] < 0.5 * bytes_of["none"], bytes_of


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match="unknown remat 'block'; did you mean 'blocks'"):
        rematerialised(lambda *_: None, "block")


def test_attention_in_blocks_keeps_no_scores():
    q, k, v = (gaussian(seed, 1, 256, 2, 8) for seed in range(3))
    run = lambda q, k, v: blocked_attention(q, k, v, 64).sum()
    scores = 2 * 256 * 256 * 4
    assert kept(run, q, k, v) < scores / 2 < kept(lambda *qkv: attention(*qkv).sum(), q, k, v)
    for ours, wanted in zip(
        jax.grad(run, (0, 1, 2))(q, k, v), jax.grad(lambda *a: attention(*a).sum(), (0, 1, 2))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
