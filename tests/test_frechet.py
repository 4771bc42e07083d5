"""The Fréchet distance: closed forms, laws, and what is refused."""

import numpy as np
import pytest

from ldm.evaluation.frechet import Moments, frechet_distance, moments

RNG = np.random.default_rng(0)


def gaussian(width: int) -> Moments:
    square = RNG.standard_normal((width, width))
    return Moments(RNG.standard_normal(width), square @ square.T)


def test_diagonal_covariances_have_a_closed_form():
    m, n, s, t = (RNG.uniform(0.1, 2, 6) for _ in range(4))
    found = frechet_distance(Moments(m, np.diag(s**2)), Moments(n, np.diag(t**2)))
    assert found == pytest.approx(((m - n) ** 2).sum() + ((s - t) ** 2).sum(), rel=1e-10)


def test_it_is_symmetric_and_zero_for_equal_moments_and_turns_with_its_space():
    a, b = gaussian(8), gaussian(8)
    turn = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
    turned = [Moments(turn @ x.mean, turn @ x.covariance @ turn.T) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.trace(a.covariance))


def test_it_agrees_with_the_matrix_root_where_that_is_known():
    """Commuting covariances: the root of a product is the product of the roots."""
    basis = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    p, q = RNG.uniform(0.1, 3, (2, 5))
    a, b = (Moments(np.zeros(5), (basis * values) @ basis.T) for values in (p, q))
    assert frechet_distance(a, b) == pytest.approx(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(), rel=1e-9)


def test_more_samples_of_one_distribution_come_closer():
    """The bias of small sets: the floor falls about as 1 / n."""
    floor = [
        np.mean([frechet_distance(*(moments(RNG.standard_normal((n, 8))) for _ in "ab")) for _ in range(20)])
        for n in (50, 200, 800)
    ]
    assert floor[0] > 3 * floor[1] > 9 * floor[2] > 0


def test_bad_features_are_refused():
    for features in (np.zeros((1, 4)), np.zeros(4), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="expected finite features"):
            moments(features)
    with pytest.raises(ValueError, match="4 and 3 numbers"):
        frechet_distance(gaussian(4), gaussian(3))
