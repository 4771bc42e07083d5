"""The toybox's scenes, camera and solids: laws of geometry, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.toybox import camera as cam
from ldm.toybox import solids
from ldm.toybox.sampling import SPLITS, random_scene, random_scenes
from ldm.toybox.scene import (
    HANDSET,
    HELD_OUT,
    KINDS,
    RADIUS,
    REACH,
    Toy,
    check,
    count,
    is_held_out,
    scene,
    stack,
    take,
    view,
)

CAMERAS = [
    view(a, e, d, t) for a, e, d, t in ((0, 30, 9, (0, 0.7, 0)), (137, 5, 6, (1, 0, -2)), (-60, 90, 12, (0, 1, 0)))
]


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_cameras_axes_are_a_frame_that_looks_at_its_target(camera):
    frame = np.asarray(cam.axes(camera))
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.cross(frame[0], frame[1]), -frame[2], atol=1e-6)  # right x up looks back
    where, depth = cam.project(camera, camera.target[None])
    np.testing.assert_allclose(where, [[0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(depth, camera.distance, rtol=1e-6)
    assert frame[1, 1] >= -1e-6, "up is not down"


@pytest.mark.parametrize("camera", CAMERAS)
def test_rays_go_where_points_are_seen(camera):
    points = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (50, 3)), jnp.float32)
    where, depth = cam.project(camera, points, aspect=1.5)
    d = jnp.stack(cam.rays(camera, where[:, 1], where[:, 0], aspect=1.5), -1)
    away = points - cam.origin(camera)
    np.testing.assert_allclose(d, away / jnp.linalg.norm(away, axis=-1, keepdims=True), atol=2e-6)
    assert (np.asarray(depth) > 0).all()
    np.testing.assert_allclose(cam.to_world(camera, cam.to_camera(camera, points)), points, atol=5e-6)


def test_a_relative_pose_takes_one_cameras_coordinates_to_the_others():
    points = jnp.asarray(np.random.default_rng(1).uniform(-2, 2, (20, 3)), jnp.float32)
    for first in CAMERAS:
        for second in CAMERAS:
            turn, shift = cam.relative_pose(first, second)
            moved = cam.to_camera(first, points) @ turn.T + shift
            np.testing.assert_allclose(moved, cam.to_camera(second, points), atol=2e-5)


def test_every_solid_stands_on_the_table_within_its_circle_and_its_bounding_sphere():
    """On a fine grid of points around each kind, with many identities of heads."""
    rng = np.random.default_rng(2)
    x, y, z = (g.reshape(-1).astype(np.float32) for g in np.meshgrid(*[np.linspace(-1.5, 1.5, 61)] * 3))
    y = y + 1.3
    for kind in KINDS:
        for size in ("small", "large"):
            one = scene([Toy(kind, size=size, yaw=0.7, identity=tuple(rng.random(10)))])
            gap = np.asarray(solids.nearest(solids.parts(one), x, y, z))
            inside, radius = gap < 0, RADIUS[one.size[0]]
            assert inside.any()
            assert np.hypot(x, z)[inside].max() <= radius + 1e-3, kind
            assert -0.06 < y[inside].min() < 0.06, kind
            cx, cy, cz, r = (float(v[0]) for v in solids.bounds(one))
            assert np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)[inside].max() <= r + 1e-3, kind


def test_distances_never_exceed_the_truth():
    """No value grows faster than one moves, so a ray that steps by it cannot step through."""
    rng = np.random.default_rng(3)
    a, b = (rng.uniform(-3, 3, (3, 4000)).astype(np.float32) for _ in range(2))
    for kind in KINDS:
        every = solids.parts(scene([Toy(kind, yaw=0.4, identity=tuple(rng.random(10)))]))
        rise = np.abs(np.asarray(solids.nearest(every, *a)) - np.asarray(solids.nearest(every, *b)))
        assert (rise <= np.linalg.norm(a - b, axis=0) * 1.001 + 1e-5).all(), kind


def test_sphere_and_torus_are_exact():
    p = np.random.default_rng(4).uniform(-2, 2, (3, 500)).astype(np.float32)
    p[1] += 2.2
    ball = solids.nearest(solids.parts(scene([Toy("sphere")])), *p)
    np.testing.assert_allclose(ball, np.sqrt(p[0] ** 2 + (p[1] - 0.92) ** 2 + p[2] ** 2) - 0.92, atol=1e-5)
    ring = solids.nearest(solids.parts(scene([Toy("torus")])), *p)
    np.testing.assert_allclose(ring, np.hypot(np.hypot(p[0], p[2]) - 0.66, p[1] - 0.31) - 0.31, atol=1e-5)


def test_a_scene_is_a_function_of_its_number():
    for split in SPLITS:
        batch = random_scenes([5, 6, 7], seed=3, split=split)
        alone = random_scene(6, seed=3, split=split)
        jax.tree.map(np.testing.assert_array_equal, take(batch, 1), alone)
        others = (
            random_scene(8, 3, split),
            random_scene(6, 4, split),
            random_scene(6, 3, SPLITS[SPLITS.index(split) - 1]),
        )
        for other in others:
            assert not np.array_equal(other.camera.azimuth, alone.camera.azimuth)


def test_a_scene_is_the_same_on_every_machine():
    """Written down once. NumPy promises this stream of random numbers; sines may differ in their last bit."""
    one = random_scene(12345)
    assert one.kind.tolist() == GOLDEN["kind"] and one.colour.tolist() == GOLDEN["colour"]
    np.testing.assert_allclose(one.position, GOLDEN["position"], atol=1e-5)
    np.testing.assert_allclose([one.camera.azimuth, one.camera.elevation, *one.light], GOLDEN["angles"], atol=1e-5)


GOLDEN = {
    "kind": [4, 3, -1],
    "colour": [4, 7, 0],
    "position": [[0.8480013, 0.4974201], [-1.2849858, -0.3638349], [0, 0]],
    "angles": [-0.4992413, 0.5349593, -1.3489909, 1.0118527],
}


def test_random_scenes_are_scenes_and_keep_the_split():
    for split in SPLITS:
        batch = random_scenes(range(500), split=split)
        check(batch)
        held = [is_held_out(take(batch, i)) for i in range(500)]
        assert all(held) if split == "held_out" else not any(held)
        assert not (batch.kind == HANDSET).any()
        share = np.bincount(count(batch), minlength=4) / 500
        np.testing.assert_allclose(share, [0, 0.4, 0.4, 0.2], atol=0.07)
    assert set(np.unique(count(random_scenes(range(20), toys=2)))) == {2}


def test_no_pair_of_colour_and_kind_is_missing_or_rare():
    batch = random_scenes(range(3000))
    full = batch.kind >= 0
    seen = np.zeros((8, 7), int)
    np.add.at(seen, (batch.colour[full], batch.kind[full]), 1)
    for colour in range(8):
        for kind in range(6):
            assert (seen[colour, kind] == 0) == ((colour, kind) in HELD_OUT)
    assert seen[seen > 0].min() > 0.6 * full.sum() / 42


def test_scenes_from_words():
    one = scene([Toy("cube", "blue", "small", "shiny", 1.0, -0.5), Toy("head", "green", x=-1.5)], ground="mint")
    assert [KINDS[k] for k in one.kind[:2]] == ["cube", "head"] and one.kind[2] == -1
    assert int(count(one)) == 2 and is_held_out(scene([Toy("handset")])) and not is_held_out(one)


REFUSED = {
    "kind": (lambda: scene([Toy("prism")]), "no kind 'prism'; choose from sphere"),
    "colour": (lambda: scene([Toy("cube", "beige")]), "no colour 'beige'"),
    "ground": (lambda: scene([Toy("cube")], ground="lava"), "no ground 'lava'"),
    "none": (lambda: scene([]), "1 to 3 toys, got 0"),
    "many": (lambda: scene([Toy("cube", x=3.0 * i - 4) for i in range(4)]), "1 to 3 toys, got 4"),
    "overlap": (lambda: scene([Toy("cube"), Toy("cone", x=1.2)]), "toys 1 and 0 overlap|toys 0 and 1 overlap"),
    "far": (lambda: scene([Toy("cube", x=REACH + 1)]), f"within {REACH}"),
    "elevation": (lambda: scene([Toy("cube")], view(0, -10)), "the camera stands 2 to 90 degrees above"),
    "distance": (lambda: scene([Toy("cube")], view(distance=1)), "3 to 40 units from its target, got 1"),
    "lamp": (lambda: scene([Toy("cube")], light=(0, 0)), "the lamp stands"),
    "identity": (lambda: scene([Toy("head", identity=(2.0,) * 10)]), "identity numbers lie in 0 to 1"),
    "identity length": (lambda: scene([Toy("head", identity=(0.5,) * 9)]), "inhomogeneous|identity has shape"),
    "nan": (lambda: scene([Toy("cube", yaw=float("nan"))]), "yaw is finite numbers"),
    "split": (lambda: random_scene(0, split="dev"), "no split 'dev'; choose from train, test, held_out"),
    "toys": (lambda: random_scene(0, toys=4), "1 to 3 toys, got 4"),
    "index": (lambda: random_scene(-1), "numbered from 0"),
    "large index": (lambda: random_scene(2**63), "numbered from 0 to 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_scenes_are_refused_in_one_sentence(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_bad_scene_of_a_batch_is_named():
    batch = stack([random_scene(i) for i in range(4)])
    bad = batch.kind.copy()
    bad[2, 0] = 9
    with pytest.raises(ValueError, match=r"kind lies in 0 to 6.*scene 2 of the batch"):
        check(dataclasses.replace(batch, kind=bad))
    with pytest.raises(ValueError, match="identity has shape"):
        check(dataclasses.replace(batch, identity=batch.identity[..., :4]))
