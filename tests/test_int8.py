"""Weights in eight bits: how far they move, what stays as it is, and that a model draws with them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm
from ldm.acceleration import int8
from ldm.conditioning import Conditioning
from ldm.models.layers import bind, whole
from ldm.models.unet import UNet
from ldm.program import IN_TURN

pytestmark = pytest.mark.optimised


def gaussian(*shape: int) -> np.ndarray:
    """Unit Gaussian numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 3, 4, 6)])
def test_no_weight_moves_by_more_than_half_a_step(shape, dtype):
    kernel = jnp.asarray(gaussian(*shape) * 10.0 ** np.arange(shape[-1]), dtype)
    small = int8.quantised({"a.kernel": kernel})["a.kernel"]
    assert small.values.dtype == np.int8 and small.scale.shape == shape[-1:] and small.dtype == kernel.dtype
    again = jax.jit(whole)({"a.kernel": small})["a.kernel"]
    assert again.dtype == kernel.dtype and again.shape == shape
    wide, step = np.asarray(kernel, np.float32), np.asarray(small.scale, np.float32)
    slack = {"float32": 1e-5, "bfloat16": 1.02}[dtype]  # of 127 steps: the scale and the product are rounded too
    assert (np.abs(np.asarray(again, np.float32) - wide) <= step * (0.5 + slack)).all()
    for channel in range(shape[-1]):
        assert np.abs(np.asarray(small.values)[..., channel]).max() == 127


def test_a_channel_of_zeros_and_everything_but_kernels_stay():
    params = {"a.kernel": np.zeros((4, 3), np.float32), "a.bias": gaussian(3), "token.embedding": gaussian(9, 4)}
    small = int8.quantised(params)
    assert small["a.bias"] is params["a.bias"] and small["token.embedding"] is params["token.embedding"]
    assert not np.asarray(whole(small)["a.kernel"]).any()
    assert whole(params) == params


def test_bytes():
    params = {"a.kernel": gaussian(64, 32), "a.bias": gaussian(32)}
    assert int8.size(params) == 4 * (64 * 32 + 32)
    assert int8.size(int8.quantised(params)) == 64 * 32 + 4 * 32 + 4 * 32


@pytest.mark.long
def test_a_model_draws_with_them(least):
    small = replace(least, params={**least.params, "unet": int8.quantised(least.params["unet"])})
    draw = lambda model: ldm.generate(model, "a cube", steps=2, output="latents", progress=False)
    wanted, got = draw(least), draw(small)
    assert 0 < np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.long
def test_kernels_are_made_whole_inside_of_a_loop_not_before_it():
    model = ldm.load("toybox")
    config, small = model.configs.unet, int8.quantised(model.params["unet"])
    cond = Conditioning(jnp.asarray(gaussian(2, 5, config.context_dim)))

    def run(params, x, steps, tie):
        network = lambda x: bind(UNet, config, whole(tie(params, x)))(x, jnp.float32(5), cond)
        return jax.lax.fori_loop(0, steps, lambda _, x: network(x), x)

    def temporary(tie):
        lowered = jax.jit(run, static_argnums=3).lower(small, gaussian(2, 16, 16, 4), 3, tie)
        return lowered.compile(compiler_options=IN_TURN).memory_analysis().temp_size_in_bytes

    full = int8.size(model.params["unet"])
    assert temporary(int8.tied) < 0.5 * full < full < temporary(lambda params, x: params)
    assert int8.tied(model.params["unet"], 0) is model.params["unet"]
