"""Pictures and their truth: one program for each shape, and every truth proven against the others."""

import dataclasses

import jax
import numpy as np
import pytest

from ldm.toybox import camera as cam
from ldm.toybox import render as renderer
from ldm.toybox import solids, world
from ldm.toybox.sampling import random_scenes
from ldm.toybox.scene import HEAD, SLOTS, Toy, count, scene, stack, take, view
from ldm.toybox.truth import KEYPOINTS

pytestmark = [pytest.mark.optimised, pytest.mark.long]

SIZE, SMALL = 48, 32


def padded(batch, n):
    """The scenes and copies of the first, ``n`` in all: compiling is what takes time here, so there are few shapes."""
    have = len(batch.kind)
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[:1], n - have, 0)]), batch)


def drawn(batch, samples=2):
    """Pictures of up to 16 scenes at 32 pixels."""
    return np.asarray(world.render(padded(batch, 16), SMALL, samples))[: len(batch.kind)]


def told(batch):
    """The truth of up to 128 scenes at 48 pixels."""
    return jax.tree.map(lambda a: np.asarray(a)[: len(batch.kind)], world.truths(padded(batch, 128), SIZE))


@pytest.fixture(scope="module")
def scenes():
    """Plain ones, held-out ones, and some with handsets and wild cameras."""
    rng = np.random.default_rng(0)
    wild = [
        scene(
            [Toy("handset", x=-1.2), Toy("head", x=1.2, z=0.5, identity=tuple(rng.random(10)))],
            view(rng.uniform(-180, 180), rng.uniform(2, 90), rng.uniform(6, 20)),
        )
        for _ in range(16)
    ]
    parts = random_scenes(range(80)), random_scenes(range(32), split="held_out"), stack(wild)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


@pytest.fixture(scope="module")
def truths(scenes):
    return told(scenes)


def test_pictures_are_pictures_whatever_the_batch(scenes):
    few = jax.tree.map(lambda array: array[60:70], scenes)
    pictures = drawn(few)
    assert pictures.shape == (10, 32, 32, 3) and pictures.dtype == np.float32
    assert pictures.min() >= 0 and pictures.max() <= 1 and np.isfinite(pictures).all()
    assert (pictures.std((1, 2, 3)) > 0.02).all()
    others = jax.tree.map(lambda array: array[64:70], scenes)
    np.testing.assert_allclose(drawn(others)[3], pictures[7], atol=1e-5)


def test_one_compilation_for_each_shape():
    before = world._render._cache_size()
    for start in (0, 3, 6):
        world.render(random_scenes(range(start, start + 3)), (48, 32))
    assert world._render._cache_size() == before + 1


def test_sizes_are_width_and_height_and_show_the_same_scene():
    few = random_scenes(range(3))
    wide = np.asarray(world.render(few, (48, 32)))
    assert wide.shape == (3, 32, 48, 3)
    np.testing.assert_allclose(wide[:, :, 8:40].mean((1, 2)), drawn(few).mean((1, 2)), atol=0.02)


def test_more_samples_approach_the_limit():
    """Anti-aliasing: 2x2 rays for a pixel are nearer to 4x4 than one ray is."""
    few = random_scenes(range(6))
    one, two, four = (drawn(few, samples) for samples in (1, 2, 4))
    assert np.sqrt(np.mean((two - four) ** 2)) < 0.6 * np.sqrt(np.mean((one - four) ** 2))


def test_the_same_number_gives_the_same_picture_everywhere():
    """Means over quarters, written down once; the tolerance leaves room for other orders of summation."""
    pictures = drawn(random_scenes([0, 1, 2]))
    quarters = pictures.reshape(3, 2, 16, 2, 16, 3).mean((2, 4))
    np.testing.assert_allclose(quarters, np.array(GOLDEN).reshape(3, 2, 2, 3), atol=2e-3)


GOLDEN = [
    [0.8982, 0.7701, 0.7704, 0.8719, 0.7735, 0.7753, 0.8194, 0.7117, 0.7127, 0.6825, 0.7276, 0.7365],
    [0.7261, 0.7350, 0.7680, 0.7807, 0.8580, 0.7199, 0.6873, 0.7306, 0.7145, 0.7471, 0.8183, 0.6821],
    [0.5830, 0.6111, 0.6546, 0.5500, 0.5742, 0.6116, 0.5311, 0.5537, 0.5888, 0.4959, 0.5963, 0.6357],
]


def test_nothing_is_nan_in_ten_thousand_scenes():
    """At 24 pixels; every tenth scene with the camera somewhere between grazing and straight above."""
    rng = np.random.default_rng(5)
    for start in range(0, 10_000, 1000):
        batch = random_scenes(range(start, start + 1000), seed=9)
        elevation = batch.camera.elevation.copy()
        elevation[::10] = np.radians(rng.uniform(2, 90, 100))
        batch = dataclasses.replace(batch, camera=dataclasses.replace(batch.camera, elevation=elevation))
        for name, values in world.truths(batch, 24)._asdict().items():
            assert np.isfinite(values).all(), (start, name)
        few = jax.tree.map(lambda array: array[:160:10], batch)
        assert np.isfinite(drawn(few, 1)).all()


def test_boxes_bound_masks_and_areas_count_them(scenes, truths):
    for i in range(len(truths.boxes)):
        for slot in range(SLOTS):
            mask = truths.segmentation[i] == slot + 1
            assert truths.area[i, slot] == pytest.approx(mask.mean(), abs=1e-6)
            x0, y0, x1, y1 = np.round(truths.boxes[i, slot] * SIZE).astype(int)
            inside = np.zeros_like(mask)
            inside[y0:y1, x0:x1] = True
            assert not (mask & ~inside).any()
            if mask.any():
                assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
            else:
                assert not truths.boxes[i, slot].any()
    assert truths.segmentation.max(axis=(1, 2)).max() <= SLOTS
    full = scenes.kind >= 0
    assert (truths.area[~full] == 0).all()


def test_every_toy_of_a_random_scene_is_seen_and_lies_in_the_frame():
    batch = random_scenes(range(128), seed=2)
    found, full = told(batch), batch.kind >= 0
    assert found.area[full].min() > 0.008, "a toy of 64x64 pixels covers more than 32 of them"
    boxes = found.boxes[full]
    assert (boxes[:, :2] > 0).all() and (boxes[:, 2:] < 1).all()
    extent = np.where(full, found.boxes[..., 2:].max(-1), 0).max(-1) - np.where(full, found.boxes[..., 0], 1).min(-1)
    assert extent.mean() > 0.35


def test_depth_lies_on_the_surfaces(scenes, truths):
    """Every pixel taken back into the world lies on a toy or on the table, whichever its mask says."""
    rows, columns = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2, indexing="ij")
    for i in range(0, len(truths.depth), 8):
        one = take(scenes, i)
        d = np.stack(cam.rays(one.camera, rows, columns), -1)
        along = d @ np.asarray(cam.axes(one.camera))[2]
        points = np.asarray(cam.origin(one.camera)) + d * (truths.depth[i] / along)[..., None]
        toy = truths.segmentation[i] > 0
        gap = np.asarray(solids.nearest(solids.parts(one), *np.moveaxis(points, -1, 0)))
        assert np.abs(gap[toy]).max() < 0.1
        table = ~toy & (truths.depth[i] < 0.5 * renderer.FAR)
        assert np.abs(points[table][:, 1]).max(initial=0) < 1e-2


def test_nearer_toys_hide_farther_ones(scenes, truths):
    """A toy's pixels are never farther away than the table seen there."""
    for i in range(len(truths.depth)):
        one = take(scenes, i)
        rows, columns = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2, indexing="ij")
        d = np.stack(cam.rays(one.camera, rows, columns), -1)
        o, frame = np.asarray(cam.origin(one.camera)), np.asarray(cam.axes(one.camera))
        table = np.where(d[..., 1] < -1e-4, o[1] / np.maximum(-d[..., 1], 1e-4) * (d @ frame[2]), np.inf)
        toy = truths.segmentation[i] > 0
        assert (truths.depth[i][toy] < table[toy] + 1e-3).all()


def test_normals_are_unit_and_face_the_camera(scenes, truths):
    met = truths.depth < renderer.FAR
    np.testing.assert_allclose(np.linalg.norm(truths.normals[met], axis=-1), 1, atol=2e-3)
    rows, columns = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE] * 2, indexing="ij")
    reach = 2 * np.tan(cam.FIELD_OF_VIEW / 2)
    ray = np.stack([(columns - 0.5) * reach, (0.5 - rows) * reach, -np.ones_like(rows)], -1)
    facing = -(truths.normals * ray).sum(-1)[met]
    assert np.mean(facing > 0) > 0.995


def test_a_spheres_normals_are_its_own():
    one = stack([scene([Toy("sphere")], view(25, 35, 7))])
    found = jax.tree.map(lambda a: a[0], told(one))
    rows, columns = np.nonzero(found.segmentation)
    lone = take(one, 0)
    d = np.stack(cam.rays(lone.camera, (rows + 0.5) / SIZE, (columns + 0.5) / SIZE), -1)
    frame = np.asarray(cam.axes(lone.camera))
    points = np.asarray(cam.origin(lone.camera)) + d * (found.depth[rows, columns] / (d @ frame[2]))[:, None]
    own = (points - np.array([0, 0.92, 0])) / 0.92
    seen = own @ (frame * np.array([[1], [1], [-1]])).T
    assert np.median(np.abs(found.normals[rows, columns] - seen)) < 5e-3


def test_mask_borders_are_edges(truths):
    seg = truths.segmentation
    across, down = seg[:, :, :-1] != seg[:, :, 1:], seg[:, :-1] != seg[:, 1:]
    assert truths.edges[:, :, :-1][across].all() and truths.edges[:, :-1][down].all()
    assert 0.01 < truths.edges.mean() < 0.2
    near = np.zeros_like(truths.edges)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(seg > 0, (dy, dx), (1, 2))
    assert near[truths.edges].all(), "an edge belongs to a toy"


def test_seen_keypoints_lie_on_their_head(scenes, truths):
    heads = scenes.kind == HEAD
    assert truths.keypoints_seen[heads].any() and not truths.keypoints_seen[~heads].any()
    assert not truths.keypoints[~heads].any()
    for i, slot, k in np.argwhere(truths.keypoints_seen):
        column, row = np.floor(truths.keypoints[i, slot, k] * SIZE).astype(int)
        around = truths.segmentation[i, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert (around == slot + 1).any(), (i, slot, KEYPOINTS[k])


def test_faces_turned_to_the_camera_show_all_keypoints_in_order():
    toys = [Toy("head", identity=tuple(np.random.default_rng(s).random(10))) for s in range(20)]
    batch = stack([scene([toy], view(0, 20, 6.4)) for toy in toys])
    found = told(batch)
    assert found.keypoints_seen[:, 0].all()
    left_eye, right_eye, nose, left_mouth, right_mouth = np.moveaxis(found.keypoints[:, 0], 1, 0)
    assert (left_eye[:, 0] < nose[:, 0]).all() and (nose[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all() and (left_eye[:, 1] < left_mouth[:, 1]).all()
    behind = stack([scene([toy], view(180, 20, 6.4)) for toy in toys])
    assert not told(behind).keypoints_seen.any()


def test_one_views_keypoints_become_the_others_by_the_relative_pose():
    batch = random_scenes(range(60), seed=7)
    turned = dataclasses.replace(
        batch, camera=dataclasses.replace(batch.camera, azimuth=batch.camera.azimuth + np.float32(0.4))
    )
    first, second = (told(b) for b in (batch, turned))
    turn, shift = (np.asarray(v) for v in cam.relative_pose(batch.camera, turned.camera))
    moved = np.einsum("bij,bnkj->bnki", turn, first.keypoints_3d) + shift[:, None, None]
    heads = batch.kind == HEAD
    assert heads.sum() > 10
    np.testing.assert_allclose(moved[heads], second.keypoints_3d[heads], atol=2e-4)
    scale = 0.5 / (np.tan(cam.FIELD_OF_VIEW / 2) * moved[heads][..., 2])
    where = np.stack([0.5 + moved[heads][..., 0] * scale, 0.5 - moved[heads][..., 1] * scale], -1)
    np.testing.assert_allclose(where, second.keypoints[heads], atol=1e-4)


def test_identity_changes_the_face_and_nothing_else_does():
    a, b = (scene([Toy("head", identity=(v,) * 10)]) for v in (0.2, 0.9))
    c, d = (scene([Toy("cube", identity=(v,) * 10)]) for v in (0.2, 0.9))
    pictures = drawn(stack([a, b, c, d]))
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.01
    np.testing.assert_array_equal(pictures[2], pictures[3])


def test_shiny_and_matte_differ_on_the_toy_only():
    plain = random_scenes(range(8), toys=1)
    shiny, matte = (dataclasses.replace(plain, material=np.full_like(plain.material, m)) for m in (1, 0))
    gap = np.abs(drawn(shiny, 1) - drawn(matte, 1)).max(-1)
    toy = told(plain).segmentation[:, 1::3, 1::3] > 0  # every third of 48 pixels lies within every second of 32
    assert gap[:, ::2, ::2][toy].mean() > 0.02
    assert (gap == 0).mean() > 0.6, "the table does not change"


def test_bad_calls_are_refused_in_one_sentence():
    batch = random_scenes(range(2))
    for call, message in (
        (lambda: world.render(take(batch, 0)), "expected a batch of scenes"),
        (lambda: world.render(batch, 0), "1 to 4096 pixels"),
        (lambda: world.render(batch, 64, 9), "1 to 8 samples"),
        (lambda: world.truths(dataclasses.replace(batch, ground=np.array([0, 99]))), "ground lies in 0 to 5, got 99"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert int(count(batch).sum()) >= 2
