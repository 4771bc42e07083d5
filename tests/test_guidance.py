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


# ---- with something else ----


def two_classes(x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x0 of both classes together, x0 of the second, and log p(second | x), for every number of x."""
    variance = SPREAD**2 + sigma**2
    logits = -((x[..., None] - MEANS) ** 2) / (2 * variance)
    each = MEANS + SPREAD**2 / variance * (x[..., None] - MEANS)
    share = jax.nn.log_softmax(logits)
    return (jnp.exp(share) * each).sum(-1), each[..., 1], share[..., 1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_classifier_guidance_is_classifier_free_guidance_on_the_mixture(scale: float):
    """As denoisers, at every noise level: the slope of a perfect classifier is the difference of the pair."""
    log_prob = lambda x, sigma: two_classes(x, sigma)[2].sum(axis=(1, 2, 3))
    with_classifier = guidance.classifier_guided(lambda x, sigma: two_classes(x, sigma)[0], log_prob, scale)
    without = guidance.cfg(lambda x, sigma: two_classes(x, sigma)[:2], scale)
    (noise,) = arrays(1)
    for sigma in (0.1, 1.0, 5.0):
        x = noise * (1 + sigma)
        np.testing.assert_allclose(jax.jit(with_classifier)(x, sigma), without(x, sigma), atol=1e-4)


def test_guidance_in_an_interval():
    negative, positive = arrays(2)
    g = guidance.Guidance(5.0, low=1.0, high=3.0)
    run = jax.jit(lambda sigma: guidance.cfg(lambda x, sigma: (negative, positive), g)(negative, sigma))
    on = guidance.guide(negative, positive, 5.0)
    for sigma, wanted in ((0.5, positive), (1.0, positive), (1.1, on), (3.0, on), (3.1, positive)):
        np.testing.assert_allclose(run(sigma), wanted, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_rescaling_gives_the_conditional_spread_back(prediction: str):
    """Of the network's own output: with share 1 exactly, with share 0 nothing changes to the last bit."""
    x, negative, positive = arrays(3)
    spread = lambda y: np.asarray(y).std(axis=(1, 2, 3))
    made = {
        share: guidance.cfg(lambda x, sigma: (negative, positive), guidance.Guidance(9.0, share), prediction)(x, 2.0)
        for share in (0.0, 0.5, 1.0)
    }
    assert np.array_equal(made[0.0], guidance.guide(negative, positive, 9.0))
    out = {share: denoiser.output_from_x0(prediction, x0, x, 2.0) for share, x0 in made.items()}
    wanted = spread(denoiser.output_from_x0(prediction, positive, x, 2.0))
    np.testing.assert_allclose(spread(out[1.0]), wanted, rtol=1e-4)
    np.testing.assert_allclose(spread(out[0.5]), (wanted + spread(out[0.0])) / 2, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_networks_output_and_x0_there_and_back(prediction: str):
    x, x0 = arrays(2)
    for sigma in (0.05, 1.0, 14.6):
        output = denoiser.output_from_x0(prediction, x0, sigma * x, sigma)
        back = denoiser.predict_x0(prediction, output, sigma * x, sigma)
        np.testing.assert_allclose(back, x0, rtol=1e-4, atol=1e-5 * (1 + sigma))


def test_dynamic_thresholding():
    x0 = jnp.linspace(-4, 4, 2 * 4 * 4 * 3).reshape(SHAPE)
    clip = lambda share, limit: guidance.dynamic_threshold(lambda x, sigma: x0, share, limit)(x0, 1.0)
    assert np.array_equal(clip(1.0, 4.0), x0)  # nothing beyond the limit
    assert float(jnp.abs(clip(1.0, 1.0)).max()) == pytest.approx(1) and float(jnp.abs(clip(0.5, 1.0)).max()) == 1
    np.testing.assert_allclose(clip(1.0, 2.0)[0], x0[0] * 2 / 4, atol=1e-6)  # all of it shrunk, shape kept


def test_only_what_is_perpendicular_of_a_negative_prompt_counts():
    null, positive, other = arrays(3)
    perpendicular = lambda negative, weight: guidance.perpendicular_negative(null, positive, negative, 3.0, weight)
    plain = guidance.guide(null, positive, 3.0)
    np.testing.assert_allclose(perpendicular(other, 0.0), plain, atol=1e-5)
    along = null + 0.7 * (positive - null)
    np.testing.assert_allclose(perpendicular(along, 1.0), plain, atol=1e-5)  # says what the prompt says: no effect
    moved = perpendicular(other, 1.0) - plain
    dot = (moved * (positive - null)).sum(axis=(1, 2, 3))
    assert np.abs(dot).max() < 1e-3 * float(jnp.abs(moved).sum())


def test_what_is_known_is_the_prediction():
    x, x0, known = arrays(3)
    mask = jnp.zeros((2, 4, 4, 1)).at[:, 1:3].set(1.0)
    kept = guidance.keep_known(lambda x, sigma: x0, known, mask)(x, 1.0)
    assert np.array_equal(kept[:, 1:3], x0[:, 1:3]) and np.array_equal(kept[:, 0], known[:, 0])
    assert np.array_equal(guidance.keep_known(lambda x, sigma: x0, known, jnp.ones_like(mask))(x, 1.0), x0)
