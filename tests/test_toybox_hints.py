"""The toybox's hints: each says what its truth says, in a picture, alone or in a batch."""

import itertools

import jax
import numpy as np
import pytest

from ldm.toybox import world
from ldm.toybox.hints import DOT, HINTS, PALETTE, POINTS, hint
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import SLOTS
from ldm.toybox.truth import KEYPOINTS, Truth

H, W, K = 40, 60, len(KEYPOINTS)
SPREAD = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]], np.float32)  # a face of 24 pixels


def made(*batch: int, seed: int = 0) -> Truth:
    """Truth of no scene: all fields random, one face with all its points seen."""
    rng = np.random.default_rng(seed)
    n = rng.standard_normal((*batch, H, W, 3))
    keypoints, seen = np.zeros((*batch, SLOTS, K, 2), np.float32), np.zeros((*batch, SLOTS, K), bool)
    keypoints[..., 1, :, :], seen[..., 1, :] = SPREAD + rng.uniform(-0.1, 0.1, (*batch, 1, 1)), True
    return Truth(
        segmentation=rng.integers(0, SLOTS + 1, (*batch, H, W)).astype(np.int32),
        depth=rng.uniform(5, 60, (*batch, H, W)).astype(np.float32),
        normals=(n / np.linalg.norm(n, axis=-1, keepdims=True)).astype(np.float32),
        edges=rng.random((*batch, H, W)) < 0.1,
        boxes=np.zeros((*batch, SLOTS, 4), np.float32),
        area=np.zeros((*batch, SLOTS), np.float32),
        keypoints=keypoints,
        keypoints_3d=np.zeros((*batch, SLOTS, K, 3), np.float32),
        keypoints_seen=seen,
    )


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_is_a_picture_the_same_in_any_batch(name):
    truth = made(2, 3)
    all_at_once = np.asarray(jax.jit(lambda t: hint(name, t))(truth))
    assert all_at_once.shape == (2, 3, H, W, 3) and all_at_once.dtype == np.float32
    assert all_at_once.min() >= 0 and all_at_once.max() <= 1 and all_at_once.std() > 0.01
    alone = hint(name, Truth(*(values[1, 2] for values in truth)))
    np.testing.assert_allclose(all_at_once[1, 2], alone, atol=1e-6)
    mapped = jax.vmap(jax.vmap(lambda t: hint(name, t)))(truth)
    np.testing.assert_allclose(all_at_once, mapped, atol=1e-6)


def test_depth_is_whiter_the_nearer_whatever_the_unit():
    truth = made(2)
    picture = np.asarray(hint("depth", truth))
    assert (picture == picture[..., :1]).all()
    for shade, depth in zip(picture[..., 0], truth.depth, strict=True):
        assert shade.flat[depth.argmin()] == 1 and shade.flat[depth.argmax()] == 0
        assert (np.diff(shade.ravel()[depth.ravel().argsort()]) <= 0).all()
    np.testing.assert_allclose(hint("depth", truth._replace(depth=3 * truth.depth)), picture, atol=1e-5)
    assert not np.asarray(hint("depth", truth._replace(depth=np.full_like(truth.depth, 60)))).any(), "only wall"


def test_what_is_drawn_can_be_read_back():
    truth = made(2)
    np.testing.assert_allclose(2 * hint("normals", truth) - 1, truth.normals, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(hint("edges", truth)) > 0.5, np.repeat(truth.edges[..., None], 3, -1))
    distances = np.linalg.norm(np.asarray(hint("segmentation", truth))[..., None, :] - PALETTE, axis=-1)
    np.testing.assert_array_equal(distances.argmin(-1), truth.segmentation)


@pytest.mark.parametrize("colours", [PALETTE, POINTS], ids=["palette", "points"])
def test_colours_are_well_apart(colours):
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(colours, 2)) == 1
    assert len(PALETTE) == SLOTS + 1 and len(POINTS) == K


def test_a_dot_lies_on_its_keypoint_in_its_colour():
    truth = made()
    picture = np.asarray(hint("keypoints", truth))
    for (x, y), colour in zip(truth.keypoints[1], POINTS, strict=True):
        np.testing.assert_allclose(picture[int(y * H), int(x * W)], colour, atol=0.4)
    rows, columns = np.nonzero(picture.any(-1))
    x, y = truth.keypoints[1].T * [[W], [H]]
    reach = max(DOT * H, 0.5) + 1
    assert rows.min() > y.min() - 1 - reach and rows.max() < y.max() + reach
    assert columns.min() > x.min() - 1 - reach and columns.max() < x.max() + reach


def test_keypoints_that_are_not_seen_are_not_drawn():
    truth = made()
    nothing = truth._replace(keypoints_seen=np.zeros_like(truth.keypoints_seen))
    assert not np.asarray(hint("keypoints", nothing)).any()
    seen = truth.keypoints_seen.copy()
    seen[1, 3] = False
    fewer, all_ = (np.asarray(hint("keypoints", t)) for t in (truth._replace(keypoints_seen=seen), truth))
    x, y = truth.keypoints[1, 3] * [W, H]
    assert not fewer[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any()
    assert 0 < np.count_nonzero(fewer) < np.count_nonzero(all_)


def test_keypoints_move_with_the_face():
    truth = made()
    moved = truth._replace(keypoints=truth.keypoints + np.array([6 / W, -4 / H], np.float32))
    here, there = (np.asarray(hint("keypoints", t)) for t in (truth, moved))
    np.testing.assert_allclose(np.roll(here, (-4, 6), (0, 1)), there, atol=1e-4)


def test_an_unknown_hint_is_refused():
    with pytest.raises(ValueError, match=r"no hint 'canny' \(known: depth, normals, edges, segmentation, keypoints\)"):
        hint("canny", made())


@pytest.mark.long
@pytest.mark.optimised
def test_hints_of_scenes():
    truth = world.truths(random_scenes(range(8)), 64)
    for name in HINTS:
        pictures = np.asarray(hint(name, truth))
        assert pictures.shape == (8, 64, 64, 3) and np.isfinite(pictures).all()
        assert pictures.min() >= 0 and pictures.max() <= 1
        drawn = truth.keypoints_seen.any((1, 2)) if name == "keypoints" else np.ones(8, bool)
        np.testing.assert_array_equal(pictures.std((1, 2, 3)) > 0, drawn, err_msg=name)
