"""Laws of the toybox's datasets: an example follows from its index, and a folder holds what is true in memory."""

import json
from itertools import count, islice

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.toybox import captions, dataset
from ldm.toybox.captions import PLAIN
from ldm.toybox.dataset import MAPS, Dataset, batches, encoded, example, file_name, pictures, write_folder
from ldm.toybox.grammar import matches
from ldm.toybox.parsing import parse
from ldm.toybox.sampling import random_scene
from ldm.toybox.scene import HEAD, KINDS, is_held_out, take
from ldm.toybox.truth import Truth
from ldm.toybox.world import truths

pytestmark = pytest.mark.optimised

SMALL = Dataset(seed=3, size=32)
B, N = 8, 13  # examples in a batch, for which programs are compiled once; in a folder: one batch and a part


def same(one, other) -> bool:
    """Whether two scenes are equal, to the bit."""
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


# ---- in memory ----


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(("train", "test", "held_out")))
def test_an_example_is_a_function_of_its_index(index: int, seed: int, split: str):
    data = Dataset(seed=seed, split=split)
    one, again = example(index, data), example(index, data)
    assert one.caption == again.caption and same(one.scene, again.scene)
    assert matches(parse(one.caption), captions.toys(one.scene), captions.relations(one.scene))
    assert same(one.scene, random_scene(index, seed, split))


def test_the_wording_changes_captions_and_nothing_else():
    plain = Dataset(wording=PLAIN)
    pairs = [(example(i), example(i, plain)) for i in range(20)]
    assert all(same(one.scene, other.scene) for one, other in pairs)
    assert sum(one.caption != other.caption for one, other in pairs) > 10


def test_examples_are_the_same_in_any_batch_and_order():
    whole = pictures(range(B), SMALL)
    assert whole["picture"].dtype == np.float32 and whole["picture"].shape == (B, 32, 32, 3)
    for order in ([5, 0, 7, 3, 1, 4, 2, 6], [2, 9, 4, 8, 1, 7, 20, 2]):
        other = pictures(order, SMALL)
        for k, i in enumerate(order):
            if i < B:
                assert other["caption"][k] == whole["caption"][i] and other["index"][k] == i
                assert same(take(other["scene"], k), take(whole["scene"], i))
                assert np.array_equal(other["picture"][k], whole["picture"][i])
    alone = pictures([4], SMALL)
    assert alone["caption"] == whole["caption"][4:5] and same(take(alone["scene"], 0), take(whole["scene"], 4))
    np.testing.assert_allclose(alone["picture"][0], whole["picture"][4], atol=1e-4)


def test_batches_are_whole_and_in_order():
    indices = [7, 1, 5, 2, 0, 3, 9, 4, 6, 8]
    assert [one["index"].tolist() for one in batches(indices, B, SMALL)] == [indices[:B]]
    endless = islice(batches(count(), B, SMALL), 2)
    assert [one["index"].tolist() for one in endless] == [list(range(B)), list(range(B, 2 * B))]


def test_splits_hold_out_what_they_should():
    assert not any(is_held_out(example(i).scene) for i in range(300))
    assert not any(is_held_out(random_scene(i, split=split)) for split in ("train", "test") for i in range(1000))
    held = [random_scene(i, split="held_out") for i in range(1000)]
    assert all(map(is_held_out, held)) and not any((one.kind == KINDS.index("handset")).any() for one in held)


def test_splits_and_seeds_have_scenes_of_their_own():
    places = [
        random_scene(i, seed, split).position.tobytes()
        for split in ("train", "test", "held_out")
        for seed in (0, 1)
        for i in range(100)
    ]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("toys", [1, 2, 3])
def test_the_number_of_toys_can_be_chosen(toys: int):
    assert all((example(i, Dataset(toys=toys)).scene.kind >= 0).sum() == toys for i in range(30))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: example(-1), "numbered from 0"),
        (lambda: Dataset(seed=-1), "a seed is a whole number from 0 .* got -1"),
        (lambda: Dataset(seed=2**63), "a seed is a whole number"),
        (lambda: example(0, Dataset(split="valid")), "no split 'valid'; choose from train, test, held_out"),
        (lambda: example(0, Dataset(toys=4)), "1 to 3 toys, got 4"),
        (lambda: pictures([]), "at least one index, got none"),
        (lambda: pictures([0], Dataset(size=0)), "1 to 4096 pixels"),
        (lambda: pictures([0], Dataset(samples=0)), "1 to 8 samples"),
        (lambda: next(batches([0], 0)), "at least one example, got 0"),
        (lambda: write_folder("nowhere", 0), "a folder holds 1 to 1000000 pictures, got 0"),
    ],
)
def test_what_cannot_be_is_refused(run, words: str):
    with pytest.raises(ValueError, match=words):
        run()


# ---- in a folder ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of ``N`` examples."""
    path = tmp_path_factory.mktemp("toybox") / "made"
    write_folder(path, N, SMALL)
    return path


@pytest.fixture(scope="module")
def rows(folder):
    """The lines of its table."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def memory():
    """The same examples in memory, with their truth, made in other batches: (examples, pictures, truth)."""
    order = np.arange(2 * B)[::-1].reshape(2, B)
    made = [pictures(indices, SMALL) for indices in order]
    found = [truths(one["scene"], SMALL.size) for one in made]
    drawn = np.concatenate([one["picture"] for one in made])[::-1]
    true = Truth(*(np.concatenate(values)[::-1] for values in zip(*found, strict=True)))
    return [example(i, SMALL) for i in range(N)], drawn, true


def read(folder, name: str) -> np.ndarray:
    """A picture of the folder as stored."""
    with Image.open(folder / name) as image:
        return np.asarray(image)


def test_maps_and_pictures_are_those_in_memory(folder, rows, memory):
    _, drawn, true = memory
    for i, row in enumerate(rows):
        assert np.abs(read(folder, row["file_name"]) - drawn[i] * 255.0).max() <= 0.52
        depth = read(folder, row["depth_file_name"])
        assert depth.dtype == np.uint16
        np.testing.assert_allclose(depth / 1000, true.depth[i], atol=0.0006)
        normals = read(folder, row["normals_file_name"]) / 255 * 2 - 1
        np.testing.assert_allclose(normals, true.normals[i], atol=0.005)
        assert np.array_equal(read(folder, row["segmentation_file_name"]), true.segmentation[i])
        assert np.array_equal(read(folder, row["edges_file_name"]), true.edges[i] * np.uint8(255))


def test_every_row_is_complete(folder, rows):
    assert len(rows) == N and [row["index"] for row in rows] == list(range(N))
    assert len({tuple(row) for row in rows}) == 1
    assert len({tuple(toy) for row in rows for toy in row["objects"]}) == 1
    named = {row[name] for row in rows for name in row if name.endswith("file_name")}
    stored = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert named == stored and len(stored) == N * (1 + len(MAPS))
    assert sorted(path.name for path in folder.iterdir()) == sorted(["README.md", "images", "metadata.jsonl", *MAPS])
    about = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in about for name in ("images", *MAPS, *rows[0]["objects"][0], "relations", "camera"))


def test_rows_say_what_is_true(rows, memory):
    made, _, true = memory
    for i, (row, one) in enumerate(zip(rows, made, strict=True)):
        scene = one.scene
        assert row["text"] == one.caption
        known = [(r["first"], r["relation"], r["second"]) for r in row["relations"]]
        assert matches(parse(row["text"]), captions.toys(scene), known) and known == captions.relations(scene)
        assert (row["seed"], row["split"], row["held_out"]) == (3, "train", False)
        assert np.radians(row["camera"]["azimuth"]) == pytest.approx(float(scene.camera.azimuth), abs=1e-6)
        assert len(row["objects"]) == (scene.kind >= 0).sum()
        for k, toy in enumerate(row["objects"]):
            assert toy["kind"] == KINDS[scene.kind[k]]
            np.testing.assert_allclose(toy["position"], scene.position[k], atol=1e-6)
            np.testing.assert_allclose(toy["box"], true.boxes[i, k], atol=1e-6)
            np.testing.assert_allclose(toy["area"], true.area[i, k], atol=1e-6)
            face = [toy[name] for name in ("identity", "keypoints", "keypoints_3d", "keypoints_seen")]
            if scene.kind[k] == HEAD:
                wanted = (scene.identity, true.keypoints[i], true.keypoints_3d[i], true.keypoints_seen[i])
                for values, expected in zip(face, wanted, strict=True):
                    np.testing.assert_allclose(values, expected[k], atol=2e-5)
            else:
                assert face == [None] * 4
    assert any(toy["keypoints"] for row in rows for toy in row["objects"])


def test_a_scene_can_be_had_again_from_its_row(rows):
    row = rows[11]
    assert example(row["index"], Dataset(row["seed"], row["split"])).caption == row["text"]


def test_boxes_are_those_of_the_stored_masks(folder, rows):
    for row in rows:
        mask = read(folder, row["segmentation_file_name"])
        for k, toy in enumerate(row["objects"]):
            where = np.argwhere(mask == k + 1)
            (y0, x0), (y1, x1) = where.min(0), where.max(0) + 1
            np.testing.assert_allclose(np.array(toy["box"]) * 32, [x0, y0, x1, y1], atol=1e-4)


def test_depth_has_room_for_the_farthest_wall():
    far = Truth(*[np.zeros((2, 2))] * 9)._replace(depth=np.array([[60.0, 0.0], [1.2344, 99.0]], np.float32))
    assert encoded(far)["depth"].tolist() == [[60000, 0], [1234, 65535]]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_behind(tmp_path, monkeypatch, error):
    calls = []

    def row(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return {}

    monkeypatch.setattr(dataset, "row", row)
    with pytest.raises(type(error)):
        write_folder(tmp_path / "out", 5, SMALL)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder; choose another"):
        write_folder(tmp_path, 2, SMALL)
    with pytest.raises(ValueError, match="not an empty folder"):
        write_folder(tmp_path / "mine.txt", 2, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path):
    write_folder(tmp_path, 1, SMALL)
    assert (tmp_path / file_name("images", 0)).exists()
