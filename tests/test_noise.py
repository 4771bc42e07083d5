"""Noise of one Brownian path: increments that add up, and samplers along an SDE that converge because of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import SD, distance, gaussian

from ldm import samplers, spacing
from ldm.samplers.noise import brownian

pytestmark = pytest.mark.optimised

SHAPE = (32, 32, 4)


@functools.cache
def path():
    """The path of one key at several times [n] -> [n, *SHAPE]."""
    return jax.jit(jax.vmap(lambda time: brownian(jax.random.key(3), time, SHAPE)))


def test_a_path_begins_at_0_and_has_the_variance_of_its_time():
    times = jnp.array([0.0, 1e-4, 0.3, 0.77, 1.0])
    values = path()(times)
    assert not values[0].any()
    np.testing.assert_allclose(values.var(axis=(1, 2, 3)), times, rtol=0.1, atol=1e-9)  # 4096 numbers: 2 % each


@pytest.mark.long
def test_increments_are_independent_and_add_up():
    times = jnp.array([0.0, 0.01, 0.2, 0.21, 0.6, 1.0])
    rises = np.diff(path()(times), axis=0).reshape(5, -1)
    assert np.abs(np.corrcoef(rises) - np.eye(5)).max() < 0.08  # 4096 numbers: 0.016 is one standard error
    np.testing.assert_allclose(rises.var(axis=1), np.diff(times), rtol=0.12)
    whole = samplers.brownian_noise(samplers.image_keys(1, jnp.arange(2)), SHAPE, jnp.float32(10.0))
    parts = whole(0, 0, 10.0, 4.0) * 6**0.5 + whole(1, 0, 4.0, 0.5) * 3.5**0.5
    np.testing.assert_allclose(parts, whole(0, 0, 10.0, 0.5) * 9.5**0.5, atol=1e-4)


def test_every_image_has_a_path_of_its_own():
    draw = lambda indices: samplers.brownian_noise(samplers.image_keys(1, indices), SHAPE, 10.0)(0, 0, 5.0, 4.0)
    batch = draw(jnp.arange(3))
    assert np.array_equal(draw(jnp.array([2]))[0], batch[2])
    assert abs(np.corrcoef(batch[0].ravel(), batch[1].ravel())[0, 1]) < 0.08
    assert batch.std() == pytest.approx(1, abs=0.03)


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(name, brownian_path, plan):
    """A sample of a Gaussian along an SDE or along its ODE."""
    keys = samplers.image_keys(2, jnp.arange(2))
    make = samplers.brownian_noise if brownian_path else lambda *arguments: samplers.noise_per_step(*arguments[:2])
    noise_at = make(keys, (8, 8, 2), jnp.float32(14.7))
    start = plan.scale * samplers.unit_noise(keys, samplers.START, (8, 8, 2))
    return samplers.sample(samplers.SAMPLERS[name], gaussian, start, plan, noise_at)


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_along_one_path_a_stochastic_sampler_converges(name):
    """Twice the steps, nearly the same sample; with fresh noise for each step, another one altogether."""

    def change(steps, brownian_path):
        plans = [
            samplers.Plan(
                np.pad(spacing.levels(SD, "euler", "karras", n), (0, 320 - n)), np.int32(n), np.float32(1), 14.6
            )
            for n in (steps, 2 * steps)
        ]
        return distance(*(drawn(name, brownian_path, plan) for plan in plans))

    changes = [change(n, True) for n in (10, 40, 160)]
    fresh = change(160, False)
    print(name, "one path", changes, "fresh noise", fresh)
    assert changes[2] < changes[1] < changes[0] and changes[2] < 0.05 < 0.3 < fresh
