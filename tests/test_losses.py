"""The losses against NumPy closed forms, and the laws that they obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.denoiser import eps_from_x0, v_from_x0
from ldm.schedule import PREDICTIONS, NoiseSchedule, sigma_at
from ldm.training import losses
from ldm.training.step import example_keys

LAWS = settings(deadline=None, max_examples=12, derandomize=True)
SIGMAS = st.floats(0.03, 80.0)
SCHEDULE = NoiseSchedule()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- the autoencoder ----


def test_kl_is_that_of_gaussians():
    mean, logvar = normal(2, 4, 4, 3), 0.5 * normal(2, 4, 4, 3, seed=1)
    expected = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    assert losses.kl(mean, logvar) == pytest.approx(expected, rel=1e-5)
    assert losses.kl(np.zeros((1, 2)), np.zeros((1, 2))) == 0


@LAWS
@given(st.floats(-3, 3), st.floats(-6, 6))
def test_kl_is_the_expected_log_ratio(mean, logvar):
    """By quadrature of log q - log p under q; and it is never negative."""
    x, weight = np.polynomial.hermite_e.hermegauss(40)
    z = mean + np.exp(logvar / 2) * x
    ratio = (-logvar / 2 - x**2 / 2) - (-(z**2) / 2)
    expected = (weight * ratio).sum() / weight.sum()
    assert losses.kl(mean, logvar) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert losses.kl(mean, logvar) >= -1e-7


def test_gradient_l1_sees_edges_only():
    picture = normal(2, 6, 5, 3)
    assert losses.gradient_l1(picture + 0.7, picture) == pytest.approx(0, abs=1e-6)
    error = normal(2, 6, 5, 3, seed=1)
    down, across = np.abs(np.diff(error, axis=1)).mean(), np.abs(np.diff(error, axis=2)).mean()
    assert losses.gradient_l1(picture + error, picture) == pytest.approx(down + across, rel=1e-5)
    assert losses.gradient_l1(-picture, picture) > 1, "an edge the wrong way is no edge that fits"


def test_perceptual_compares_directions():
    ours = [normal(2, 4, 4, 8), normal(2, 2, 2, 16, seed=1)]
    assert losses.perceptual(ours, [3 * x for x in ours]) == pytest.approx(0, abs=1e-6)
    assert losses.perceptual(ours, [-x for x in ours]) == pytest.approx(2 * 4, rel=1e-5)  # |u - (-u)|^2, two layers
    assert jnp.isfinite(jax.grad(lambda x: losses.perceptual([x], [ours[0]]))(jnp.zeros((2, 4, 4, 8)))).all()


def test_hinges():
    real, fake = np.array([[2.0, 0.5], [-1.0, 1.0]]), np.array([[-2.0, 0.0]])
    assert losses.discriminator_hinge(real, fake) == pytest.approx((0 + 0.5 + 2 + 0) / 4 + (0 + 1) / 2)
    assert losses.generator_hinge(fake) == pytest.approx(1.0)
    slopes = jax.grad(lambda r: losses.discriminator_hinge(r, jnp.asarray(fake)))(jnp.asarray(real))
    np.testing.assert_allclose(slopes, [[0, -0.25], [-0.25, 0]])  # those beyond the margin are left alone


def test_vae_loss_is_the_sum_of_its_parts():
    decoded, target = normal(2, 8, 8, 3), normal(2, 8, 8, 3, seed=1)
    mean, logvar = normal(2, 2, 2, 4), normal(2, 2, 2, 4, seed=1)
    weights = losses.VAEWeights(l1=0.5, mse=2.0, gradient=0.25, kl=0.125, perceptual=3.0)
    loss, parts = losses.vae_loss(decoded, target, mean, logvar, weights, perceptual=jnp.float32(0.7))
    error = decoded - target
    expected = 0.5 * np.abs(error).mean() + 2 * (error**2).mean() + 3 * 0.7
    expected += 0.25 * float(losses.gradient_l1(decoded, target)) + 0.125 * float(losses.kl(mean, logvar))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert set(parts) == {"l1", "mse", "gradient", "kl", "perceptual", "psnr"}
    assert losses.vae_loss(target + 0.02, target, mean, logvar)[1]["psnr"] == pytest.approx(40, abs=1e-2)
    assert np.isfinite(losses.vae_loss(target, target, mean, logvar)[1]["psnr"])


# ---- towers and classifiers ----


def softmax_loss(logits: np.ndarray) -> float:
    """-log softmax at column i of row i, in float64."""
    logits = logits.astype(np.float64)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))


def units(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_clip_loss_is_two_softmaxes_and_hard_negatives_are_columns():
    text, image, extra = normal(5, 8), normal(5, 8, seed=1), normal(7, 8, seed=2)
    logits = np.exp(1.5) * units(image) @ units(text).T
    loss, metrics = losses.clip_loss(text, image, 1.5)
    assert loss == pytest.approx((softmax_loss(logits) + softmax_loss(logits.T)) / 2, rel=1e-5)
    assert metrics["image_accuracy"] == pytest.approx((logits.argmax(1) == np.arange(5)).mean())
    assert metrics["text_accuracy"] == pytest.approx((logits.argmax(0) == np.arange(5)).mean())

    wide = np.concatenate([logits, np.exp(1.5) * units(image) @ units(extra).T], axis=1)
    harder, _ = losses.clip_loss(text, image, 1.5, extra)
    assert harder == pytest.approx((softmax_loss(wide) + softmax_loss(logits.T)) / 2, rel=1e-5)
    assert harder > loss


@LAWS
@given(st.integers(2, 6), st.integers(0, 99), st.floats(0.1, 50.0))
def test_clip_loss_laws(count, seed, length):
    """Lengths do not matter, nor the order of pairs, nor (without extras) which tower is which; chance is log B."""
    text, image = normal(count, 6, seed=seed), normal(count, 6, seed=seed + 100)
    loss = float(losses.clip_loss(text, image, 2.0)[0])
    order = np.random.default_rng(seed).permutation(count)
    assert losses.clip_loss(length * text, image, 2.0)[0] == pytest.approx(loss, rel=1e-4)
    assert losses.clip_loss(text[order], image[order], 2.0)[0] == pytest.approx(loss, rel=1e-4)
    assert losses.clip_loss(image, text, 2.0)[0] == pytest.approx(loss, rel=1e-4)
    same = np.ones((count, 6), np.float32)
    assert losses.clip_loss(same, same, 2.0)[0] == pytest.approx(np.log(count), rel=1e-4)


def test_ignored_pairs_are_as_good_as_absent():
    text, image, extra = normal(4, 8), normal(4, 8, seed=1), normal(2, 8, seed=2)
    ignore = np.zeros((4, 6), bool)
    ignore[:, 4:] = True
    assert losses.clip_loss(text, image, 1.0, extra, ignore)[0] == pytest.approx(losses.clip_loss(text, image, 1.0)[0])
    everything = losses.clip_loss(text, image, 1.0, extra, np.ones((4, 6), bool))
    assert everything[0] == pytest.approx(0, abs=1e-6) and everything[1]["image_accuracy"] == 1
    slope = jax.grad(lambda t: losses.clip_loss(t, image, 1.0, extra, np.ones((4, 6), bool))[0])(text)
    assert np.isfinite(slope).all()


def test_clip_scale_is_limited_and_can_come_back():
    text, image = normal(4, 8), normal(4, 8, seed=1)
    at_limit, slope = jax.value_and_grad(lambda s: losses.clip_loss(text, image, s)[0])(9.0)
    assert at_limit == pytest.approx(float(losses.clip_loss(text, image, np.log(100))[0]), rel=1e-5)
    assert slope > 0, "random pairs want a smaller scale"


def test_classifier_loss():
    logits, labels = normal(3, 4, 7), np.random.default_rng(0).integers(0, 7, (3, 4))
    flat = logits.reshape(-1, 7).astype(np.float64)
    expected = np.mean(np.log(np.exp(flat).sum(1)) - flat[np.arange(12), labels.ravel()])
    loss, metrics = losses.classifier_loss(logits, labels)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert losses.classifier_loss(logits + 50, labels)[0] == pytest.approx(expected, rel=1e-3)


# ---- diffusion ----


@LAWS
@given(SIGMAS, st.floats(0.5, 20.0), st.integers(0, 99))
def test_min_snr_weights_the_error_of_x0_whatever_is_predicted(sigma, gamma, seed):
    """The same wrong x0, written as eps, v and x0, costs the same."""
    x0, noise, wrong = (normal(2, 4, 4, 3, seed=seed + i).astype(np.float64) for i in range(3))
    x = x0 + sigma * noise
    answers = {"sample": wrong, "epsilon": eps_from_x0(x, wrong, sigma)}
    answers["v_prediction"] = v_from_x0(wrong, answers["epsilon"], sigma)
    costs = []
    for prediction in PREDICTIONS:
        target = losses.target_for(prediction, x0, noise, sigma)
        weight = losses.min_snr_weight(sigma, gamma, prediction)
        costs.append(float(losses.diffusion_loss(answers[prediction], target, weight)[0]))
    np.testing.assert_allclose(costs, min(1 / sigma**2, gamma) * ((wrong - x0) ** 2).mean(), rtol=2e-3)


@LAWS
@given(SIGMAS)
def test_targets_say_the_same(sigma):
    x0, noise = normal(2, 4, 4, 3), normal(2, 4, 4, 3, seed=1)
    alpha = 1 / np.sqrt(1 + sigma**2)
    np.testing.assert_allclose(
        losses.target_for("v_prediction", x0, noise, sigma), alpha * noise - sigma * alpha * x0, atol=1e-5
    )
    assert losses.target_for("epsilon", x0, noise, sigma) is noise
    assert losses.target_for("sample", x0, noise, sigma) is x0


def test_diffusion_loss_weights_examples():
    prediction, target, weight = normal(3, 4, 4, 2), normal(3, 4, 4, 2, seed=1), np.array([0.0, 1.0, 3.0])
    each = ((prediction - target) ** 2).mean(axis=(1, 2, 3))
    loss, metrics = losses.diffusion_loss(prediction, target, weight)
    assert loss == pytest.approx((weight * each).mean(), rel=1e-5)
    assert metrics["mse"] == pytest.approx(each.mean(), rel=1e-5)


def test_uniform_timesteps_are_uniform_and_whole():
    t = np.asarray(losses.timesteps(example_keys(0, 0, 20_000), SCHEDULE))
    counts = np.bincount(t.astype(int) // 100, minlength=10)
    assert np.array_equal(t, np.floor(t)) and t.min() >= 0 and t.max() == 999
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_logit_normal_timesteps_have_the_normal_s_quantiles():
    drawn = losses.timesteps(example_keys(0, 0, 20_000), SCHEDULE, "logit_normal", 1.0, 0.5, 0.8)
    t = (np.asarray(drawn) + 0.5) / 1000
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(0.5, abs=0.03) and logit.std() == pytest.approx(0.8, abs=0.03)


@LAWS
@given(st.floats(0.2, 5.0))
def test_shift_multiplies_the_odds(shift):
    keys = example_keys(1, 0, 500)
    plain, moved = (np.asarray(losses.timesteps(keys, SCHEDULE, shift=s)) / 1000 for s in (1.0, shift))
    np.testing.assert_allclose(moved, shift * plain / (1 + (shift - 1) * plain), atol=6e-3)  # of whole steps


def test_offset_noise_is_shared_by_the_places_of_a_channel():
    keys = example_keys(0, 0, 4000)
    plain, offset = losses.offset_noise(keys, (4, 4, 2)), losses.offset_noise(keys, (4, 4, 2), 0.5)
    shared = np.asarray(offset - plain)
    assert plain.std() == pytest.approx(1, abs=0.01)
    assert np.ptp(shared, axis=(1, 2)).max() < 1e-6 and shared[:, 0, 0].std() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(shared[:, 0, 0, 0], shared[:, 0, 0, 1])[0, 1]) < 0.06


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_captions_are_dropped_whole_and_at_the_rate(rate):
    ids, empty = np.arange(1, 8001, dtype=np.int32).reshape(2000, 4), np.zeros(4, np.int32)
    dropped = np.asarray(losses.drop_captions(example_keys(0, 0, 2000), ids, empty, rate))
    gone = (dropped == 0).all(1)
    assert dropped.dtype == np.int32 and np.array_equal(dropped[~gone], ids[~gone])
    assert gone.mean() == pytest.approx(rate, abs=0.03 * (0 < rate < 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_loss_of_a_perfect_network_is_zero(prediction):
    """A network that is told x0 finds the noise in what it is given; so noise, level and form must fit together."""
    schedule, x0 = NoiseSchedule(prediction=prediction), normal(6, 4, 4, 2)
    options = losses.DiffusionOptions(min_snr=5.0, offset_noise=0.1)

    def network(x, t):
        sigma = sigma_at(schedule, t)[:, None, None, None]
        noise = eps_from_x0(x * jnp.sqrt(1 + sigma**2), x0, sigma)
        return losses.target_for(prediction, x0, noise, sigma)

    loss = jax.jit(lambda keys: losses.denoising_loss(network, schedule, x0, keys, options)[0])
    assert loss(example_keys(0, 3, 6)) == pytest.approx(0, abs=1e-4)


def test_an_example_is_noised_alike_alone_and_in_a_batch():
    x0, keys = normal(4, 4, 4, 2), example_keys(0, 3, 4)
    network = lambda x, t: x * (1 + t[:, None, None, None] / 1000)
    loss = jax.jit(lambda x0, keys: losses.denoising_loss(network, SCHEDULE, x0, keys)[0])
    alone = [loss(x0[i : i + 1], keys[i : i + 1]) for i in range(4)]
    assert loss(x0, keys) == pytest.approx(np.mean(alone), rel=1e-5)


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"logit_norm.*did you mean 'logit_normal'"):
        losses.DiffusionOptions(timesteps="logit_norm")
    with pytest.raises(ValueError, match="shift"):
        losses.DiffusionOptions(shift=0.0)
    with pytest.raises(ValueError, match="unknown prediction type 'velocity'"):
        losses.target_for("velocity", 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="unknown prediction type 'eps'"):
        losses.min_snr_weight(1.0, 5.0, "eps")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_compute_in_float32(dtype):
    a, b = jnp.asarray(normal(2, 4, 4, 3), dtype), jnp.asarray(normal(2, 4, 4, 3, seed=1), dtype)
    text, image = a.reshape(2, -1), b.reshape(2, -1)
    everything = [
        losses.vae_loss(a, b, a, b),
        losses.clip_loss(text, image, jnp.float32(1)),
        losses.classifier_loss(text, np.array([0, 1])),
        losses.diffusion_loss(a, b, jnp.float32(1)),
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(everything)} == {jnp.dtype("float32")}
