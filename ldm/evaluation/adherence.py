"""How well a picture follows another: where their edges are.

N pictures, H W pixels.

Both are reduced to Canny's edges. Of the edges of one, the share that lies within ``reach`` pixels of an edge of the
other is its precision or recall; the score is F1, their harmonic mean, 1 for the same edges and 0 for none in common:
the boundary measure of the Berkeley segmentation benchmark, with a square in place of its matching of single pixels.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ldm.hints import edges

LOW, HIGH = 60.0, 120.0  # of Canny's detector: the toybox's outlines, and not its soft shadows


def edge_agreement(made: np.ndarray, wanted: np.ndarray, reach: int = 1) -> np.ndarray:
    """F1 of the edges of each pair of pictures, uint8 [N, H, W, 3]: float32 [N]; 1 where neither has any."""
    return np.asarray(_agreement(np.asarray(made), np.asarray(wanted), reach))


@partial(jax.jit, static_argnums=2)
def _agreement(made: Array, wanted: Array, reach: int) -> Array:
    found, true = (jax.vmap(lambda one: edges(one, LOW, HIGH, 0.0))(pictures) for pictures in (made, wanted))
    window = (1, 2 * reach + 1, 2 * reach + 1)
    near = lambda mask: lax.reduce_window(mask, False, lax.bitwise_or, window, (1, 1, 1), "SAME")
    count = lambda mask: mask.sum((1, 2)).astype(jnp.float32)
    precision = count(found & near(true)) / jnp.maximum(count(found), 1)
    recall = count(true & near(found)) / jnp.maximum(count(true), 1)
    f1 = 2 * precision * recall / jnp.maximum(precision + recall, 1e-6)
    return jnp.where((count(found) == 0) & (count(true) == 0), 1.0, f1)
