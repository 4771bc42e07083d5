"""Laws of the denoiser: what the network says, turned into x0, whichever of noise, velocity or x0 it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm import denoiser, schedule
from ldm.schedule import NoiseSchedule

SD = NoiseSchedule()
SHAPE = (2, 4, 4, 3)
LEVELS = (0.0, 0.03, 1.0, 14.6)


def pair() -> tuple[jax.Array, jax.Array]:
    """A clean sample and unit noise."""
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    return jnp.asarray(clean), jnp.asarray(noise)


@pytest.mark.parametrize("sigma", LEVELS)
def test_noise_and_velocity_give_the_clean_sample_back(sigma: float):
    x0, noise = pair()
    x = denoiser.add_noise(x0, noise, sigma)
    tolerance = 1e-6 * (1 + sigma)  # x is of size sigma and is rounded there
    np.testing.assert_allclose(denoiser.x0_from_eps(x, noise, sigma), x0, atol=5 * tolerance)
    velocity = denoiser.v_from_x0(x0, noise, sigma)
    np.testing.assert_allclose(denoiser.x0_from_v(x, velocity, sigma), x0, atol=5 * tolerance)


@pytest.mark.parametrize("sigma", LEVELS[1:])
def test_the_noise_comes_back_from_the_clean_sample(sigma: float):
    x0, noise = pair()
    x = denoiser.add_noise(x0, noise, sigma)
    np.testing.assert_allclose(denoiser.eps_from_x0(x, x0, sigma), noise, atol=1e-6 * (1 + 10 / sigma))


@pytest.mark.parametrize("t", [0, 500, 999])
def test_sigma_space_is_the_variance_preserving_form_rescaled(t: int):
    x0, noise = pair()
    alpha_bar, sigma = schedule.alpha_bars(SD)[t], schedule.sigmas(SD)[t]
    wanted = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * noise  # DDPM eq. (4)
    x = denoiser.to_variance_preserving(denoiser.add_noise(x0, noise, sigma), sigma)
    np.testing.assert_allclose(x, wanted, atol=1e-5)
    velocity = np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * x0
    np.testing.assert_allclose(denoiser.v_from_x0(x0, noise, sigma), velocity, atol=1e-5)


def test_a_level_per_image_broadcasts():
    x0, noise = pair()
    sigma = jnp.array([0.5, 3.0]).reshape(2, 1, 1, 1)
    velocity = denoiser.v_from_x0(x0, noise, sigma)
    both = denoiser.x0_from_v(denoiser.add_noise(x0, noise, sigma), velocity, sigma)
    np.testing.assert_allclose(both, x0, atol=1e-5)


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
@pytest.mark.parametrize("t", [1, 400, 999])
def test_a_perfect_network_gives_a_perfect_denoiser(prediction: str, t: int):
    """The network that knows the answer sees the scaled x and the whole t, and the denoiser returns x0."""
    x0, noise = pair()
    sigma = schedule.sigmas(SD)[t]
    answers = {"epsilon": noise, "v_prediction": denoiser.v_from_x0(x0, noise, sigma), "sample": x0}
    seen = {}

    def network(x, t):
        seen.update(x=x, t=t)
        return answers[prediction]

    denoise = denoiser.from_network(network, dataclasses.replace(SD, prediction=prediction))
    np.testing.assert_allclose(denoise(x0 + sigma * noise, sigma), x0, atol=2e-5)
    assert float(seen["t"]) == t and seen["t"].dtype == jnp.float32
    assert float(jnp.std(seen["x"])) == pytest.approx(1, abs=0.25)  # the network's x has unit variance at every level


def test_bfloat16_stays_inside_the_network():
    kinds = []

    def network(x, t):
        kinds.append((x.dtype, t.dtype))
        return x

    denoise = denoiser.from_network(network, SD, dtype=jnp.bfloat16)
    x = 5 * pair()[1]
    assert denoise(x, 5.0).dtype == jnp.float32
    assert kinds == [(jnp.bfloat16, jnp.float32)]
    np.testing.assert_allclose(denoise(x, 0.0), x)  # without noise nothing that the network says matters


def test_an_unknown_prediction_is_refused():
    x = jnp.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"unknown prediction type 'eps'.*epsilon"):
        denoiser.predict_x0("eps", x, x, 1.0)
