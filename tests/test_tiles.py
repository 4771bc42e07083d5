"""Decoding in tiles: every pixel covered, no seams, and the whole where the whole fits."""

import itertools

import numpy as np
import pytest

import ldm
from ldm.tiles import decode_tiles, places, ramp


def test_tiles_cover_a_side_and_overlap():
    for side in range(8, 200, 7):
        for tile in (8, 16, 31):
            at = places(side, tile)
            wide = min(tile, side)
            assert at[0] == 0 and at[-1] + wide == side
            assert all(0 < b - a < tile for a, b in itertools.pairwise(at))


def test_weights_rise_and_fall():
    assert ramp(6, 2).tolist() == [0.25, 0.75, 1, 1, 0.75, 0.25]
    assert ramp(7, 0).tolist() == [0.5, 1, 1, 1, 1, 1, 0.5]


def pointwise(z):
    """A decoder that looks at nothing but the point: 4 x 4 pixels of three of the channels."""
    return np.tanh(z[..., :3]).repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize("size", [(8, 8), (20, 33), (64, 17)])
def test_a_decoder_without_neighbours_is_decoded_exactly(size):
    z = np.random.default_rng(0).standard_normal((2, *size, 4)).astype(np.float32)
    np.testing.assert_allclose(decode_tiles(pointwise, z, 4, 12), pointwise(z), atol=1e-5)


def test_neighbours_beyond_a_tile_leave_no_seam():
    """A decoder that sees one point to each side: tiles agree but at their very edges, which weigh least."""
    blur = lambda z: pointwise((z + np.roll(z, 1, 1) + np.roll(z, -1, 1) + np.roll(z, 1, 2) + np.roll(z, -1, 2)) / 5)
    y, x = np.mgrid[:40, :40] / 6.0
    z = np.stack([np.sin(x), np.cos(y), np.sin(x + y), x], -1)[None].astype(np.float32)
    apart = np.abs(decode_tiles(blur, z, 4, 16) - blur(z))[:, 8:-8, 8:-8]
    assert apart.max() < 0.15 and apart.mean() < 0.01


def test_the_model_in_tiles(tiny):
    z = np.random.default_rng(1).standard_normal((1, 24, 16, 4)).astype(np.float32)
    whole = ldm.decode(tiny, z).astype(int)
    assert np.array_equal(ldm.decode(tiny, z, tile=24), whole)
    tiled = ldm.decode(tiny, z, tile=16)
    assert tiled.shape == whole.shape and np.abs(tiled - whole).mean() < whole.std() / 2
    with pytest.raises(ValueError, match="tile must be at least 8 latent pixels, got 4"):
        ldm.decode(tiny, z, tile=4)
