"""Laws of the noise schedule: tables, the way between sigma and t, and the levels that samplers visit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm import samplers, schedule
from ldm import spacing as spacings
from ldm.schedule import NoiseSchedule

SD = NoiseSchedule()
SCHEDULES = {
    "SD": SD,
    "zero terminal snr": NoiseSchedule(zero_terminal_snr=True),
    "DDPM": NoiseSchedule(betas="linear", beta_start=1e-4, beta_end=0.02),
    "cosine": NoiseSchedule(betas="squaredcos_cap_v2"),
    "short": NoiseSchedule(train_steps=10),
}
each_schedule = pytest.mark.parametrize("numbers", SCHEDULES.values(), ids=SCHEDULES)


def test_alpha_bar_is_the_running_product():
    product = 1.0
    for beta, alpha_bar in zip(schedule.beta_table(SD), schedule.alpha_bars(SD), strict=True):
        product *= 1 - beta
        assert alpha_bar == np.float32(product)


def test_stable_diffusions_own_figures():
    assert schedule.beta_table(SD)[[0, -1]] == pytest.approx([0.00085, 0.012], rel=1e-12)
    assert schedule.alpha_bars(SD)[-1] == pytest.approx(0.0046601, rel=1e-5)
    assert schedule.sigmas(SD)[[0, -1]] == pytest.approx([0.02916716, 14.614641], rel=1e-6)


@each_schedule
def test_tables_are_monotone_float32_and_in_step(numbers: NoiseSchedule):
    alpha_bar, sigma = schedule.alpha_bars(numbers), schedule.sigmas(numbers)
    assert alpha_bar.dtype == sigma.dtype == np.float32
    assert alpha_bar.shape == sigma.shape == (numbers.train_steps,)
    assert (np.diff(alpha_bar) < 0).all() and (np.diff(sigma) > 0).all() and np.isfinite(sigma).all()
    np.testing.assert_allclose(1 / (1 + sigma.astype(np.float64) ** 2), alpha_bar, rtol=1e-6)


def test_the_cosine_schedule_follows_its_curve_until_beta_is_capped():
    t = np.arange(1, 1001) / 1000
    curve = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bars(SCHEDULES["cosine"])[:990], curve[:990], rtol=1e-5)
    assert schedule.beta_table(SCHEDULES["cosine"]).max() == 0.999


def test_zero_terminal_snr_keeps_the_start_and_empties_the_end():
    plain, zero = schedule.alpha_bars(SD), schedule.alpha_bars(SCHEDULES["zero terminal snr"])
    assert zero[0] == pytest.approx(plain[0], rel=1e-6)
    assert zero[-1] == 2.0**-24 and (zero[1:] < plain[1:]).all()
    assert schedule.sigmas(SCHEDULES["zero terminal snr"])[-1] == pytest.approx(4096, rel=1e-6)
    assert schedule.rescale_to_zero_terminal_snr(np.array([0.81, 0.25, 0.01]))[1] == pytest.approx(
        (0.4 * 0.9 / 0.8) ** 2
    )


def test_why_the_schedule_is_float32():
    """In bfloat16 alpha_bar[0] is 1, so there is no noise at t = 0; and 494 whole t below 1000 do not exist."""
    assert float(jnp.asarray(schedule.alpha_bars(SD)[0], jnp.bfloat16)) == 1.0
    t = jnp.arange(1000, dtype=jnp.float32)
    assert int((t.astype(jnp.bfloat16).astype(jnp.float32) != t).sum()) == 494


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"betas": "scaled-linear"}, "unknown beta schedule 'scaled-linear'; did you mean 'scaled_linear'?"),
        ({"prediction": "velocity"}, r"unknown prediction type 'velocity' .*epsilon, v_prediction, sample"),
        ({"train_steps": 1}, "at least 2, got 1"),
        ({"beta_end": 1.5}, "0.00085 and 1.5"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(numbers: dict, words: str):
    with pytest.raises(ValueError, match=words):
        NoiseSchedule(**numbers)


# ---- sigma <-> t ----


@each_schedule
def test_t_of_a_training_level_is_the_whole_number_exactly(numbers: NoiseSchedule):
    t = np.arange(numbers.train_steps)
    assert np.array_equal(schedule.t_at(numbers, schedule.sigmas(numbers)), t)
    np.testing.assert_allclose(schedule.sigma_at(numbers, t), schedule.sigmas(numbers), rtol=2e-6)


@settings(deadline=None)  # the first example of each schedule compiles
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1))
def test_sigma_at_and_t_at_are_inverse(name: str, place: float):
    numbers = SCHEDULES[name]
    t = place * (numbers.train_steps - 1)
    assert float(schedule.t_at(numbers, schedule.sigma_at(numbers, t))) == pytest.approx(t, abs=2e-3)


def test_both_are_clamped_and_run_under_jit():
    there, back = jax.jit(schedule.sigma_at, static_argnums=0), jax.jit(schedule.t_at, static_argnums=0)
    np.testing.assert_allclose(there(SD, np.array([-5.0, 2000.0])), schedule.sigmas(SD)[[0, -1]], rtol=2e-6)
    assert np.array_equal(back(SD, np.array([0.0, 1e-9, 1e9])), [0, 0, 999])


def test_sigma_is_geometric_between_timesteps():
    low, high = schedule.sigmas(SD)[:2]
    assert float(schedule.sigma_at(SD, 0.5)) == pytest.approx(float(low * high) ** 0.5, rel=1e-6)
    assert float(schedule.t_at(SD, (low * high) ** 0.5)) == pytest.approx(0.5, abs=1e-4)


# ---- levels ----


@pytest.mark.parametrize("spacing", spacings.SPACINGS)
@pytest.mark.parametrize("name", spacings.CONVENTIONS)
def test_levels_of_every_number_of_steps(name: str, spacing: str):
    lowest, highest = schedule.sigmas(SD)[[0, -1]]
    for steps in range(1, (spacings.LCM_GRID if spacing == "lcm" else 1000) + 1):
        levels = spacings.levels(SD, name, spacing, steps)
        assert levels.shape == (steps + 1,) and levels.dtype == np.float32
        assert (np.diff(levels) < 0).all(), steps
        assert levels[0] <= highest * (1 + 3e-5) and levels[-2] >= lowest * (1 - 1e-6)
        assert levels[-1] in ((0, lowest) if name in ("ddim", "plms") else (0,))


@each_schedule
@pytest.mark.parametrize("spacing", spacings.SPACINGS)
def test_levels_of_every_schedule(numbers: NoiseSchedule, spacing: str):
    if spacing == "lcm" and numbers.train_steps < spacings.LCM_GRID:
        return  # there is no such grid
    most = spacings.LCM_GRID if spacing == "lcm" else numbers.train_steps
    for name in spacings.CONVENTIONS:
        for steps in {1, 2, 7, 10, most - 1, most}:
            levels = spacings.levels(numbers, name, spacing, steps)
            assert levels.shape == (steps + 1,) and (np.diff(levels) < 0).all()


def timesteps(name: str, spacing: str, steps: int) -> list[float]:
    """What the network would be told at each step."""
    return np.asarray(schedule.t_at(SD, spacings.levels(SD, name, spacing, steps)[:-1])).tolist()


def test_timesteps_are_those_of_the_public_tools():
    assert timesteps("ddim", "leading", 5) == [801, 601, 401, 201, 1]
    assert timesteps("euler", "leading", 5) == [801, 601, 401, 201, 1]
    assert timesteps("dpmpp_2m", "leading", 5) == [831, 665, 499, 333, 167]
    assert timesteps("ddim", "trailing", 5) == [999, 799, 599, 399, 199]
    assert timesteps("ddpm", "linspace", 5) == [999, 749, 500, 250, 0]
    assert timesteps("dpmpp_2m", "linspace", 4) == [999, 749, 500, 250]
    assert timesteps("euler", "uniform", 5) == pytest.approx([999, 749.25, 499.5, 249.75, 0], abs=1e-3)
    assert timesteps("euler", "karras", 5)[::4] == [999, 0]
    assert timesteps("lcm", "lcm", 4) == [999, 759, 499, 259]
    assert timesteps("euler", "sgm_uniform", 3) == pytest.approx([999, 666, 333], abs=1e-3)
    np.testing.assert_allclose(timesteps("euler", "ays", 10), [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], atol=1)


def test_where_ddim_stops():
    lowest, to_zero = schedule.sigmas(SD)[0], dataclasses.replace(SD, final_alpha_one=True)
    assert spacings.levels(SD, "ddim", "leading", 20)[-1] == lowest
    assert spacings.levels(to_zero, "ddim", "leading", 20)[-1] == 0
    assert spacings.levels(SD, "ddim", "karras", 20)[-2:].tolist() == [lowest, 0]


def test_karras_levels_are_even_in_the_seventh_root():
    roots = spacings.karras_sigmas(9, 0.03, 14.6) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (0.03 ** (1 / 7) - 14.6 ** (1 / 7)) / 8, rtol=1e-9)
    np.testing.assert_allclose(spacings.karras_sigmas(4, 1.0, 7.0, rho=1.0), [7, 5, 3, 1])


def test_karras_spends_more_steps_at_low_noise():
    below_one = {s: int((spacings.levels(SD, "euler", s, 30)[:-1] < 1).sum()) for s in ("karras", "uniform")}
    assert below_one == {"karras": 14, "uniform": 11}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eulr", "leading", 20), "unknown sampler 'eulr'; did you mean 'euler'?"),
        (("euler", "leadin", 20), "unknown spacing 'leadin'; did you mean 'leading'?"),
        (("euler", "xyz", 20), r"unknown spacing 'xyz' \(known: leading, trailing"),
        (("euler", "leading", 0), "between 1 and 1000, got 0"),
        (("euler", "leading", 1001), "between 1 and 1000, got 1001"),
        (("lcm", "lcm", 51), "spacing 'lcm' has at most 50 steps, got 51"),
    ],
)
def test_levels_that_cannot_be_are_refused(arguments: tuple, words: str):
    with pytest.raises(ValueError, match=words):
        spacings.levels(SD, *arguments)


def test_initial_scale():
    unit_variance = 17**0.5
    assert {n: spacings.initial_scale(n, "leading", 4.0) for n in spacings.CONVENTIONS} == dict.fromkeys(
        spacings.CONVENTIONS, unit_variance
    )
    own = ("ddim", "ddpm", "plms", "lcm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc")
    for spacing in set(spacings.SPACINGS) - {"leading"}:
        scales = {name: spacings.initial_scale(name, spacing, 4.0) for name in spacings.CONVENTIONS}
        assert scales == {name: unit_variance if name in own else 4.0 for name in spacings.CONVENTIONS}


def test_between_the_entries_of_a_published_table():
    """Ten steps are the table; twenty pass through it, with geometric means between."""
    table = np.array(spacings.ALIGN_YOUR_STEPS["ays"])
    np.testing.assert_allclose(spacings.ays_sigmas(10), table[:-1], rtol=1e-12)
    np.testing.assert_allclose(spacings.ays_sigmas(20)[::2], table[:-1], rtol=1e-12)
    np.testing.assert_allclose(spacings.ays_sigmas(20)[1::2], np.sqrt(table[1:] * table[:-1]), rtol=1e-12)


def test_every_sampler_has_its_convention():
    assert set(spacings.CONVENTIONS) == set(samplers.SAMPLERS)
