"""Lesson 02, DDPM: what its exercises must do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ldm.course import Exercise
from ldm.denoiser import output_from_x0
from ldm.denoiser import v_from_x0 as velocity
from ldm.schedule import PREDICTIONS

LEVELS = np.float32([0.05, 0.7, 3.0]).reshape(3, 1, 1, 1)  # one noise level for each example


def normal(seed: int, shape: tuple = (3, 2, 5, 2)) -> np.ndarray:
    """Unit noise."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def root(sigma):
    return jnp.sqrt(1 + sigma**2)


# ---- 02.1 and 02.2: the velocity, and back ----

to_velocity = Exercise(
    "02.1",
    "ldm.denoiser:v_from_x0",
    minutes=5,
    lines=1,
    hints=(
        "In the variance-preserving form v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0.",
        "sqrt(alpha_bar) = 1 / sqrt(1 + sigma^2), and sqrt(1 - alpha_bar) = sigma / sqrt(1 + sigma^2).",
    ),
    wrong={
        "the signs exchanged: v points towards the noise": lambda x0, noise, sigma: (sigma * x0 - noise) / root(sigma),
        "alpha_bar and 1 - alpha_bar where their square roots belong": lambda x0, noise, sigma: (
            (noise - sigma**2 * x0) / (1 + sigma**2)
        ),
        "noise - x0, the velocity of rectified flow": lambda x0, noise, sigma: noise - x0 + 0 * sigma,
    },
)


@to_velocity.check
def test_velocity_is_the_noise_at_first_and_minus_x0_in_the_end(f):
    """Without noise in x, v is the noise; with noise alone, v is -x0."""
    x0, noise = normal(0), normal(1)
    np.testing.assert_allclose(f(x0, noise, jnp.float32(0)), noise, rtol=1e-6)
    np.testing.assert_allclose(f(x0, noise, jnp.float32(1e6)), -x0, rtol=1e-4, atol=1e-5)


@to_velocity.check
def test_x_and_v_are_x0_and_noise_turned(f):
    """(x_t, v) is (x0, noise) turned by an angle of the level: x_t^2 + v^2 = x0^2 + noise^2, number by number."""
    x0, noise = normal(2), normal(3)
    x_t = (x0 + LEVELS * noise) / np.sqrt(1 + LEVELS**2)
    v = np.asarray(f(x0, noise, LEVELS))
    np.testing.assert_allclose(x_t**2 + v**2, x0**2 + noise**2, rtol=1e-4, atol=1e-5)


from_velocity = Exercise(
    "02.2",
    "ldm.denoiser:x0_from_v",
    minutes=8,
    lines=1,
    hints=(
        "x is x0 + sigma * noise. The variance-preserving x_t is x / sqrt(1 + sigma^2).",
        "x0 = sqrt(alpha_bar) * x_t - sqrt(1 - alpha_bar) * v; now put x_t, alpha_bar in terms of x and sigma.",
    ),
    wrong={
        "x taken for the variance-preserving x_t": lambda x, v, sigma: (x - sigma * v) / root(sigma),
        "+ where - belongs before v": lambda x, v, sigma: x / (1 + sigma**2) + v * sigma / root(sigma),
        "v taken for the noise": lambda x, v, sigma: x - sigma * v,
        "a way that divides by sigma, which is 0 where sampling ends": lambda x, v, sigma: (
            (x / sigma - v * root(sigma)) / (1 / sigma + sigma)
        ),
    },
)


@from_velocity.check
def test_v_and_back(f):
    """The x0 that a velocity was made of comes back, at any level, one for each example."""
    x0, noise = normal(4), normal(5)
    x = x0 + LEVELS * noise
    np.testing.assert_allclose(f(x, velocity(x0, noise, LEVELS), LEVELS), x0, rtol=1e-4, atol=1e-5)


@from_velocity.check
def test_without_noise_x_is_x0(f):
    """At sigma = 0 the clean sample is x itself, whatever v says."""
    x, v = normal(6), normal(7)
    np.testing.assert_allclose(f(x, v, jnp.float32(0)), x, rtol=1e-6)


# ---- 02.3 and 02.4: the loss and its weights ----


def _loss(prediction, target, weight=1.0, add=jnp.mean, power=1, total=False, metric=False, half=False):
    dtype = jnp.float16 if half else jnp.float32
    error = (jnp.asarray(prediction, dtype) - jnp.asarray(target, dtype)).reshape(len(target), -1)
    each = add(error**2, axis=-1)
    value = (weight**power * each).mean() / (jnp.mean(weight) if total else 1)
    return value, {"mse": (weight * each if metric else each).mean()}


loss = Exercise(
    "02.3",
    "ldm.training.losses:diffusion_loss",
    minutes=8,
    lines=3,
    hints=(
        "One number an example first: the mean of its squared errors. Then the weights, then the mean over examples.",
        "Cast both arrays to float32 before you subtract. The metric mse leaves the weights out.",
    ),
    wrong={
        "the sum over an example's numbers where their mean belongs": partial(_loss, add=jnp.sum),
        "the weight inside of the square": partial(_loss, power=2),
        "a division by the sum of the weights": partial(_loss, total=True),
        "a metric that is weighted too": partial(_loss, metric=True),
        "arithmetic in half precision, because that came in": partial(_loss, half=True),
    },
)


@loss.check
def test_each_example_counts_by_its_weight(f):
    """The loss is the mean over examples of weight times mean squared error."""
    prediction, wanted, weight = normal(12), normal(13), np.float32([0.0, 1.0, 3.5])
    each = ((prediction - wanted) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(f(prediction, wanted, weight)[0], (weight * each).mean(), rtol=2e-3)


@loss.check
def test_the_metric_is_not_weighted(f):
    """mse is the plain mean squared error, so that runs with different weights can be compared."""
    prediction, wanted = normal(14), normal(15)
    _, metrics = f(prediction, wanted, np.float32([0.0, 1.0, 3.5]))
    np.testing.assert_allclose(metrics["mse"], ((prediction - wanted) ** 2).mean(), rtol=2e-3)


@loss.check
def test_half_precision_comes_in_and_float32_is_computed(f):
    """Small errors of float16 arrays are squared in float32: their squares are no numbers of float16."""
    prediction = np.full((2, 1, 1, 3), 1e-4, np.float16)
    value, _ = f(jnp.asarray(prediction), jnp.zeros_like(prediction))
    np.testing.assert_allclose(value, np.float64(prediction[0, 0, 0, 0]) ** 2, rtol=1e-3)


def _weight(sigma, gamma, prediction, power=2, least=jnp.minimum, v=1.0):
    snr = 1 / jnp.asarray(sigma) ** power
    return least(snr, gamma) / {"sample": 1.0, "epsilon": snr, "v_prediction": snr + v}[prediction]


weight = Exercise(
    "02.4",
    "ldm.training.losses:min_snr_weight",
    minutes=10,
    lines=3,
    hints=(
        "SNR = alpha_bar / (1 - alpha_bar) = 1 / sigma^2; the error of x0 gets min(SNR, gamma).",
        "An error e of x0 is e / sigma of eps and e * sqrt(1 + sigma^2) / sigma of v: divide by SNR, by SNR + 1.",
    ),
    wrong={
        "1 / sigma for the SNR, a ratio of amplitudes": partial(_weight, power=1),
        "the larger of SNR and gamma": partial(_weight, least=jnp.maximum),
        "the weight of x0, whatever is predicted": lambda sigma, gamma, prediction: _weight(sigma, gamma, "sample"),
        "SNR where SNR + 1 belongs, for v": partial(_weight, v=0.0),
    },
)


@weight.check
def test_x0_gets_the_snr_but_no_more_than_gamma(f):
    """For "sample": 1 / sigma^2, cut off at gamma; any shape."""
    sigma = np.float32([[0.1, 0.4, 0.5], [1.0, 2.0, 10.0]])
    np.testing.assert_allclose(f(sigma, 5.0, "sample"), [[5, 5, 4], [1, 0.25, 0.01]], rtol=1e-5)


@weight.check
def test_the_same_wrong_x0_costs_the_same(f):
    """One wrong x0, written as eps, as v and as x0: weight times squared error is equal, at every level."""
    x0, noise, off, sigma = normal(16), normal(17), normal(18), LEVELS
    x = x0 + sigma * noise
    costs = []
    for prediction in PREDICTIONS:
        said, right = (np.asarray(output_from_x0(prediction, each, x, sigma)) for each in (off, x0))
        costs.append(f(sigma[:, 0, 0, 0], 5.0, prediction) * ((said - right) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(costs[1:], [costs[0]] * 2, rtol=5e-3)


# ---- 02.5: one step down ----


def _step(x, x0, sigma, sigma_next, noise, swap=False, variance=lambda s, n: n**2 * (1 - n**2 / s**2)):
    share = 1 - (sigma_next / sigma) ** 2 if swap else (sigma_next / sigma) ** 2
    return (1 - share) * x0 + share * x + jnp.sqrt(variance(sigma, sigma_next)) * noise


def _by_precisions(x, x0, sigma, sigma_next, noise):
    a, b = 1 / sigma_next**2, 1 / (sigma**2 - sigma_next**2)
    return (a * x0 + b * x) / (a + b) + noise / jnp.sqrt(a + b)


step = Exercise(
    "02.5",
    "ldm.samplers.one_step:ddpm_step",
    minutes=15,
    lines=3,
    hints=(
        "x_next is seen twice: from x0 with variance sigma_next^2, from x with variance sigma^2 - sigma_next^2.",
        "The share of x in the mean is sigma_next^2 / sigma^2. Nothing may divide by sigma_next.",
        "mean = (1 - share) * x0 + share * x; the standard deviation is sigma_next * sqrt(1 - share).",
    ),
    wrong={
        "the prediction noised anew, x left out": lambda x, x0, sigma, sigma_next, noise: x0 + sigma_next * noise,
        "the variance of the noising step, sigma^2 - sigma_next^2": partial(_step, variance=lambda s, n: s**2 - n**2),
        "sigma_next / sigma in the noise, not squared": partial(_step, variance=lambda s, n: n**2 * (1 - n / s)),
        "the shares of x and x0 exchanged": partial(_step, swap=True),
        "precisions, one of which is infinite at the last step": _by_precisions,
    },
)


@step.check
def test_the_last_step_gives_x0(f):
    """To sigma_next = 0 the step gives x0, with no noise; under jit too."""
    x, x0, noise = normal(19), normal(20), normal(21)
    for each in (f, jax.jit(f)):
        np.testing.assert_allclose(each(x, x0, jnp.float32(0.3), jnp.float32(0), noise), x0, rtol=1e-6)


@step.check
def test_the_mean_weighs_two_observations(f):
    """Without noise: x0 and x, weighed by 1 / sigma_next^2 and 1 / (sigma^2 - sigma_next^2)."""
    x, x0 = normal(22), normal(23)
    for sigma, after in ((3.0, 2.5), (1.0, 0.2)):
        a, b = 1 / after**2, 1 / (sigma**2 - after**2)
        mean = f(x, x0, jnp.float32(sigma), jnp.float32(after), np.zeros_like(x))
        np.testing.assert_allclose(mean, (a * x0 + b * x) / (a + b), rtol=1e-4, atol=1e-5)


@step.check
def test_a_step_keeps_the_noise_that_the_level_names(f):
    """From x = x0 + sigma * noise comes x0 + noise of variance sigma_next^2, old noise and new together."""
    old, new, still = np.float32([[1], [0]]), np.float32([[0], [1]]), np.zeros((2, 1), np.float32)
    for sigma, after in ((3.0, 2.5), (1.0, 0.2)):
        shares = f(sigma * old, still, jnp.float32(sigma), jnp.float32(after), new)
        np.testing.assert_allclose(np.sum(np.square(shares)), after**2, rtol=1e-4)


# ---- 02.6: telling the network the time ----


def _waves(t, width, own=False, order=(0, 1), gaps=0, most=1, axis=1):
    half = width // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / (half - gaps))
    angles = t[:, None] / most * (frequencies.astype(t.dtype) if own else frequencies)
    waves = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([waves[i] for i in order], axis).reshape(len(t), -1)


embedding = Exercise(
    "02.6",
    "ldm.models.unet:timestep_embedding",
    minutes=10,
    lines=3,
    hints=(
        "Frequency k, for k = 0 .. width/2 - 1, is 10000^(-k / (width/2)): the last one is a little above 1e-4.",
        "angles = t[:, None] * frequencies, in float32; then concatenate cos and sin along the last axis.",
    ),
    wrong={
        "sines first": partial(_waves, order=(1, 0)),
        "cosine and sine in turns": partial(_waves, axis=2),
        "a division by width/2 - 1, so that the last frequency is 1e-4 itself": partial(_waves, gaps=1),
        "timesteps brought to 0..1 first": partial(_waves, most=1000),
        "frequencies in the dtype of t: all but the first are 0 if that is whole": partial(_waves, own=True),
    },
)


@embedding.check
def test_cosines_then_sines_of_falling_frequencies(f):
    """Column k is cos(t w_k), column width/2 + k is sin(t w_k), w_k = 10000^(-k / (width/2)); fractions of t too."""
    t = np.float32([0, 1, 37.5, 250, 998, 999])
    angles = np.float64(t)[:, None] * 10_000.0 ** (-np.arange(5) / 5)
    np.testing.assert_allclose(f(jnp.asarray(t), 10), np.hstack([np.cos(angles), np.sin(angles)]), atol=2e-4)


@embedding.check
def test_whole_timesteps_of_whole_type(f):
    """Timesteps of type int32 are embedded as those of float32 are."""
    whole, single = (f(jnp.asarray([3, 500], dtype), 6) for dtype in (jnp.int32, jnp.float32))
    np.testing.assert_allclose(whole, single, atol=1e-6)
