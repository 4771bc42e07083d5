"""Lesson 03, DDIM: what its exercises must do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mistakes_03 import ARC, LEADING, RISING, STEP, TERMINAL, TRAILING

from ldm import mixture
from ldm.course import Exercise
from ldm.schedule import NoiseSchedule, alpha_bars, sigmas
from ldm.spacing import levels

X, X0, NOISE = np.random.default_rng(3).standard_normal((3, 1, 3)).astype(np.float32)
SIGMA, BELOW = jnp.float32(3.0), jnp.float32(1.8)  # one step
SD = NoiseSchedule()


def in_the_plane(step) -> np.ndarray:
    """Where 400 points end after 20 steps of a step at eta 0.5, with the ring's exact denoiser. [200, 200, 3]."""
    ring, at, rng = mixture.ring(), levels(SD, "ddim", "leading", 20), np.random.default_rng(0)
    x = jnp.asarray(at[0] * rng.standard_normal((400, 2)), jnp.float32)
    for sigma, below in itertools.pairwise(at):
        noise = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
        x = step(x, mixture.denoise(ring, x, sigma), jnp.float32(sigma), jnp.float32(below), noise, jnp.float32(0.5))
    picture = np.full((200, 200, 3), 255, np.uint8)
    row, column = np.clip(np.round(100 + 60 * np.asarray(x)[:, ::-1].T * [[-1], [1]]), 1, 198).astype(int)
    for down, right in np.ndindex(2, 2):
        picture[row + down, column + right] = (43, 108, 176)
    return picture


# ---- 03.1 ----
step = Exercise(
    "03.1",
    "ldm.samplers.one_step:ddim_step",
    minutes=15,
    lines=4,
    hints=(
        "x = x0 + sigma * eps: take eps from x and x0 first. The answer is x0 + down * eps + up * noise.",
        "up is eta times the spread of DDPM's posterior, sigma_next * sqrt(1 - (sigma_next / sigma)^2).",
        "down is what makes up^2 + down^2 = sigma_next^2, without a quotient by sigma_next: that may be 0.",
    ),
    wrong=STEP,
    show=in_the_plane,
)


@step.check
def test_without_eta_it_is_a_straight_line(f):
    """At eta = 0 the step is Euler's, x + (sigma_next - sigma) * (x - x0) / sigma, whatever the noise."""
    for noise in (NOISE, -5 * NOISE):
        np.testing.assert_allclose(f(X, X0, SIGMA, BELOW, noise, jnp.float32(0)), X - 0.4 * (X - X0), 1e-4, 1e-6)


@step.check
def test_eta_scales_the_noise_of_ddpm(f):
    """The fresh noise is eta times that of DDPM's posterior, which has 1/variance = 1/b^2 + 1/(s^2 - b^2)."""
    spread = (1 / 1.8**2 + 1 / (3.0**2 - 1.8**2)) ** -0.5
    for eta in (0.3, 1.0):
        with_noise, without = (f(X, X0, SIGMA, BELOW, noise, jnp.float32(eta)) for noise in (NOISE, 0 * NOISE))
        np.testing.assert_allclose((with_noise - without) / NOISE, np.full_like(X, eta * spread), 2e-3)


@step.check
def test_the_level_after_the_step_is_sigma_next(f):
    """Of x = x0 + sigma * eps, (share of eps)^2 + (share of the fresh noise)^2 = sigma_next^2, for every eta."""
    eps, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    for eta in (0.3, 0.6, 0.9):
        kept = f(0.5 + SIGMA * eps, 0.5 + zero, SIGMA, BELOW, zero, jnp.float32(eta)) - 0.5
        fresh = f(0.5 + zero, 0.5 + zero, SIGMA, BELOW, eps, jnp.float32(eta)) - 0.5
        np.testing.assert_allclose(np.sqrt(kept**2 + fresh**2), [[1.8]], 1e-4)


@step.check
def test_the_last_step_ends_at_the_prediction(f):
    """The step to sigma 0 ends at the predicted x0, for every eta."""
    for eta in (0.0, 0.4):
        np.testing.assert_allclose(f(X, X0, SIGMA, jnp.float32(0), NOISE, jnp.float32(eta)), X0, 1e-5, 1e-6)


@step.check
def test_the_step_compiles_once_for_every_eta(f):
    """Under jax.jit, where eta is not known yet, it is the same function."""
    given = X, X0, SIGMA, BELOW, NOISE, jnp.float32(0.5)
    np.testing.assert_allclose(jax.jit(f)(*given), f(*given), 1e-4, 1e-6)


# ---- 03.2 ----
leading = Exercise(
    "03.2",
    "ldm.spacing:ddim_timesteps",
    minutes=5,
    lines=3,
    hints=(
        "k runs from n-1 down to 0, and the stride is the whole number T // n.",
        "The offset is added to all; the largest it may be is T - 1 - (n - 1) * (T // n).",
    ),
    wrong=LEADING,
)


@leading.check
def test_timesteps_are_multiples_of_the_stride(f):
    """As a set, the timesteps are k * (T // n) + offset."""
    np.testing.assert_allclose(np.sort(f(10)), np.arange(10) * 100 + 1.0)
    np.testing.assert_allclose(np.sort(f(4, 400, 3)), [3.0, 103.0, 203.0, 303.0])


@leading.check
def test_timesteps_fall(f):
    """Each timestep is below the one before it."""
    assert (np.diff(np.asarray(f(7))) < 0).all(), f"got {np.asarray(f(7))}"


@leading.check
def test_the_stride_is_a_whole_number(f):
    """Where n does not divide T the stride is still T // n: what is lost is lost at the noisy end."""
    np.testing.assert_allclose(np.sort(f(7)), np.arange(7) * 142.0 + 1)


@leading.check
def test_the_offset_gives_way(f):
    """No timestep is above T-1: where the offset would push the first there, it is smaller for all."""
    np.testing.assert_allclose(np.sort(f(1000)), np.arange(1000.0))
    np.testing.assert_allclose(np.sort(f(5, 10, 4)), [1.0, 3.0, 5.0, 7.0, 9.0])


# ---- 03.3 ----
trailing = Exercise(
    "03.3",
    "ldm.spacing:trailing_timesteps",
    minutes=8,
    lines=2,
    hints=(
        "Count from T downwards in strides of T / n, which need not be whole; then round; then subtract 1.",
        "np.arange(T, 0, -T / n) may have a point too many, a rounding error above 0: for n = 61, say. Keep n.",
    ),
    wrong=TRAILING,
)


@trailing.check
def test_sampling_starts_where_training_ended(f):
    """The first timestep is T-1, for every n."""
    for steps, total in ((1, 1000), (7, 1000), (50, 1000), (6, 50)):
        np.testing.assert_allclose(np.asarray(f(steps, total))[0], total - 1)


@trailing.check
def test_distances_from_the_first(f):
    """The k-th timestep lies k T / n below the first, rounded to whole timesteps."""
    np.testing.assert_allclose(np.asarray(f(4)) - f(4)[0], [0, -250, -500, -750])
    np.testing.assert_allclose(np.asarray(f(3)) - f(3)[0], [0, -333, -667])
    np.testing.assert_allclose(np.asarray(f(6, 50)) - f(6, 50)[0], [0, -8, -17, -25, -33, -42])


@trailing.check
def test_there_are_n_of_them(f):
    """There are n timesteps, also for n = 61, and none is below 0."""
    found = np.asarray(f(61))
    assert found.shape == (61,), f"{found.shape[0]} timesteps where 61 were asked for; the last is {found[-1]}"
    assert found.min() >= 0


# ---- 03.4 ----
terminal = Exercise(
    "03.4",
    "ldm.schedule:rescale_to_zero_terminal_snr",
    minutes=8,
    lines=3,
    hints=(
        "Work on root = sqrt(alpha_bar): subtract its last entry, then scale so that the first is what it was.",
        "The factor is root[0] / (root[0] - root[-1]); square at the end; the last is TERMINAL_ALPHA_BAR.",
    ),
    wrong=TERMINAL,
)
CURVES = {"Stable Diffusion's": alpha_bars(SD).astype(float), "another": np.linspace(0.9, 0.05, 40) ** 2}


@terminal.check
def test_nothing_is_left_at_the_end(f):
    """alpha_bar ends at TERMINAL_ALPHA_BAR = 2^-24, which stands for 0: sigma there is 4096."""
    for curve in CURVES.values():
        np.testing.assert_allclose(np.asarray(f(curve.copy()))[-1], 2.0**-24, 1e-6)


@terminal.check
def test_the_start_stays(f):
    """alpha_bar starts where it did."""
    for curve in CURVES.values():
        np.testing.assert_allclose(np.asarray(f(curve.copy()))[0], curve[0], 1e-6)


@terminal.check
def test_the_root_is_shifted_and_scaled(f):
    """All differences of sqrt(alpha_bar) grow by one factor (the last entry aside)."""
    for curve in CURVES.values():
        grown = np.diff(np.sqrt(np.asarray(f(curve.copy())))[:-1]) / np.diff(np.sqrt(curve))[:-1]
        np.testing.assert_allclose(grown, np.full_like(grown, grown[0]), 1e-5)


# ---- 03.5 ----
rising = Exercise(
    "03.5",
    "ldm.inversion:rising_plan",
    minutes=15,
    lines=5,
    hints=(
        'Begin with levels(schedule, "ddim", spacing, steps) of ldm.spacing, turned round.',
        "If the first is 0: there is no slope at sigma 0. Put sigmas(schedule)[0] of ldm.schedule in its place, or "
        "only leave the 0 out where the next level is that one already.",
        "Plan(levels padded with zeros to train_steps + 1 entries, number of steps, eta 0, scale 0): see ldm.samplers.",
    ),
    wrong=RISING,
)


def _visited(plan) -> np.ndarray:
    return np.asarray(plan.levels)[: int(plan.steps) + 1]


@rising.check
def test_the_levels_of_a_run_from_below(f):
    """The levels are those of the DDIM run, rising: sigma(0), then those of its timesteps."""
    np.testing.assert_allclose(_visited(f(SD, "leading", 5)), sigmas(SD)[[0, 1, 201, 401, 601, 801]], 1e-5)
    np.testing.assert_allclose(_visited(f(SD, "trailing", 4)), sigmas(SD)[[0, 249, 499, 749, 999]], 1e-5)


@rising.check
def test_a_run_that_ends_at_zero_begins_at_the_lowest_level(f):
    """Where the run would end at 0 (final_alpha_one), the way up begins at sigma(0): the lowest the network knows."""
    to_zero = NoiseSchedule(final_alpha_one=True)
    np.testing.assert_allclose(np.sort(_visited(f(to_zero, "leading", 4))), sigmas(SD)[[0, 1, 251, 501, 751]], 1e-5)


@rising.check
def test_no_level_is_visited_twice(f):
    """Where the level above 0 is sigma(0) already ("karras"), the way up has one step less."""
    found = np.sort(_visited(f(SD, "karras", 6)))
    np.testing.assert_allclose(found ** (1 / 7), np.linspace(found[0] ** (1 / 7), found[-1] ** (1 / 7), 6), 1e-4)
    np.testing.assert_allclose(found[[0, -1]], sigmas(SD)[[0, -1]], 1e-4)


@rising.check
def test_no_noise_is_added(f):
    """Neither at the start (scale) nor on the way (eta): the picture itself is carried up."""
    plan = f(SD, "leading", 5)
    assert float(plan.scale) == pytest.approx(0) and float(plan.eta) == pytest.approx(0), f"scale {plan.scale}"


# ---- 03.6 ----
arc = Exercise(
    "03.6",
    "ldm.workflows:slerp",
    minutes=12,
    lines=7,
    hints=(
        "With w the angle between a and b: (sin((1 - share) w) a + sin(share w) b) / sin(w).",
        "cos(w) is the sum of a * b over the lengths, over all axes but the first (keepdims=True); clip it to [-1, 1].",
        "Where sin(w) is nearly 0 take the weights of the straight line, 1 - share and share.",
    ),
    wrong=ARC,
)


@arc.check
def test_a_quarter_of_the_circle(f):
    """Between two unit vectors at a right angle: (cos, sin) of share times 90 degrees."""
    a, b = np.float32([[1, 0]]), np.float32([[0, 1]])
    for share in (0.25, 0.5, 0.9):
        np.testing.assert_allclose(f(a, b, share), [[np.cos(share * np.pi / 2), np.sin(share * np.pi / 2)]], 1e-4)


@arc.check
def test_the_ends_are_the_noises_themselves(f):
    """Share 0 gives a and share 1 gives b, whatever their lengths."""
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(f(a, 3 * b, 0.0), a, 1e-4, 1e-5)
    np.testing.assert_allclose(f(a, 3 * b, 1.0), 3 * b, 1e-4, 1e-5)


@arc.check
def test_each_picture_turns_by_its_own_angle(f):
    """A picture's noise between a and b is the same alone and in a batch."""
    a, b = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    together = f(a, b, 0.3)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], f(a[i : i + 1], b[i : i + 1], 0.3), 1e-4, 1e-5)


@arc.check
def test_from_a_noise_to_itself(f):
    """Between a noise and itself there is only that noise: no quotient 0 / 0."""
    a = np.float32([[0, 1]])
    np.testing.assert_allclose(f(a, a, 0.4), a, 1e-5)
