"""Lesson 04, samplers: what its exercises must do."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm.course import Exercise
from ldm.samplers.multistep import length, no_history, remember
from ldm.spacing import karras_sigmas as right_karras

M, S = 0.3, 0.5  # one Gaussian: x0 ~ N(M, S^2)


def gaussian(x, sigma):
    """E[x0 | x] of that Gaussian; not a number at sigma = 0, so that asking there shows."""
    return jnp.where(sigma > 0, M + S**2 / (S**2 + sigma**2) * (x - M), jnp.nan)


def slope(x, sigma):
    """dx/dsigma of its ODE, (x - E[x0 | x]) / sigma, with the fraction reduced by hand."""
    return (x - M) * sigma / (S**2 + sigma**2)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    """Unit noise, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def level(value: float) -> jax.Array:
    """sigma [] float32."""
    return jnp.asarray(value, jnp.float32)


euler = Exercise(
    "04.1",
    "ldm.samplers.one_step:euler_step",
    minutes=5,
    lines=2,
    hints=(
        "The slope is dx/dsigma where the step begins; the step's length in sigma is sigma_next - sigma, below 0.",
        "x + (sigma_next - sigma) * (x - x0) / sigma",
    ),
    wrong={
        "(sigma_next / sigma)^2 in place of sigma_next / sigma": lambda x, x0, s, n: x0 + (n / s) ** 2 * (x - x0),
        "sigma - sigma_next, which walks away from x0": lambda x, x0, s, n: x + (s - n) * (x - x0) / s,
        "a last step that stops short of 0": lambda x, x0, s, n: x0 + jnp.maximum(n, 0.05) / s * (x - x0),
        "the first point's sigma for all": lambda x, x0, s, n: x0 + jnp.ravel(n)[0] / jnp.ravel(s)[0] * (x - x0),
    },
)


@euler.check
def test_euler_is_exact_for_a_single_picture(f):
    """If all data is one picture, x = x0 + sigma * noise goes to x0 + sigma_next * noise; a level for each point."""
    x0, noise = unit(3, 2), unit(3, 2, seed=1)
    sigma, after = np.float32([[8], [0.5], [0.7]]), np.float32([[4], [0.1], [2.0]])
    got = f(x0 + sigma * noise, x0, jnp.asarray(sigma), jnp.asarray(after))
    np.testing.assert_allclose(got, x0 + after * noise, rtol=1e-4, atol=1e-4)


@euler.check
def test_euler_ends_at_the_prediction(f):
    """A step to sigma = 0 gives x0 itself."""
    x, x0 = unit(4, 2), unit(4, 2, seed=1)
    np.testing.assert_allclose(f(x, x0, level(0.03), level(0.0)), x0, atol=1e-5)


def _heun(at=lambda x, guess: guess, mean=lambda a, b: (a + b) / 2, guarded=True, branch=None):
    """heun_step with one thing changed."""

    def step(denoise, x, x0, s, n):
        first = (x - x0) / s
        guess = x + (n - s) * first
        if branch is not None and branch(n):
            return guess
        there = at(x, guess)
        better = x + (n - s) * mean(first, (there - denoise(there, n)) / n)
        return jnp.where(n > 0, better, guess) if guarded else better

    return step


heun = Exercise(
    "04.2",
    "ldm.samplers.one_step:heun_step",
    minutes=15,
    lines=6,
    hints=(
        "Make Euler's step: that is a guess. Ask the network there, and take the slope there too.",
        "Go from x, not from the guess, over the whole step by the mean of the two slopes.",
        "jax.lax.cond(sigma_next > 0, corrected, lambda: guess) keeps the division by sigma_next away from 0.",
    ),
    wrong={
        "the slope at the end alone, where the mean of both belongs": _heun(mean=lambda a, b: b),
        "the second slope taken at x, where it belongs to the guess": _heun(at=lambda x, guess: x),
        "a second slope at sigma 0 too, where it is 0 / 0": _heun(guarded=False),
        "a Python `if` on sigma_next, which jit cannot know yet": _heun(branch=lambda n: n == 0),
    },
)


@heun.check
def test_heun_takes_the_mean_of_both_slopes(f):
    """On a Gaussian the step is x + h * (slope at x + slope at Euler's guess) / 2, h = sigma_next - sigma."""
    x = unit(3, 4) * 3
    for sigma, after in ((3.0, 1.2), (0.8, 0.5)):
        guess = x + (after - sigma) * slope(x, sigma)
        wanted = x + (after - sigma) * (slope(x, sigma) + slope(guess, after)) / 2
        got = f(gaussian, x, gaussian(x, level(sigma)), level(sigma), level(after))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@heun.check
def test_heun_ends_at_the_prediction(f):
    """The step to sigma = 0 is Euler's: it gives x0, whatever the network would say at 0."""
    x, x0 = unit(3, 4), unit(3, 4, seed=1)
    np.testing.assert_allclose(f(gaussian, x, x0, level(0.03), level(0.0)), x0, atol=1e-5)


@heun.check
def test_heun_runs_under_jit(f):
    """jax.jit(f) gives what f gives: levels are not known when the program is made."""
    x, levels = unit(3, 4), (level(2.0), level(1.0))
    step = lambda *levels: f(gaussian, x, x / 2, *levels)
    np.testing.assert_allclose(jax.jit(step)(*levels), step(*levels), rtol=1e-4, atol=1e-5)


def _2m(weight=lambda h, last, s, n, before: h / (2 * last), first=0.0, last_step=True, kept=None, fresh=1.0):
    """dpmpp_2m_step with one thing changed."""

    def step(x, x0, s, n, past, noise=0.0, eta=0.0):
        h, h_last = length(s, n), length(past.sigma[0], s)
        w = jnp.where(jnp.isfinite(past.sigma[0]), weight(h, h_last, s, n, past.sigma[0]), first)
        ahead = x0 + jnp.where((n > 0) | (not last_step), w, 0.0) * (x0 - past.x0[0])
        r = n / s
        share = r ** (1 + eta) if kept is None else kept(r, eta)
        return share * x + (1 - share) * ahead + fresh * n * jnp.sqrt(1 - r ** (2 * eta)) * noise

    return step


multistep = Exercise(
    "04.3",
    "ldm.samplers.multistep:dpmpp_2m_step",
    minutes=25,
    lines=6,
    hints=(
        "Euler's step is r x + (1 - r) x0 with r = sigma_next / sigma. Here x0 is replaced by x0 extrapolated.",
        "past holds three steps, the newest first: past.x0[0] was predicted at past.sigma[0]: inf if there was "
        "none. ldm.samplers.multistep.length(sigma, sigma_next) is h; inf from sigma inf, large but finite to 0.",
        "ahead = x0 + h / (2 h_last) * (x0 - past.x0[0]); with jnp.where, the weight is 0 for sigma_next = 0.",
        "With eta: r^(1 + eta) of x is kept, and sigma_next * sqrt(1 - r^(2 eta)) * noise is added.",
    ),
    wrong={
        "a prediction that never was, 0, taken for the last one": _2m(first=0.5),
        "x0 extrapolated to the end of the step, not to its middle": _2m(lambda h, last, *_: h / last),
        "3/2 x0 - 1/2 of the last, which is right for equal steps only": _2m(lambda *_: 0.5),
        "steps measured in sigma, not in log(sigma)": _2m(lambda h, last, s, n, b: (s - n) / (2 * (b - s))),
        "an extrapolation to sigma 0, which is infinitely far in log(sigma)": _2m(last_step=False),
        "r kept of x, whatever eta: the noise comes on top of the noise that was there": _2m(kept=lambda r, eta: r),
        "a step that drops its noise": _2m(fresh=0.0),
    },
)


@multistep.check
def test_2m_begins_with_euler(f):
    """With nothing to remember (past.sigma inf) the step is r x + (1 - r) x0."""
    x, x0 = unit(2, 3), unit(2, 3, seed=1)
    got = f(x, x0, level(2.0), level(0.5), no_history(x))
    np.testing.assert_allclose(got, 0.25 * x + 0.75 * x0, rtol=1e-4, atol=1e-5)


@multistep.check
def test_2m_extrapolates_to_the_middle_in_log_sigma(f):
    """If x0 changes by `rise` for each unit of log(sigma) down, x0 in the middle of the step stands for all of it."""
    x, x0, rise = unit(2, 3), unit(2, 3, seed=1), unit(2, 3, seed=2)
    for before, sigma, after in ((4.0, 2.0, 0.5), (2.0, 1.0, 0.7)):
        last = x0 - rise * np.float32(np.log(before / sigma))
        middle = x0 + rise * np.float32(np.log(sigma / after) / 2)
        past = remember(no_history(x), x, last, level(before))
        got = f(x, x0, level(sigma), level(after), past)
        np.testing.assert_allclose(got, after / sigma * x + (1 - after / sigma) * middle, rtol=1e-4, atol=1e-4)


@multistep.check
def test_2m_ends_at_the_prediction(f):
    """The step to sigma = 0 gives x0, not an extrapolation."""
    x, x0 = unit(2, 3), unit(2, 3, seed=1)
    past = remember(no_history(x), x, x, level(0.3))
    np.testing.assert_allclose(f(x, x0, level(0.1), level(0.0), past), x0, atol=1e-5)


@multistep.check
def test_2m_with_noise_has_the_variance_of_its_level(f):
    """eta = 1, data that is one picture: r^2 sigma of its noise stays, and fresh noise fills up to sigma_next."""
    x0, old, new = unit(2, 3), unit(2, 3, seed=1), unit(2, 3, seed=2)
    sigma, after, r = 2.0, 1.2, 0.6
    past = remember(no_history(x0), x0, x0, level(5.0))
    got = f(x0 + np.float32(sigma) * old, x0, level(sigma), level(after), past, jnp.asarray(new), 1.0)
    wanted = x0 + r * after * old + np.sqrt(after**2 - (r * after) ** 2) * new
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def _split(share=lambda eta: eta**2, down=None):
    """ancestral_sigmas with another share of the posterior's variance for the noise, or another way down."""

    def split(s, n, eta):
        part, r = share(eta), n / s
        up = n * jnp.sqrt(part * (1 - r**2))
        return n * jnp.sqrt(1 - part + part * r**2) if down is None else down(s, n, up), up

    return split


ancestral = Exercise(
    "04.4",
    "ldm.samplers.one_step:ancestral_sigmas",
    minutes=15,
    lines=4,
    hints=(
        "Fresh noise is independent of what is left of the old: variances add up, down^2 + up^2 = sigma_next^2.",
        "up = eta * sigma_next * sqrt(1 - r^2), r = sigma_next / sigma.",
        "down^2 / sigma_next^2 is the sum (1 - eta)(1 + eta) + (eta r)^2: so no two near numbers are subtracted.",
    ),
    wrong={
        "eta as a share of the variance, where it is one of the deviation": _split(lambda eta: eta),
        "eta = 1's way down, sigma_next^2 / sigma, at any eta": _split(down=lambda s, n, up: n * n / s),
        "sqrt(sigma_next^2 - up^2): no digits left in float32": _split(down=lambda s, n, up: (n**2 - up**2) ** 0.5),
    },
)


@ancestral.check
def test_ancestral_variances_add_up(f):
    """At eta = 0.4, down^2 + up^2 = sigma_next^2: after the noise x is at its level."""
    sigma, after = jnp.float32([9.0, 2.0, 0.5]), jnp.float32([6.0, 0.7, 0.0])
    down, up = (np.asarray(part, float) for part in f(sigma, after, level(0.4)))
    np.testing.assert_allclose(down**2 + up**2, np.asarray(after, float) ** 2, rtol=1e-5)


@ancestral.check
def test_ancestral_noise_is_a_share_of_ddpms(f):
    """up is eta times the deviation of DDPM's posterior: 1 / up^2 = 1 / sigma_next^2 + 1 / (sigma^2 - sigma_next^2)."""
    for eta in (0.0, 0.3, 1.0):
        wanted = eta / np.sqrt(1 / 0.7**2 + 1 / (2.0**2 - 0.7**2))
        np.testing.assert_allclose(f(level(2.0), level(0.7), level(eta))[1], wanted, rtol=1e-5)


@ancestral.check
def test_ancestral_keeps_its_digits(f):
    """At eta = 1, down = sigma_next^2 / sigma to four digits, also from 14.6 to 0.001 in one step."""
    np.testing.assert_allclose(f(level(14.6), level(0.001), level(1.0))[0], 0.001**2 / 14.6, rtol=1e-4)


karras = Exercise(
    "04.5",
    "ldm.spacing:karras_sigmas",
    minutes=10,
    lines=2,
    hints=(
        "Even steps on a bent ruler: bend (power 1 / rho), space evenly, unbend (power rho).",
        "np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho",
    ),
    wrong={
        "levels that rise; sampling goes from noise down": lambda *a, **k: right_karras(*a, **k)[::-1],
        "even steps in log(sigma): rho without end": lambda n, lo, hi, rho=7.0: np.geomspace(hi, lo, n),
        "7, whatever rho says": lambda n, lo, hi, rho=7.0: right_karras(n, lo, hi),
    },
)


@karras.check
def test_karras_is_even_in_the_root(f):
    """Between 128 and 1 lies 1.5^7; with rho = 2, between 9 and 1, 4. The highest comes first, the lowest last."""
    np.testing.assert_allclose(f(3, 1.0, 128.0), [128, 1.5**7, 1], rtol=1e-5)
    np.testing.assert_allclose(f(3, 1.0, 9.0, rho=2.0), [9, 4, 1], rtol=1e-5)


exponential = Exercise(
    "04.6",
    "ldm.spacing:exponential_sigmas",
    minutes=5,
    lines=1,
    hints=(
        "The same factor at every step: evenly spaced in log(sigma).",
        "np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), steps))",
    ),
    wrong={
        "even steps in sigma, not in its logarithm": lambda n, lo, hi: np.linspace(hi, lo, n),
        "levels that rise; sampling goes from noise down": lambda n, lo, hi: np.geomspace(lo, hi, n),
        "log10 on the way in, exp on the way out": lambda n, lo, hi: np.exp(np.linspace(np.log10(hi), np.log10(lo), n)),
    },
)


@exponential.check
def test_exponential_steps_are_equal_factors(f):
    """From 100 to 0.01 in five levels each is a tenth of the one before it, both ends included."""
    np.testing.assert_allclose(f(5, 0.01, 100.0), [100, 10, 1, 0.1, 0.01], rtol=1e-5)
