"""The training step and its optimiser: what a step computes, what it depends on, and what it does not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.training.optimiser import MUON_RMS, OptimiserConfig, make, rate_at
from ldm.training.step import example_keys, make_step, start

LAWS = settings(deadline=None, max_examples=25, derandomize=True)
PARAMS = {"net": {"kernel": np.full((3, 2), 0.1, np.float32), "bias": np.zeros(2, np.float32)}}


def batch_of(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((size, 3)).astype(np.float32)
    return {"x": x, "y": x[:, :2] * 2 + 1}


def noisy_loss(params, frozen, batch, keys):
    """A regression on inputs with noise: the noise depends on the keys."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    answer = (batch["x"] + 0.1 * noise) @ params["net"]["kernel"] + params["net"]["bias"] + frozen.get("shift", 0.0)
    error = answer.astype(jnp.float32) - batch["y"]
    return (error**2).mean(), {"worst": jnp.abs(error).mean()}


def run(steps: int = 3, size: int = 8, optimiser=None, loss=noisy_loss, seed: int = 0, **options):
    optimiser = make(OptimiserConfig(learning_rate=0.05), 10) if optimiser is None else optimiser
    step, state, history = make_step(loss, optimiser, seed=seed, **options), start(PARAMS, optimiser), []
    for i in range(steps):
        state, metrics = step(state, {}, batch_of(size, i))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


# ---- the step ----


def test_a_step_is_gradient_update_and_average():
    """Written out by hand for plain gradient descent."""
    state, (metrics,) = run(1, optimiser=optax.sgd(0.1), ema=0.9)
    keys, batch = example_keys(0, 0, 8), batch_of(8)
    (loss, extra), grads = jax.value_and_grad(noisy_loss, has_aux=True)(PARAMS, {}, batch, keys)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads)
    assert_close(state.params, expected, rtol=1e-5)
    assert_close(state.average, jax.tree.map(lambda a, p: 0.1 * a + 0.9 * p, PARAMS, expected), rtol=1e-5)
    norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    expected = {"loss": float(loss), "worst": float(extra["worst"]), "grad_norm": norm, "skipped": 0}
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert state.step == 1 and state.step.dtype == jnp.int32


def test_the_average_warms_up_to_its_decay():
    """Means of values seen, with weights that follow eq. (1); with ema = 0 it is the parameters, bit for bit."""
    values = np.cumsum(np.ones(60))
    unit = optax.GradientTransformation(lambda p: (), lambda g, s, p: (jax.tree.map(jnp.ones_like, g), s))
    step = make_step(lambda p, f, b, k: (0 * p["x"].sum(), {}), unit, seed=0, ema=0.8)
    state, average = start({"x": np.zeros(1, np.float32)}, unit), 0.0
    for n, value in enumerate(values):
        state, _ = step(state, {}, {"b": np.zeros(1)})
        d = min(0.8, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value
        assert state.average["x"][0] == pytest.approx(average, rel=1e-5)
    assert average == pytest.approx(60 - 0.8 / 0.2, abs=0.01), "it lags by d / (1 - d)"
    still, _ = run(4, ema=0.0)
    assert equal(still.average, still.params)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_microbatches_add_up_to_the_batch(accumulate):
    """Also the noise is the same: it belongs to the example."""
    whole, history = run(accumulate=1)
    parts, cut = run(accumulate=accumulate)
    assert_close(parts.params, whole.params, atol=1e-6)
    assert [h["loss"] for h in cut] == pytest.approx([h["loss"] for h in history], rel=1e-5)
    assert [h["grad_norm"] for h in cut] == pytest.approx([h["grad_norm"] for h in history], rel=1e-5)


def test_examples_and_steps_have_keys_of_their_own():
    keys = [jax.random.key_data(example_keys(seed, step, 5)) for seed in (0, 1) for step in (0, 1, 999)]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 30
    assert np.array_equal(keys[0][:3], jax.random.key_data(example_keys(0, 0, 3)))


def test_runs_repeat_and_resume_bit_for_bit():
    (whole, first), (again, second) = run(4), run(4)
    assert equal(whole, again) and first == second
    other, _ = run(4, seed=1)
    assert not equal(whole.params, other.params)

    optimiser = make(OptimiserConfig(learning_rate=0.05), 10)
    kept = jax.tree.map(np.asarray, run(2)[0])  # as a checkpoint would have it
    step, state = make_step(noisy_loss, optimiser, seed=0), jax.tree.map(jnp.asarray, kept)
    for i in (2, 3):
        state, _ = step(state, {}, batch_of(8, i))
    assert equal(state, whole)


def test_one_program_for_a_whole_run_and_the_old_state_is_gone():
    traces = []

    def loss(*inputs):
        traces.append(1)
        return noisy_loss(*inputs)

    optimiser = make(OptimiserConfig(), 6)
    step, state = make_step(loss, optimiser, seed=0), start(PARAMS, optimiser)
    for i in range(6):
        old, (state, _) = state, step(state, {}, batch_of(8, i))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert step._cache_size() == 1 and len(traces) == 1
    assert PARAMS["net"]["bias"].sum() == 0, "start made copies"


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_gradient_that_is_not_finite_is_skipped(accumulate):
    optimiser = make(OptimiserConfig(learning_rate=0.05), 10)
    step, state = make_step(noisy_loss, optimiser, seed=0, accumulate=accumulate), start(PARAMS, optimiser)
    state, _ = step(state, {}, batch_of(8))
    before, bad = jax.tree.map(np.asarray, state), batch_of(8)
    bad["x"][3, 1] = np.nan
    state, metrics = step(state, {}, bad)
    assert metrics["skipped"] == 1 and state.step == 2
    assert equal(state[1:], before[1:])
    state, metrics = step(state, {}, batch_of(8))
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"]) and not equal(state.params, before.params)


def test_bfloat16_is_for_the_loss_only():
    seen = {}

    def loss(params, frozen, batch, keys):
        seen.update({name: p.dtype for name, p in params["net"].items()}, frozen=frozen["w"].dtype)
        return (noisy_loss(params, {}, batch, keys)[0] + params["net"]["scale"]).astype(jnp.bfloat16), {}

    optimiser = make(OptimiserConfig(), 10)
    params = {"net": {**PARAMS["net"], "scale": np.float32(1)}}
    step = make_step(loss, optimiser, seed=0, dtype="bfloat16", accumulate=2)
    state, metrics = step(start(params, optimiser), {"w": np.ones(2, np.float32)}, batch_of(8))
    assert seen == {"kernel": jnp.bfloat16, "bias": jnp.bfloat16, "scale": jnp.float32, "frozen": jnp.float32}
    floats = [leaf for leaf in jax.tree.leaves((state, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    full, half = run(5)[0], run(5, dtype="bfloat16")[0]
    assert_close(half.params, full.params, atol=0.02)
    assert not equal(half.params, full.params)


def test_only_parameters_are_trained():
    """What is frozen is a plain argument: no gradient, no moments, no new compilation when its values change."""
    optimiser = make(OptimiserConfig(), 10)
    step, state = make_step(noisy_loss, optimiser, seed=0), start(PARAMS, optimiser)
    losses = []
    for shift in (0.0, 1.0):
        state, metrics = step(state, {"shift": np.full(2, shift, np.float32)}, batch_of(8))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1 and losses[0] != losses[1]
    assert jax.tree.structure(state.params) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({"accumulate": 3}, batch_of(8), "a batch of 8 cannot be cut into 3 microbatches on 1 devices"),
        ({}, {"x": np.zeros((4, 3)), "y": np.zeros((3, 2))}, "the same first axis"),
        ({}, {"x": np.float32(0)}, "the same first axis"),
        ({}, {}, "the same first axis"),
        ({"accumulate": 0}, None, "accumulate"),
        ({"ema": 1.0}, None, "ema"),
        ({"dtype": "float16"}, None, "float32 or bfloat16, got dtype 'float16'"),
    ],
)
def test_mistakes_are_one_sentence(options, batch, message):
    optimiser = optax.sgd(0.1)
    with pytest.raises(ValueError, match=message):
        make_step(noisy_loss, optimiser, seed=0, **options)(start(PARAMS, optimiser), {}, batch)


# ---- the optimiser ----


def test_the_rate_warms_up_falls_and_restarts():
    config = OptimiserConfig(learning_rate=2.0, warmup=0.2, restarts=2, floor=0.1)
    at = lambda *fractions: np.asarray(rate_at(config, np.array(fractions)))
    np.testing.assert_allclose(at(0, 0.05, 0.1, 0.2), [0, 0.5, 1.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(at(0.4, 0.6 - 1e-6, 0.6 + 1e-6, 0.8, 1.0), [1.1, 0.2, 2.0, 1.1, 0.2], atol=1e-3)
    constant = OptimiserConfig(learning_rate=2.0, schedule="constant", warmup=0.0)
    np.testing.assert_allclose(rate_at(constant, np.linspace(0, 1, 5)), 2.0)


@LAWS
@given(st.floats(0, 0.9), st.integers(1, 5), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_is_between_its_ends(warmup, restarts, floor, fraction):
    rate = float(rate_at(OptimiserConfig(1.0, "cosine", warmup, restarts, floor), fraction))
    low = min(floor, fraction / warmup) if fraction < warmup else floor
    assert low - 1e-5 <= rate <= 1 + 1e-5
    assert rate_at(OptimiserConfig(1.0, "cosine", warmup, restarts, floor), 1.0) == pytest.approx(floor, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_the_curve_does_not_depend_on_the_length_of_the_run(steps):
    """Every update has the rate of its fraction of the run, and none has a rate of zero."""
    config = OptimiserConfig(learning_rate=1e-2, warmup=0.1)
    _, history = run(steps, optimiser=make(config, steps))
    rates = [h["learning_rate"] for h in history]
    np.testing.assert_allclose(rates, rate_at(config, np.arange(1, steps + 1) / (steps + 1)), rtol=1e-5)
    assert min(rates) > 0


def test_updates_are_those_of_adamw():
    """Against optax's own AdamW, behind the same clipping, with decay of matrices only."""
    config = OptimiserConfig(0.01, "constant", 0.0, weight_decay=0.1, clip=0.5)
    mask = {"net": {"kernel": True, "bias": False}}
    adamw = optax.adamw(0.01, 0.9, 0.99, weight_decay=0.1, mask=mask)
    assert_close(
        run(5, optimiser=make(config, 5))[0].params,
        run(5, optimiser=optax.chain(optax.clip_by_global_norm(0.5), adamw))[0].params,
        atol=1e-6,
    )


def test_steps_of_muon_have_singular_values_alike_and_the_size_of_adams():
    """Kernels of any rank are matrices [all but the last axis, last]; what is no kernel is stepped by Adam."""
    optimiser = make(OptimiserConfig(0.1, "constant", 0.0, weight_decay=0.0, method="muon"), 10)
    shapes = {"a.kernel": (3, 3, 4, 24), "b.kernel": (40, 8), "b.bias": (8,), "words.embedding": (9, 8)}
    random = np.random.default_rng(0)
    grads = {name: jnp.asarray(random.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    updates, _ = optimiser.update(grads, optimiser.init(grads), grads)
    for name in ("a.kernel", "b.kernel"):
        matrix = np.asarray(updates[name]).reshape(-1, shapes[name][-1])
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() / values.min() < 2.5  # of the gradient: 4 and more
        assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.1 * MUON_RMS, rel=0.3)
        assert np.vdot(updates[name], grads[name]) < 0
    for name in ("b.bias", "words.embedding"):  # the first step of Adam: the sign
        np.testing.assert_allclose(updates[name], -0.1 * np.sign(grads[name]), rtol=1e-4)


def test_decay_leaves_biases_alone():
    optimiser = make(OptimiserConfig(0.1, "constant", 0.0, weight_decay=0.5), 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(())}
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * np.ones((2, 2)), rtol=1e-6)
    assert not updates["bias"].any() and not updates["scale"].any()


@pytest.mark.parametrize("clip", [0.5, math.inf])
def test_clipping(clip):
    """The first moment of Adam is (1 - b1) times the gradient that it was given."""
    optimiser = make(OptimiserConfig(clip=clip, b1=0.0), 10)
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    _, state = optimiser.update(grads, optimiser.init(grads), grads)
    moment = optax.tree_utils.tree_get(state, "mu")
    assert optax.tree.norm(moment) == pytest.approx(min(5.0, clip), rel=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"method": "adam"}, "did you mean 'adamw'"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"restarts": 0}, "restarts"),
        ({"restarts": 1.5}, "restarts"),
        ({"clip": 0.0}, "clip"),
        ({"b2": 1.0}, "b2"),
    ],
)
def test_numbers_out_of_range_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        OptimiserConfig(**numbers)


def test_a_run_has_a_step():
    with pytest.raises(ValueError, match="1 step or more"):
        make(OptimiserConfig(), 0)
