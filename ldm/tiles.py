"""Decoding large latents in overlapping tiles: the memory of one tile, and no seams.

An autoencoder's decoder looks a little around each point (and, in its middle, at everything: the tiles' colours may
differ a little from the whole's). Tiles overlap by a quarter, and where they do their pictures are blended by weights
that rise linearly from their edges.

Shapes: N pictures, h w latent size, f pixels per latent pixel, Z latent channels.
"""

from collections.abc import Callable

import numpy as np

OVERLAP = 4  # a tile's side over the overlap
LEAST = 8  # latent pixels along a tile's side


def places(side: int, tile: int) -> list[int]:
    """Where tiles begin along a side so that all of it is covered, evenly, each overlapping the next by a quarter."""
    if side <= tile:
        return [0]
    count = int(np.ceil((side - tile) / (tile - tile // OVERLAP))) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def ramp(length: int, rise: int) -> np.ndarray:
    """Weights [length] in 0..1 that rise over `rise` entries from both ends; never 0."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(from_end / max(rise, 1), 1.0).astype(np.float32)


def decode_tiles(decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, f: int, tile: int) -> np.ndarray:
    """Latents [N, h, w, Z] -> pictures [N, h f, w f, 3] by `decode`, one tile of `tile` latent pixels at a time.

    Latents no larger than a tile are decoded whole. Raises ValueError for tiles of less than 8.
    """
    if tile < LEAST:
        raise ValueError(f"tile must be at least {LEAST} latent pixels, got {tile}")
    n, h, w, _ = z.shape
    high, wide = min(tile, h), min(tile, w)
    total, weight = np.zeros((n, h * f, w * f, 3), np.float32), np.zeros((h * f, w * f, 1), np.float32)
    rise = tile // OVERLAP * f
    share = (ramp(high * f, rise)[:, None] * ramp(wide * f, rise))[..., None]
    for y in places(h, high):
        for x in places(w, wide):
            piece = np.asarray(decode(z[:, y : y + high, x : x + wide]))
            area = np.s_[y * f : (y + high) * f, x * f : (x + wide) * f]
            total[:, *area] += share * piece
            weight[area] += share
    return total / weight
