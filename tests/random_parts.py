"""Networks of random numbers, and pictures of noise, for tests of what is put beside a model."""

from typing import Any

import numpy as np

from ldm.models.layers import shapes


def random_params(model: type, config: Any, seed: int) -> dict[str, np.ndarray]:
    """Parameters of a network, none of them zero, float32."""
    rng = np.random.default_rng(seed)
    made = lambda shape: (rng.standard_normal(shape) / max(1, np.prod(shape[:-1])) ** 0.5).astype(np.float32)
    return {name: made(spec.shape) for name, spec in shapes(model, config).items()}


def noise_picture(seed: int, height: int = 48, width: int = 64, *count: int) -> np.ndarray:
    """[H, W, 3] uint8, or ``count`` of them."""
    return np.random.default_rng(seed).integers(0, 255, (*count, height, width, 3), np.uint8)
