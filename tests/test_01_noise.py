"""Lesson 01, noise and score: what its exercises must do."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm.course import Exercise
from ldm.mixture import Mixture, ring, shares
from ldm.mixture import denoise as best
from ldm.mixture import score as uphill
from ldm.schedule import NoiseSchedule, beta_table, rescale_to_zero_terminal_snr

ROUND = Mixture(np.float32([[0.5, -1.0]]), np.float32(0.6), np.float32([1.0]))  # one Gaussian
POINTS = Mixture(np.float32([[-1.0], [1.0]]), np.float32(0.0), np.float32([0.2, 0.8]))  # two points on a line


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    """Unit noise, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _table(change=lambda beta: np.cumprod(1 - beta), terminal=True, dtype=np.float32):
    """alpha_bars with one thing changed: ``change`` takes the betas to a table."""

    def bars(schedule):
        table = change(beta_table(schedule))
        return jnp.asarray(
            rescale_to_zero_terminal_snr(table) if schedule.zero_terminal_snr * terminal else table, dtype
        )

    return bars


bars = Exercise(
    "01.1",
    "ldm.schedule:alpha_bars",
    minutes=10,
    lines=4,
    hints=(
        "Each step keeps 1 - beta of the variance that the step before has left: a running product.",
        "np.cumprod(1 - beta_table(schedule)): ldm.schedule has beta_table. Cast to float32 at the very end.",
        "If schedule.zero_terminal_snr is set, ldm.schedule.rescale_to_zero_terminal_snr takes the table and mends it.",
    ),
    wrong={
        "1 - the sum of the betas, where the product of (1 - beta) belongs": _table(lambda beta: 1 - np.cumsum(beta)),
        "the product of sqrt(1 - beta): what is left of the amplitude, not of the variance": _table(
            lambda beta: np.cumprod(np.sqrt(1 - beta))
        ),
        "a product that starts from 1: t = 0 has had one step of noise already": _table(
            lambda beta: np.append(1, np.cumprod(1 - beta)[:-1])
        ),
        "a table in bfloat16, in which alpha_bar_0 is 1 and sigma_0 is 0": _table(dtype=jnp.bfloat16),
        "the plain table, whatever schedule.zero_terminal_snr says": _table(terminal=False),
    },
)


@bars.check
def test_equal_betas_leave_a_power(f):
    """If every step keeps half of the variance, t + 1 steps keep (1/2)^(t + 1)."""
    got = f(NoiseSchedule(beta_start=0.5, beta_end=0.5, betas="linear", train_steps=7))
    np.testing.assert_allclose(np.asarray(got, float), 0.5 ** np.arange(1, 8), rtol=1e-6)


@bars.check
def test_the_first_step_is_seen(f):
    """After the first step of Stable Diffusion's schedule 0.00085 of the variance is noise: float32 can say so."""
    np.testing.assert_allclose(1 - float(f(NoiseSchedule())[0]), 0.00085, rtol=1e-3)


@bars.check
def test_nothing_is_left_at_a_zero_terminal_snr(f):
    """With zero_terminal_snr the table still begins at 1 - beta_0, and at T - 1 next to nothing is left."""
    got = f(NoiseSchedule(beta_start=0.25, beta_end=0.25, betas="linear", train_steps=3, zero_terminal_snr=True))
    np.testing.assert_allclose(np.asarray(got, float)[[0, -1]], [0.75, 0], atol=1e-6)


preserving = Exercise(
    "01.2",
    "ldm.denoiser:to_variance_preserving",
    minutes=5,
    lines=1,
    hints=(
        "If x0 has variance 1, what is the variance of x0 + sigma * noise? Divide so that it is 1 again.",
        "Variances add, deviations do not: the deviation is sqrt(1 + sigma^2).",
    ),
    wrong={
        "1 + sigma as the deviation; variances add, deviations do not": lambda x, sigma: x / (1 + sigma),
        "dividing by the variance 1 + sigma^2, where its root belongs": lambda x, sigma: x / (1 + sigma**2),
        "the way back, from the variance preserving form to sigma space": lambda x, sigma: x * jnp.sqrt(1 + sigma**2),
        "one level for the whole batch": lambda x, sigma: x / jnp.sqrt(1 + jnp.mean(jnp.asarray(sigma)) ** 2),
    },
)


@preserving.check
def test_it_is_the_form_of_ddpm(f):
    """x0 + sigma * noise becomes sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise, alpha_bar = 1 / (1 + sigma^2)."""
    x0, noise, alpha_bar = unit(4, 3), unit(4, 3, seed=1), 0.36
    sigma = np.float32(np.sqrt((1 - alpha_bar) / alpha_bar))
    np.testing.assert_allclose(f(x0 + sigma * noise, sigma), 0.6 * x0 + 0.8 * noise, rtol=1e-5, atol=1e-6)


@preserving.check
def test_the_limits_are_the_picture_and_the_noise(f):
    """Each example has a level of its own: at 0 the picture stays as it is, at 4096 what is left is the noise."""
    x0, noise, sigma = unit(2, 3, 3, seed=2), unit(2, 3, 3, seed=3), np.float32([0, 4096]).reshape(2, 1, 1)
    np.testing.assert_allclose(f(x0 + sigma * noise, sigma), np.stack([x0[0], noise[1]]), rtol=1e-3, atol=2e-3)


def _blend(part=shares, factor=lambda s, sigma: s**2 / (s**2 + sigma**2)):
    """The denoiser with one thing changed: what weighs the parts, or how far each goes from its mean to x."""

    def denoise(mixture, x, sigma):
        said = mixture.means + factor(mixture.spread, sigma) * (x[..., None, :] - mixture.means)
        return jnp.sum(part(mixture, x, sigma)[..., None] * said, axis=-2)

    return denoise


def _alike(mixture, x, sigma):
    return shares(mixture._replace(weights=np.ones_like(mixture.weights)), x, sigma)


denoising = Exercise(
    "01.3",
    "ldm.mixture:denoise",
    minutes=15,
    lines=3,
    hints=(
        "One part first: between its mean and x, nearer to x the narrower the noise is beside the part.",
        "Part k says m_k + s^2 / (s^2 + sigma^2) * (x - m_k); x[..., None, :] - means is [..., K, D].",
        "Weigh what the parts say with shares(mixture, x, sigma) [..., K], and sum over K.",
    ),
    wrong={
        "the answer of the likeliest part alone; the mean of the posterior weighs all of them": _blend(
            lambda mixture, x, sigma: jax.nn.one_hot(shares(mixture, x, sigma).argmax(-1), len(mixture.weights))
        ),
        "the mixture's weights, where the shares given this x belong": _blend(
            lambda mixture, x, sigma: jnp.asarray(mixture.weights)
        ),
        "shares that forget the mixture's weights": _blend(_alike),
        "the means of the parts, as if each were a point": _blend(factor=lambda s, sigma: 0.0),
        "sigma^2 / (s^2 + sigma^2), where s^2 / (s^2 + sigma^2) belongs": _blend(
            factor=lambda s, sigma: sigma**2 / (s**2 + sigma**2)
        ),
    },
)


@denoising.check
def test_one_gaussian_draws_towards_its_mean(f):
    """Of one Gaussian N(m, s^2) the mean of x0 given x is m + s^2 / (s^2 + sigma^2) * (x - m)."""
    x, mean = 2 * unit(3, 5, 2), np.float32([0.5, -1.0])
    np.testing.assert_allclose(f(ROUND, x, np.float32(0.8)), mean + 0.36 * (x - mean), rtol=1e-4, atol=1e-5)


@denoising.check
def test_two_points_give_a_tanh(f):
    """Of two points -1 and 1 with weights 0.2 and 0.8 it is tanh(x / sigma^2 + log(0.8 / 0.2) / 2)."""
    x = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    np.testing.assert_allclose(f(POINTS, x, np.float32(0.9)), np.tanh(x / 0.81 + np.log(4) / 2), rtol=1e-4, atol=1e-5)


def _steepness(mixture, x, sigma):
    parts = ((x[..., None, :] - mixture.means) ** 2).sum(-1) / (2 * (mixture.spread**2 + sigma**2))
    density = jnp.sum(mixture.weights * jnp.exp(-parts), axis=-1) / (2 * jnp.pi * sigma**2) ** (x.shape[-1] / 2)
    return density[..., None] * uphill(mixture, x, sigma)


def field(f) -> np.ndarray:
    """The score of the ring as colours: right and left red, up and down green."""
    side = np.linspace(-2, 2, 96, dtype=np.float32)
    x = np.stack(np.meshgrid(side, -side), axis=-1)
    arrows = 0.5 + 0.5 * np.tanh(0.3 * np.asarray(f(ring(), x, np.float32(0.3))))
    return (255 * np.concatenate([arrows, np.full_like(arrows[..., :1], 0.5)], axis=-1)).astype(np.uint8)


scoring = Exercise(
    "01.4",
    "ldm.mixture:score",
    minutes=10,
    lines=2,
    hints=(
        "Tweedie's formula: E[x0 | x] = x + sigma^2 * score. You have E[x0 | x].",
        "(denoise(mixture, x, sigma) - x) / sigma**2, with your own denoise of this file.",
        "To allow sigma = 0 as the library does: weigh (m_k - x) / (s^2 + sigma^2) with the shares.",
    ),
    wrong={
        "Tweedie's formula with sigma, where sigma^2 belongs": lambda mixture, x, sigma: (
            (best(mixture, x, sigma) - x) / sigma
        ),
        "x - E[x0 | x]: that is the noise, which points downhill": lambda mixture, x, sigma: -uphill(mixture, x, sigma),
        "the gradient of the density, where that of its logarithm belongs": _steepness,
        "the score of points: the parts' own spread is left out": lambda mixture, x, sigma: uphill(
            mixture._replace(spread=np.float32(0)), x, sigma
        ),
    },
    show=field,
)


@scoring.check
def test_one_gaussian_pulls_like_a_spring(f):
    """Of one Gaussian N(m, s^2) under noise of level 1 the score is (m - x) / (s^2 + 1)."""
    x = 2 * unit(3, 5, 2)
    np.testing.assert_allclose(f(ROUND, x, np.float32(1)), (np.float32([0.5, -1]) - x) / 1.36, rtol=1e-4, atol=1e-5)


@scoring.check
def test_it_is_the_slope_of_the_log_density(f):
    """Between two places the score is the slope of log p: here of two points under noise of level 0.4, in NumPy."""
    x, h = np.linspace(-1.5, 1.5, 13), 1e-4
    log_p = lambda x: np.log(0.2 * np.exp(-((x + 1) ** 2) / 0.32) + 0.8 * np.exp(-((x - 1) ** 2) / 0.32))
    slope = (log_p(x + h) - log_p(x - h)) / (2 * h)
    got = f(POINTS, x[:, None].astype(np.float32), np.float32(0.4))
    np.testing.assert_allclose(np.asarray(got)[:, 0], slope, rtol=1e-3, atol=1e-4)


noise_of = Exercise(
    "01.5",
    "ldm.mixture:eps_from_score",
    minutes=5,
    lines=1,
    hints=(
        "x = x0 + sigma * noise, so the mean of the noise given x is (x - E[x0 | x]) / sigma.",
        "Put Tweedie's formula in: x - E[x0 | x] = -sigma^2 * score, then divide by sigma.",
    ),
    wrong={
        "+sigma * score: the noise points away from the data, the score towards them": lambda score, sigma: (
            sigma * score
        ),
        "-sigma^2 * score: the whole way from E[x0 | x] to x, not in units of sigma": lambda score, sigma: (
            -(sigma**2) * score
        ),
        "-score / sigma": lambda score, sigma: -score / sigma,
        "-sqrt(1 - alpha_bar) * score, which wants the score of the variance preserving x_t": lambda score, sigma: (
            -sigma / jnp.sqrt(1 + sigma**2) * score
        ),
    },
)


@noise_of.check
def test_at_level_one_a_gaussian_shares_the_distance(f):
    """For x0 ~ N(m, s^2) and sigma = 1 the noise in x is (x - m) / (s^2 + 1) on average; the score is minus that."""
    x = unit(4, 2)
    np.testing.assert_allclose(f((0.5 - x) / 1.36, np.float32(1)), (x - 0.5) / 1.36, rtol=1e-5, atol=1e-6)


@noise_of.check
def test_the_noise_around_a_point_is_known(f):
    """If all data are one point, x = sigma * noise has score -noise / sigma, and the noise comes back: each level."""
    noise, sigma = unit(3, 4), np.float32([[0.01], [0.02], [0.03]])
    np.testing.assert_allclose(f(-noise / sigma, sigma), noise, rtol=1e-3)


def _walk(up, shake, fresh=True):
    def walk(score, key, x, step, steps):
        for i in range(steps):
            noise = jax.random.normal(jax.random.fold_in(key, i if fresh else 0), x.shape)
            x = x + up * step * score(x) + jnp.sqrt(shake * step) * noise
        return x

    return walk


walking = Exercise(
    "01.6",
    "ldm.mixture:langevin",
    minutes=15,
    lines=5,
    hints=(
        "One step: x + step * score(x) + sqrt(2 * step) * noise. A Python loop will do; fori_loop compiles.",
        "Step i's noise is jax.random.normal(jax.random.fold_in(key, i), x.shape), i from 0.",
        "def walk(i, x): ...; return jax.lax.fori_loop(0, steps, walk, x)",
    ),
    wrong={
        "sqrt(step), where sqrt(2 * step) belongs: the points end too cold": _walk(1, 1),
        "half a step of score with the noise of a whole one: two papers' step sizes in one line": _walk(0.5, 2),
        "a walk downhill": _walk(-1, 2),
        "no noise: every point climbs to a mode and stays there": _walk(1, 0),
        "the same noise at every step": _walk(1, 2, fresh=False),
    },
)


@walking.check
def test_without_a_slope_the_noises_add_up(f):
    """Where the score is 0, three steps of 0.5 add the three noises of fold_in(key, 0), 1 and 2 to x."""
    key, x = jax.random.key(5), unit(4, 2)
    noises = [jax.random.normal(jax.random.fold_in(key, i), (4, 2)) for i in range(3)]
    np.testing.assert_allclose(f(jnp.zeros_like, key, x, 0.5, 3), x + sum(noises), rtol=1e-4, atol=1e-5)


@walking.check
def test_from_far_away_it_comes_straight_down(f):
    """A million deviations away noise is nothing: with score -x, two steps of 0.1 leave 0.9^2 of x."""
    x = np.float32([[1e6, -2e6], [3e6, 4e6]])
    np.testing.assert_allclose(f(lambda x: -x, jax.random.key(0), x, 0.1, 2), 0.81 * x, rtol=1e-5)
