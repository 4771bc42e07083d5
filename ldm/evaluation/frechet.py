"""The Fréchet distance between two sets of features, each taken for a Gaussian.

n samples, F features.

Sources: D. C. Dowson and B. V. Landau, "The Fréchet distance between multivariate normal distributions" (1982),
eq. (4); "GANs Trained by a Two Time-Scale Update Rule" (arXiv:1706.08500), eq. (6), for its use on pictures.
"""

from typing import Any, NamedTuple

import numpy as np


class Moments(NamedTuple):
    """``mean`` [F] and ``covariance`` [F, F], float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: Any) -> Moments:
    """Mean and unbiased covariance of features [n, F]. Raises ValueError for fewer than two samples, or none finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(f"expected finite features [n, F] of at least 2 samples, got shape {features.shape}")
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^(1/2)): eq. (6), squared as is the custom; 0 for equal moments.

    (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), whose argument is symmetric: its root is taken by
    eigenvalues, and what rounding makes negative counts as 0. Raises ValueError for different F.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"the features have {len(a.mean)} and {len(b.mean)} numbers: compare those of one network")
    root = _root(a.covariance)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    apart = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(apart, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
