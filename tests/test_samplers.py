"""Laws of the samplers: their orders, what they converge to, and which of them are the same."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import MEAN, ROOM, SD, SPREAD, distance, gaussian, karras, mixture, moments, plan_of, run, unit

from ldm import samplers, schedule
from ldm import spacing as spacings
from ldm.samplers import multistep, one_step

ANCESTRAL = ("ddpm", "euler_a", "dpm2_a", "dpmpp_2s_a")
STOCHASTIC = (*ANCESTRAL, "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm")
NAMES = sorted(samplers.SAMPLERS)


ORDERS = [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm2", 2), ("dpmpp_2m", 2), ("plms", 2), ("unipc", 3)]
ORDERS += [("dpm2_a", 2), ("dpmpp_2s_a", 2), ("dpmpp_sde", 2), ("dpmpp_2m_sde", 2)]  # eta = 0
ORDERS += [("lms", 3.5), ("dpmpp_3m_sde", 1.85)]
"""lms: four slopes, but it begins with one. dpmpp_3m_sde: its second difference has half the weight that would make it
third order (see `test_what_would_make_it_third_order`); we keep to what everybody runs."""


# ---- accuracy ----


@functools.partial(jax.jit, static_argnums=0)
def in_double_precision(name: str, plan: samplers.Plan, start: jax.Array) -> jax.Array:
    """A run without noise on the mixture, in sigma space."""
    x = samplers.sample(samplers.SAMPLERS[name], mixture, plan.scale * start, plan, lambda *_: jnp.zeros_like(start))
    return x * jnp.sqrt(1 + plan.levels[plan.steps] ** 2)


@functools.cache
def end_of_the_mixture(name: str, steps: int, room: int = 256) -> jax.Array:
    """By Karras levels from Stable Diffusion's highest to its lowest, not to 0: that step is of first order."""
    table = schedule.noise_levels(SD)
    levels = np.pad(spacings.karras_sigmas(steps + 1, table[0], table[-1]), (0, room - steps))
    return in_double_precision(
        name, samplers.Plan(levels, np.int32(steps), np.float64(0), levels[0]), unit().astype(float)
    )


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_order_of_convergence(name: str, order: int):
    """Twice the steps divide the error by 2^order, on a mixture with exact score; the truth is a very fine run."""
    with jax.enable_x64(True):
        truth = end_of_the_mixture("heun", 8000, 8000)
        errors = [distance(end_of_the_mixture(name, n), truth) for n in (64, 128, 256)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    print(name, "errors", errors, "slopes", slopes)
    assert slopes == pytest.approx([order, order], abs=0.3)


def test_what_would_make_it_third_order():
    """k-diffusion's 3M gives the second difference the weight phi3; the integral of t^2/2 asks for 2 phi3."""

    def error(steps: int, factor: float) -> float:
        levels, x, past = np.geomspace(10.0, 0.1, steps + 1), 10 * unit().astype(np.float64), []
        for sigma, after in itertools.pairwise(levels):
            x0, h = MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN), np.log(sigma / after)
            phi2 = np.expm1(-h) / h + 1
            x = after / sigma * x + (1 - after / sigma) * x0
            if past:
                x += phi2 * (x0 - past[-1])
            if len(past) > 1:  # equal steps: divided differences without division
                bend = (x0 - 2 * past[-1] + past[-2]) / 2
                x += (phi2 - factor * (phi2 / h - 0.5)) * bend
            past.append(x0)
        truth = MEAN + np.sqrt((SPREAD**2 + levels[-1] ** 2) / (SPREAD**2 + 100)) * (10 * unit() - MEAN)
        return distance(x, truth)

    slopes = {factor: np.log2(error(32, factor) / error(64, factor)) for factor in (1, 2)}
    assert slopes[1] == pytest.approx(2.2, abs=0.1) and slopes[2] > 3
    few = run("dpmpp_3m_sde", gaussian, plan_of(np.geomspace(10.0, 0.1, 33)), unit())
    truth = MEAN + np.sqrt((SPREAD**2 + 0.01) / (SPREAD**2 + 100)) * (10 * unit() - MEAN)
    assert distance(few, truth) == pytest.approx(error(32, 1), rel=0.05)  # the one that we have


@functools.cache
def truth_of_the_mixture() -> jax.Array:
    """The end of the ODE: Heun's error at 640 steps is some 100 times below what is asked of anyone else here."""
    return run("heun", mixture, karras("heun", ROOM), unit())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STOCHASTIC])
def test_the_ode_converges_with_more_steps(name: str):
    errors = [distance(run(name, mixture, karras(name, n), unit()), truth_of_the_mixture()) for n in (10, 40, 160)]
    print(name, errors)
    floor = 2e-3  # what the truth itself is off by, and float32
    assert errors[2] < max(errors[1] / 3, floor) and errors[1] < max(errors[0] / 3, floor)
    assert errors[2] < 0.02


@pytest.mark.parametrize("name", STOCHASTIC)
def test_ancestral_samplers_never_converge(name: str):
    """Twice the steps give another sample altogether, however many there are; the ODE's are equal to 1 in 100."""

    def change(name: str, steps: int) -> float:
        few, many = (run(name, mixture, karras(name, n), unit()) for n in (steps, 2 * steps))
        return distance(few, many)

    changes, ode = [change(name, n) for n in (20, 80, 320)], change("euler", 320)
    print(name, changes, "ode", ode)
    assert min(changes) > 0.5 and ode < 0.01


@pytest.mark.parametrize(
    ("name", "eta"), [("ddpm", 1.0), ("euler_a", 1.0), ("ddim", 1.0), ("ddim", 0.5), ("ddim", 0.0)]
)
def test_the_mean_and_spread_of_a_gaussian_are_those_computed(name: str, eta: float):
    """65536 numbers, so one standard error is 0.002 of the mean and 0.0014 of the spread; four are allowed."""
    levels = spacings.levels(SD, "euler", "karras", 100)
    x = run(name, gaussian, plan_of(levels, eta), unit(shape=(16, 64, 64, 1)))
    mean, spread = moments(levels, eta)
    print(name, eta, "mean", float(x.mean()), mean, "spread", float(x.std()), spread)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * 0.002)
    assert float(x.std()) == pytest.approx(spread, abs=4 * 0.0014)


def test_ddpm_reproduces_its_target_as_steps_are_added():
    """The spread's error halves as steps double. The ODE keeps what the start, of mean 0, lacks; DDPM forgets it."""
    off = {n: moments(spacings.levels(SD, "euler", "karras", n), 1.0) for n in (250, 500, 1000)}
    limit = SPREAD**2 / np.hypot(SPREAD, schedule.sigmas(SD)[0])  # the last step returns E[x0 | x], narrower than x0
    errors = [limit - off[n][1] for n in off]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1) and errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    assert off[1000] == pytest.approx((MEAN, SPREAD), abs=0.003)
    lacking = MEAN * SPREAD / np.hypot(SPREAD, schedule.sigmas(SD)[-1])
    assert moments(spacings.levels(SD, "euler", "karras", 1000), 0.0)[0] == pytest.approx(MEAN - lacking, abs=1e-3)


def test_the_mixture_is_reproduced():
    """Half of the samples in each mode, each mode with its mean and spread."""
    x = np.asarray(run("dpmpp_2m", mixture, karras("dpmpp_2m", 50), unit(shape=(16, 64, 64, 1))))
    left, right = x[x < 0.1], x[x >= 0.1]
    assert left.size / x.size == pytest.approx(0.5, abs=0.01)
    assert [left.mean(), right.mean()] == pytest.approx([-1.0, 1.2], abs=0.02)
    assert [left.std(), right.std()] == pytest.approx([0.4, 0.4], abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_to_zero_is_the_prediction(name: str):
    start = unit()
    x = run(name, mixture, plan_of([5.0, 0.0], eta=1.0), start)
    np.testing.assert_allclose(x, mixture(5 * start, 5.0), atol=3e-6)


# ---- one thing under several names ----


@pytest.mark.parametrize(
    ("one", "other", "eta"),
    [
        ("ddim", "euler", 0.0),
        ("ddim", "ddpm", 1.0),
        ("ddim", "euler_a", 1.0),
        ("ddim", "euler_a", 0.4),
        ("dpmpp_2m_sde", "dpmpp_2m", 0.0),
        ("dpm2_a", "dpm2", 0.0),
        ("dpmpp_sde", "dpmpp_2s_a", 0.0),
    ],
)
def test_samplers_that_are_the_same(one: str, other: str, eta: float):
    """Same levels, same noise, same sample: to float32's rounding over 30 steps."""
    plan = plan_of(spacings.levels(SD, "euler", "leading", 30), eta)
    first, second = (run(name, mixture, plan, unit(), seed=3) for name in (one, other))
    assert (
        distance(first, second)
        < 1e-5
        < distance(first, run(one, mixture, plan._replace(eta=np.float32(0.7)), unit(), seed=3))
    )


def test_dpmpp_2m_is_euler_with_the_prediction_extrapolated():
    x, x0, x0_last = jnp.asarray(unit(1)), unit(2), unit(3)
    ahead = x0 + 0.5 * (x0 - x0_last)  # equal steps in log(sigma)
    wanted = one_step.euler_step(x, ahead, 2.0, 1.0)
    past = lambda sigma: multistep.remember(multistep.no_history(x), x, x0_last, jnp.float32(sigma))
    np.testing.assert_allclose(multistep.dpmpp_2m_step(x, x0, 2.0, 1.0, past(4.0)), wanted, atol=1e-5)
    for sigma_next, sigma_last in ((0.0, 4.0), (1.0, jnp.inf)):
        first_order = one_step.euler_step(x, x0, 2.0, sigma_next)
        np.testing.assert_allclose(
            multistep.dpmpp_2m_step(x, x0, 2.0, sigma_next, past(sigma_last)), first_order, atol=1e-6
        )


def test_ancestral_sigmas():
    for eta in (0.0, 0.3, 1.0):
        down, up = one_step.ancestral_sigmas(5.0, 2.0, eta)
        assert float(down**2 + up**2) == pytest.approx(4.0, rel=1e-6)
        assert float(up) == pytest.approx(eta * np.sqrt(4 * 21 / 25), rel=1e-6)
    assert [float(v) for v in one_step.ancestral_sigmas(5.0, 0.0, 1.0)] == [0, 0]
    assert float(one_step.ancestral_sigmas(4096.0, 1.0, 1.0)[0]) == pytest.approx(1 / 4096, rel=1e-6)


def test_the_posterior_of_ddpm_in_its_own_variables():
    """DDPM eq. (6, 7), computed from alpha_bar in float64, is `ddpm_step` after rescaling."""
    a, a_next = schedule._alpha_bars(SD)[[500, 480]]
    x_t, x0, noise = (unit(k).astype(np.float64) for k in range(3))
    beta = 1 - a / a_next
    mean = np.sqrt(a_next) * beta / (1 - a) * x0 + np.sqrt(a / a_next) * (1 - a_next) / (1 - a) * x_t
    wanted = mean + np.sqrt((1 - a_next) / (1 - a) * beta) * noise
    sigma, sigma_next = np.sqrt((1 - a) / a), np.sqrt((1 - a_next) / a_next)
    result = one_step.ddpm_step(x_t / np.sqrt(a), x0, np.float32(sigma), np.float32(sigma_next), noise)
    np.testing.assert_allclose(result * np.sqrt(a_next), wanted, atol=1e-5)
