"""The classifier of noisy latents: what its probabilities obey, and that it learns."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm.models.classifier import Classifier, ClassifierConfig, log_prob
from ldm.models.layers import bind, init, shapes
from ldm.schedule import NoiseSchedule, sigma_at

CONFIG = ClassifierConfig(labels=(3, 2), channels=(8, 16), heads=2, groups=4)
SCHEDULE = NoiseSchedule()
LATENTS = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype(np.float32)


def random_params(config):
    """Parameters that are nowhere zero, of about the size of trained ones; by NumPy, which compiles nothing."""
    rng, specs = np.random.default_rng(1), shapes(Classifier, config)
    unit = {name: rng.normal(size=spec.shape).astype(np.float32) for name, spec in specs.items()}
    spread = {name: prod(spec.shape[:-1]) ** -0.5 if spec.ndim > 1 else 0.1 for name, spec in specs.items()}
    return {name: name.endswith("scale") + spread[name] * unit[name] for name in specs}


@pytest.fixture(scope="module")
def params():
    """Those of the small classifier."""
    return random_params(CONFIG)


run = jax.jit(lambda params, x, t: bind(Classifier, CONFIG, params)(x, t))


@jax.jit
def scored(params, x, sigma, labels):
    """log p(labels | x) by the small classifier."""
    return log_prob(bind(Classifier, CONFIG, params), SCHEDULE, labels)(x, sigma)


def test_it_is_the_unets_encoder_without_text():
    names = shapes(Classifier, ClassifierConfig((48,)))
    assert {"encoder.conv_in.kernel", "encoder.down.0.res.0.time.kernel", "pool.q.kernel", "head.kernel"} <= set(names)
    assert not [name for name in names if "cross_attn" in name or "decoder" in name]


def test_logits_are_one_row_for_each_label(params):
    out = run(params, LATENTS, jnp.array([0, 10, 500, 999]))
    assert [(a.shape, a.dtype) for a in out] == [((4, 3), jnp.float32), ((4, 2), jnp.float32)]
    half = {name: array.astype(jnp.bfloat16) for name, array in params.items()}
    assert jax.eval_shape(run, half, LATENTS, jnp.float32(3))[0].dtype == jnp.float32


def test_it_begins_undecided():
    config = ClassifierConfig(labels=(3, 2), channels=(4,), heads=1, groups=2)
    start = init(Classifier, config, 0)
    for logits in jax.jit(bind(Classifier, config, start))(LATENTS, 7):
        assert not logits.any()


def test_the_time_and_the_place_matter_and_the_batch_does_not(params):
    out = run(params, LATENTS, jnp.float32(300))[0]
    np.testing.assert_allclose(run(params, LATENTS[2:3], jnp.array([300]))[0], out[2:3], rtol=1e-4, atol=1e-5)
    assert not np.allclose(run(params, LATENTS, jnp.float32(900))[0], out, atol=1e-3)
    assert not np.allclose(run(params, -LATENTS, jnp.float32(300))[0], out, atol=1e-3)


def test_probabilities_add_up_and_labels_multiply(params):
    at = lambda *labels: scored(params, LATENTS, 2.0, jnp.tile(jnp.array(labels), (4, 1)))
    every = sum(jnp.exp(at(a, b)) for a in range(3) for b in range(2))
    np.testing.assert_allclose(every, 1, rtol=1e-5)
    np.testing.assert_allclose(at(2, 1), at(2, -1) + at(-1, 1), rtol=1e-5)
    assert not at(-1, -1).any()


def test_log_prob_is_bayes_rule_for_two_points():
    """Latents are +m or -m: then log p(y | x0 + sigma noise) is known, and so is its slope."""
    m = LATENTS[:1]

    def classify(x, t):
        s = sigma_at(SCHEDULE, t)
        u = 2 * jnp.sqrt(1 + s**2) * (x * m).sum((1, 2, 3)) / s**2  # log odds, from the scaled latent
        return (jnp.stack([jnp.zeros_like(u), u], -1),)

    for sigma in (3.0, 12.0):
        x = m + sigma * LATENTS[1:3]
        score = lambda x, sigma=sigma: log_prob(classify, SCHEDULE, jnp.ones((2, 1), jnp.int32))(x, sigma)
        u = 2 * (x * m).sum((1, 2, 3)) / sigma**2
        np.testing.assert_allclose(score(x), -np.logaddexp(0, -u), rtol=2e-3, atol=1e-5)
        slope = 2 * m / sigma**2 / (1 + np.exp(u))[:, None, None, None]
        np.testing.assert_allclose(jax.grad(lambda x: score(x).sum())(x), slope, rtol=5e-3, atol=1e-6)  # noqa: B023


def test_labels_of_another_number_are_refused(params):
    with pytest.raises(ValueError, match=r"has 2 labels \[B, 2\], got shape \(4, 1\)"):
        scored(params, LATENTS, 1.0, jnp.zeros((4, 1), jnp.int32))


@pytest.mark.long
def test_it_learns_what_noise_leaves(params):
    """Label 0: which of three patterns; label 1: its sign. Trained at all levels, it is surer at less noise."""
    patterns = 2 * jnp.asarray(np.random.default_rng(3).normal(size=(3, 1, 1, 4)), jnp.float32)
    tx = optax.adam(1e-2)

    def loss(weights, key, sigma):
        kinds, signs, noise = jax.random.split(key, 3)
        labels = jnp.stack([jax.random.randint(kinds, (64,), 0, 3), jax.random.randint(signs, (64,), 0, 2)], -1)
        x0 = patterns[labels[:, 0]] * (2 * labels[:, 1] - 1)[:, None, None, None]
        return -scored(weights, x0 + sigma * jax.random.normal(noise, (64, 8, 8, 4)), sigma, labels).mean()

    @jax.jit
    def step(weights, state, key):
        updates, state = tx.update(jax.grad(loss)(weights, key, jnp.exp(6 * jax.random.uniform(key) - 1)), state)
        return optax.apply_updates(weights, updates), state

    weights, state = params, tx.init(params)
    for i in range(120):
        weights, state = step(weights, state, jax.random.fold_in(jax.random.key(0), i))
    little, much = (jax.jit(loss)(weights, jax.random.key(99), sigma) for sigma in (0.5, 90.0))
    assert little < 0.3
    assert abs(much - np.log(6)) < 0.4  # it knows that it cannot know
