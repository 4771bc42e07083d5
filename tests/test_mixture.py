"""The mixture of Gaussians: its formulas against integrals, derivatives and draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm import mixture
from ldm.mixture import Mixture

FLAT = mixture.ring()
LINE = Mixture(np.float32([[-1.0], [0.2], [1.5]]), np.float32(0.3), np.float32([0.5, 0.2, 0.3]))
GRID = np.linspace(-12, 12, 4801, dtype=np.float32)[:, None]  # so fine that sums over it are integrals
levels = pytest.mark.parametrize("sigma", [0.0, 0.1, 1.3])


@levels
def test_the_density_integrates_to_one(sigma: float):
    assert np.exp(mixture.log_density(LINE, GRID, sigma)).sum() * 0.005 == pytest.approx(1, rel=1e-5)
    side = np.linspace(-6, 6, 241, dtype=np.float32)
    plane = np.stack(np.meshgrid(side, side), axis=-1)
    assert np.exp(mixture.log_density(FLAT, plane, sigma)).sum() * 0.05**2 == pytest.approx(1, rel=1e-4)


@levels
def test_the_score_is_the_gradient_of_the_log_density(sigma: float):
    x = 2 * jax.random.normal(jax.random.key(0), (3, 7, 2))
    gradient = jax.grad(lambda x: mixture.log_density(FLAT, x, sigma).sum())(x)
    np.testing.assert_allclose(mixture.score(FLAT, x, sigma), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.2, 1.3])
def test_the_denoiser_is_the_mean_of_the_posterior(sigma: float):
    prior = np.asarray(mixture.log_density(LINE, GRID, 0.0), np.float64)
    x = np.float32([-2.0, 0.0, 0.4, 3.0])
    posterior = np.exp(prior - (x[:, None] - GRID[:, 0].astype(np.float64)) ** 2 / (2 * sigma**2))
    wanted = posterior @ GRID[:, 0] / posterior.sum(1)
    np.testing.assert_allclose(mixture.denoise(LINE, x[:, None], sigma)[:, 0], wanted, rtol=1e-4, atol=1e-5)


@levels
def test_tweedies_formula_ties_denoiser_and_score(sigma: float):
    x = 2 * jax.random.normal(jax.random.key(1), (50, 2))
    moved = x + sigma**2 * mixture.score(FLAT, x, sigma)
    np.testing.assert_allclose(mixture.denoise(FLAT, x, sigma), moved, rtol=1e-4, atol=1e-5)


def test_under_much_noise_the_denoiser_answers_with_the_mean_of_all():
    mean = FLAT.weights @ FLAT.means
    x = np.float32([[0.0, 0.0], [3.0, -1.0]])
    np.testing.assert_allclose(mixture.denoise(FLAT, x, 1e4), np.stack([mean, mean]), atol=1e-4)


def test_draws_have_the_mixtures_moments():
    x = np.asarray(mixture.draw(LINE, jax.random.key(2), 40_000))[:, 0]
    mean = (LINE.weights * LINE.means[:, 0]).sum()
    variance = (LINE.weights * (LINE.means[:, 0] - mean) ** 2).sum() + 0.3**2
    assert x.shape == (40_000,)
    assert x.mean() == pytest.approx(mean, abs=5 * float(variance / 40_000) ** 0.5)
    assert x.var() == pytest.approx(variance, rel=0.05)


def test_langevin_ends_as_the_gaussian_whose_score_it_is_given():
    start = jnp.full((20_000, 1), 3.0)
    x = mixture.langevin(lambda x: (0.5 - x) / 0.25, jax.random.key(3), start, 0.01, 300)
    variance = 0.25 / (1 - 0.01 / 0.5)  # of a walk with steps of 0.01, exactly
    assert x.mean() == pytest.approx(0.5, abs=0.02)
    assert x.var() == pytest.approx(variance, rel=0.05)
