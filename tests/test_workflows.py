"""Variations, ways between, and large pictures in two passes."""

import numpy as np
import pytest

import ldm
from ldm.workflows import between, enlarge, slerp, starting_noise, straight, two_passes, variations

QUICK = {"steps": 2, "progress": False}


@pytest.fixture(scope="module")
def tiny(least):
    """Networks do not matter here."""
    return least


def test_starting_noise_is_the_seeds(tiny):
    noise = starting_noise(tiny, seed=7, count=2, size=(64, 48))
    given = ldm.generate(tiny, ["a", "b"], latents=noise, output="latents", **QUICK)
    wanted = ldm.generate(tiny, ["a", "b"], seed=7, size=(64, 48), output="latents", **QUICK)
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert np.array_equal(starting_noise(tiny, 7, 1, (64, 48), index=1)[0], noise[1])


def test_the_arc_keeps_the_variance_and_the_line_does_not():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 32, 32, 4)).astype(np.float32)
    assert np.array_equal(slerp(a, b, 0), a)
    np.testing.assert_allclose(slerp(a, b, 1), b, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 0.3).std(axis=(1, 2, 3)), 1, atol=0.03)
    np.testing.assert_allclose(straight(a, b, 0.5).var(axis=(1, 2, 3)), 0.5, atol=0.03)
    np.testing.assert_allclose(slerp(a, a, 0.4), a, atol=1e-6)
    assert len(between(a, b, 5)) == 5 and np.array_equal(between(a, b, 5)[0], a)
    np.testing.assert_allclose(between(a, b, 3, straight)[1], (a + b) / 2, atol=1e-6)


def test_variations_are_near(tiny):
    original = ldm.generate(tiny, "a", seed=3, size=(64, 48), **QUICK)[0].astype(float)
    away = []
    for share in (0.0, 0.2, 1.0):
        pictures = variations(tiny, "a", 3, share, count=2, size=(64, 48), **QUICK)
        away.append(np.abs(pictures - original).mean())
    assert away[0] <= 1 and away[0] < away[1] < away[2]


@pytest.mark.long
def test_a_large_picture_in_two_passes(tiny):
    large = two_passes(tiny, "a", (128, 64), **QUICK)
    assert large.shape == (1, 64, 128, 3)
    small = ldm.generate(tiny, "a", size=(64, 48), **QUICK)
    kept = enlarge(tiny, small, "a", (96, 72), strength=0.0, **QUICK)
    assert kept.shape == (1, 72, 96, 3)
    with pytest.raises(ValueError, match="not a multiple of 8"):
        enlarge(tiny, small, "a", (100, 72), **QUICK)
