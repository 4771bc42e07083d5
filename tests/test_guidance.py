"""Laws of classifier-free guidance: its two conventions, its fixed points, and that it is classifier guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm import denoiser, guidance

SHAPE = (2, 4, 4, 3)
MEANS = jnp.array([-1.0, 1.5])  # two classes, each a Gaussian of this mean and standard deviation
SPREAD = 0.4


def arrays(count: int) -> list[jax.Array]:
    """Unit Gaussian arrays."""
    return list(jnp.asarray(np.random.default_rng(1).standard_normal((count, *SHAPE), np.float32)))


def guided(scale: float, negative: jax.Array, positive: jax.Array) -> jax.Array:
    """The guided prediction, compiled with a run-time scale."""
    run = jax.jit(lambda scale: guidance.cfg(lambda x, sigma: (negative, positive), scale)(negative, 1.0))
    return run(scale)


def test_scale_0_is_the_negative_and_scale_1_the_positive_to_the_last_bit():
    negative, positive = arrays(2)
    negative = 1000 * negative  # so that negative + (positive - negative) would round
    assert np.array_equal(guided(0.0, negative, positive), negative)
    assert np.array_equal(guided(1.0, negative, positive), positive)
    assert not np.array_equal(negative + (positive - negative), positive)


def test_the_two_conventions_are_one():
    unconditional, conditional = arrays(2)
    for w in (-1.0, 0.0, 0.5, 6.5):
        wanted = (1 + w) * conditional - w * unconditional  # Ho & Salimans eq. (6)
        result = guided(guidance.scale_from_w(w), unconditional, conditional)
        np.testing.assert_allclose(result, wanted, atol=1e-5)
        assert guidance.w_from_scale(guidance.scale_from_w(w)) == w
        other = unconditional + guidance.scale_from_w(w) * (conditional - unconditional)  # Imagen's form
        np.testing.assert_allclose(result, other, atol=1e-5)


def test_a_negative_prompt_equal_to_the_prompt_is_no_guidance():
    (positive,) = arrays(1)
    np.testing.assert_allclose(guided(7.5, positive, positive), positive, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.6])
def test_guiding_noise_velocity_or_x0_is_the_same(sigma: float):
    x, negative, positive = arrays(3)
    x = x * sigma
    wanted = guidance.guide(negative, positive, 7.5)
    noises = [denoiser.eps_from_x0(x, x0, sigma) for x0 in (negative, positive)]
    tolerance = 1e-5 * (1 + sigma)
    by_noise = denoiser.x0_from_eps(x, guidance.guide(*noises, 7.5), sigma)
    np.testing.assert_allclose(by_noise, wanted, atol=tolerance)
    velocities = [denoiser.v_from_x0(x0, noise, sigma) for x0, noise in zip((negative, positive), noises, strict=True)]
    by_velocity = denoiser.x0_from_v(x, guidance.guide(*velocities, 7.5), sigma)
    np.testing.assert_allclose(by_velocity, wanted, atol=tolerance)


def test_a_pair_is_one_call_at_twice_the_batch():
    shapes, shift = [], jnp.array([0.0, 1.0, 10.0, 11.0]).reshape(4, 1, 1, 1)  # B negative, then B positive

    def denoise(x, sigma):
        shapes.append(x.shape)
        return x + shift

    (x,) = arrays(1)
    negative, positive = guidance.paired(denoise)(x, 1.0)
    assert shapes == [(4, *SHAPE[1:])]
    assert np.array_equal(negative, x + shift[:2]) and np.array_equal(positive, x + shift[2:])


def test_a_scale_per_image():
    negative, positive = arrays(2)
    both = guided(jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1), negative, positive)
    assert np.array_equal(both[0], negative[0]) and np.array_equal(both[1], positive[1])


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_it_is_classifier_guidance_by_bayes(sigma: float):
    """x0 guided = x0 unconditional + scale * sigma^2 * d/dx log p(class | x), exactly, for two Gaussian classes."""
    variance = SPREAD**2 + sigma**2

    def log_class(x):
        return jax.nn.log_softmax(-((x - MEANS) ** 2) / (2 * variance))

    def predictions(x):
        each = MEANS + SPREAD**2 / variance * (x - MEANS)
        return jnp.sum(jnp.exp(log_class(x)) * each), each[1]

    x = jnp.linspace(-4, 4, 17)
    unconditional, conditional = jax.vmap(predictions)(x)
    slope = jax.vmap(jax.grad(lambda x: log_class(x)[1]))(x)
    for scale in (0.0, 1.0, 7.5):
        wanted = unconditional + scale * sigma**2 * slope
        np.testing.assert_allclose(guidance.guide(unconditional, conditional, scale), wanted, atol=2e-5)
