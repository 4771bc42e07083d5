"""Laws of the sampling loop: its randomness, its run-time plan, its calls, and the path it returns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import SD, SHAPE, distance, gaussian, mixture, plan_of, run, unit

from ldm import samplers
from ldm import spacing as spacings
from ldm.samplers import one_step
from ldm.schedule import NoiseSchedule

NAMES = sorted(samplers.SAMPLERS)


# ---- randomness ----


def test_without_eta_the_seed_does_not_matter():
    plan = samplers.make_plan(SD, "ddim", "leading", 20, eta=0)
    assert np.array_equal(run("ddim", mixture, plan, unit(), seed=1), run("ddim", mixture, plan, unit(), seed=2))
    noisy = plan._replace(eta=np.float32(0.5))
    assert distance(run("ddim", mixture, noisy, unit(), seed=1), run("ddim", mixture, noisy, unit(), seed=2)) > 0.1


def test_noise_of_an_image_is_the_same_alone_and_in_any_batch():
    batch = samplers.image_keys(7, jnp.arange(5))
    for index in range(5):
        alone = samplers.image_keys(7, jnp.array([index]))
        for step in (0, 13, samplers.START):
            assert np.array_equal(
                samplers.unit_noise(alone, step, (8, 8, 4))[0], samplers.unit_noise(batch, step, (8, 8, 4))[index]
            )


def test_noises_of_seeds_images_and_steps_are_all_different():
    steps = (0, 1, 999, samplers.START)
    drawn = [samplers.unit_noise(samplers.image_keys(s, jnp.arange(3)), i, (16, 16, 4)) for s in (0, 1) for i in steps]
    flat = np.concatenate(drawn).reshape(24, -1)
    correlation = np.abs(np.corrcoef(flat) - np.eye(24))
    assert correlation.max() < 0.15  # 1024 numbers each: 0.03 is one standard deviation
    assert flat.mean() == pytest.approx(0, abs=0.03) and flat.std() == pytest.approx(1, abs=0.03)


BROWNIAN = lambda keys, plan: samplers.brownian_noise(keys, SHAPE[1:], plan.levels[0])
PER_STEP = lambda keys, plan: samplers.noise_per_step(keys, SHAPE[1:])


@pytest.mark.parametrize("noise_of", [PER_STEP, BROWNIAN])
@pytest.mark.parametrize("name", [name for name in NAMES if samplers.SAMPLERS[name].eta != 0.0])
def test_a_sample_is_the_same_alone_and_in_a_batch(name: str, noise_of: Callable):
    plan = samplers.make_plan(SD, name, "leading", 10)

    @jax.jit
    def images(indices: jax.Array) -> jax.Array:
        keys = samplers.image_keys(5, indices)
        start, noise_at = samplers.unit_noise(keys, samplers.START, SHAPE[1:]), noise_of(keys, plan)
        return samplers.sample(samplers.SAMPLERS[name], mixture, plan.scale * start, plan, noise_at)

    batch = images(jnp.arange(4))
    for index in range(4):
        np.testing.assert_allclose(images(jnp.array([index]))[0], batch[index], atol=1e-6)


# ---- the loop ----


@pytest.mark.parametrize("name", NAMES)
def test_one_compilation_whatever_the_plan_and_the_seed(name: str):
    traces = []

    @jax.jit
    def images(plan: samplers.Plan, seed: jax.Array) -> jax.Array:
        traces.append(name)
        keys = samplers.image_keys(seed, jnp.arange(2))
        start = plan.scale * samplers.unit_noise(keys, samplers.START, (4, 4, 2))
        return samplers.sample(samplers.SAMPLERS[name], mixture, start, plan, samplers.noise_per_step(keys, (4, 4, 2)))

    has_eta = samplers.SAMPLERS[name].eta is not None
    for steps, spacing in zip((1, 2, 20, 50, 50, 3, 4, 10, 30, 8), spacings.SPACINGS, strict=True):
        for eta in (None, 0.5) if has_eta else (None,):
            plan = samplers.make_plan(SD, name, spacing, steps, eta=eta, most=50, strength=eta)
            assert np.isfinite(images(plan, np.uint32(steps))).all()
    assert traces == [name]


@pytest.mark.parametrize("name", ["euler_a", "heun", "dpmpp_2m"])
def test_room_for_more_steps_changes_nothing(name: str):
    exact, roomy = (samplers.make_plan(SD, name, "leading", 9, most=most) for most in (None, 30))
    assert len(exact.levels) == 10 and len(roomy.levels) == 31
    assert np.array_equal(run(name, mixture, exact, unit()), run(name, mixture, roomy, unit()))


@pytest.mark.parametrize("name", NAMES)
def test_network_calls(name: str):
    """One a step or two; but one in the step to sigma 0, where the network must not run for nothing."""
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda sigma: calls.append(float(sigma)), sigma)
        return mixture(x, sigma)

    run(name, counted, plan_of([8.0, 4.0, 2.0, 1.0, 0.0]), unit()).block_until_ready()
    jax.effects_barrier()
    extra = {"heun": [4, 2, 1], "plms": [4]}
    extra |= {key: [32**0.5, 8**0.5, 2**0.5] for key in ("dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde")}
    assert sorted(calls) == pytest.approx(sorted([8, 4, 2, 1, *extra.get(name, [])]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_path_holds_every_state(name: str):
    plan = samplers.make_plan(SD, name, "leading", 6, most=10)
    noise_at = lambda i, *_: jnp.broadcast_to(jnp.cos(jnp.float32(i)), SHAPE)
    sampler, start = samplers.SAMPLERS[name], plan.scale * unit()
    x, path = jax.jit(lambda: samplers.sample_path(sampler, mixture, start, plan, noise_at))()
    assert path.x.shape == (11, *SHAPE) and path.x0.shape == (10, *SHAPE)
    assert np.array_equal(path.x[0], start) and not path.x[7:].any() and not path.x0[6:].any()
    if sampler.correct is None:  # else x was mended after the prediction
        for k in range(6):
            np.testing.assert_allclose(path.x0[k], mixture(path.x[k], plan.levels[k]), atol=1e-5)
    end = np.sqrt(1 + plan.levels[6] ** 2)
    np.testing.assert_allclose(path.x[6] / end, x, atol=1e-6)
    direct = jax.jit(lambda: samplers.sample(sampler, mixture, start, plan, noise_at))()
    np.testing.assert_allclose(direct, x, atol=5e-6)


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpmpp_3m_sde"])
def test_a_run_in_parts_is_the_run_to_the_last_bit(name: str):
    """The state holds all that later steps need: what a progress bar stands on."""
    plan = samplers.make_plan(SD, name, "leading", 5, most=8)
    noise_at = lambda i, *_: jnp.broadcast_to(jnp.cos(jnp.float32(i)), SHAPE)
    go = jax.jit(lambda *args: samplers.proceed(samplers.SAMPLERS[name], mixture, args[0], plan, noise_at, *args[1:]))
    start = samplers.initial(plan.scale * unit())
    parts = start
    for stop in (1, 3, 5):
        parts = go(parts, max(stop - 2, 0), stop)
    whole = go(start, 0, 5)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True))


def test_a_sample_that_stops_above_zero_is_in_the_variance_preserving_form():
    plan = plan_of([3.0, 1.0])
    x = samplers.sample(samplers.SAMPLERS["euler"], gaussian, unit(), plan, lambda i: 0.0)
    wanted = one_step.euler_step(unit(), gaussian(unit(), 3.0), 3.0, 1.0) / np.sqrt(2)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_makes_a_nan_on_the_way(name: str):
    """Not even inside a branch that is not taken."""
    plan = samplers.make_plan(NoiseSchedule(zero_terminal_snr=True), name, "trailing", 5, most=7)
    with jax.debug_nans(True):
        assert np.isfinite(run(name, mixture, plan, unit())).all()


# ---- plans ----


def test_a_plan_has_the_samplers_own_eta():
    etas = {name: float(samplers.make_plan(SD, name, "leading", 5).eta) for name in NAMES}
    noisy = ("euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
    assert etas == {name: float(name in noisy) for name in NAMES}
    assert samplers.make_plan(SD, "euler_a", "leading", 5, eta=0).eta == 0


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("eular", "leading", 20), {}, "unknown sampler 'eular'; did you mean 'euler'?"),
        (("euler", "leding", 20), {}, "unknown spacing 'leding'; did you mean 'leading'?"),
        (("euler", "leading", 20), {"eta": 0.5}, "sampler 'euler' has no eta, got 0.5"),
        (("ddim", "leading", 20), {"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
        (("ddim", "leading", 20), {"most": 10}, "steps must be at most 10, got 20"),
        (("ddim", "leading", 0), {}, "steps must be between 1 and 1000, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(arguments: tuple, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        samplers.make_plan(SD, *arguments, **options)
