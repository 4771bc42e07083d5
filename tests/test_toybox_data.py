"""Laws of the toybox as training data: kept scenes and latents, captions, hard negatives, labels."""

from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

import jax
import numpy as np
import pytest

from ldm.models.autoencoder import VAE, VAEConfig
from ldm.models.layers import bind, shapes
from ldm.tokenizer import Tokenizer
from ldm.toybox.captions import compare, holds, relations, toys
from ldm.toybox.parsing import parse
from ldm.toybox.scene import count as toys_of
from ldm.toybox.scene import take
from ldm.training import cache, toybox_data
from ldm.training.cache import keep_latents, kept
from ldm.training.data import Tokens
from ldm.training.toybox_data import ToyboxData, ToyboxSource, draw, facts, keep_scenes, scenes_of

pytestmark = pytest.mark.optimised

DATA = ToyboxData(count=70, size=8, samples=1)
TOKENS = Tokens(Tokenizer.clip(), 40)
VAE_CONFIG = VAEConfig(channels=(4, 4), blocks=1, groups=2)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_scenes(DATA, tmp_path_factory.mktemp("scenes"))


# ---- scenes ----


def test_kept_scenes_are_those_that_are_drawn_anew(scenes: Path):
    indices = np.arange(69, 5, -1)  # 64 of them, as many as are drawn together when scenes are kept: one program
    drawn = scenes_of(DATA, indices)
    source = ToyboxSource(DATA, scenes)
    assert np.array_equal(source.pictures(indices), draw(DATA, drawn))
    rows = source.rows(0, indices, indices)
    fresh = ToyboxSource(DATA)
    assert same(fresh.finish(fresh.rows(0, indices, indices)), rows)
    for name, values in facts(drawn).items():
        assert np.array_equal(np.load(scenes / f"{name}.npy")[indices], values)
    assert rows["pictures"].dtype == np.uint8 and rows["pictures"].shape == (64, 8, 8, 3)


def test_kept_scenes_are_found_again_and_other_settings_are_kept_beside_them(scenes: Path, monkeypatch):
    monkeypatch.setattr(toybox_data, "draw", lambda *_: pytest.fail("drawn again"))
    assert keep_scenes(replace(DATA, short=0.9), scenes.parent) == scenes
    assert [path.name for path in scenes.parent.iterdir()] == [scenes.name]
    others = [{"seed": 1}, {"size": 9}, {"samples": 2}, {"toys": (1.0, 0.0, 0.0)}, {"split": "test"}, {"count": 71}]
    assert len({replace(DATA, **other).key for other in others} | {DATA.key}) == 7
    with pytest.raises(ValueError, match="these are scenes of other settings"):
        ToyboxSource(replace(DATA, seed=1), scenes)


def test_scenes_have_as_many_toys_as_often_as_the_weights_say():
    for toys_, expected in (((1.0, 0.0, 0.0), (1, 0, 0)), ((0.0, 3.0, 1.0), (0, 0.75, 0.25))):
        batch = scenes_of(replace(DATA, toys=toys_), range(200))
        found = np.bincount(toys_of(batch), minlength=4)[1:] / 200
        np.testing.assert_allclose(found, expected, atol=0.1)  # three standard deviations


def test_captions_are_true_and_hard_ones_are_not(scenes: Path):
    source = ToyboxSource(DATA, scenes, tokens=TOKENS, hard=3)
    indices = np.arange(70)
    rows, drawn = source.rows(1, indices + 700, indices), scenes_of(DATA, indices)
    assert rows["ids"].shape == (70, 40) and rows["hard_ids"].shape == (70, 3, 40)
    for index in indices:
        one = take(drawn, int(index))
        true, *wrong = [
            parse(TOKENS.tokenizer.decode(ids).replace(" ,", ","))
            for ids in (rows["ids"][index], *rows["hard_ids"][index])
        ]
        assert holds(true, one) and true.toys == len(toys(one))
        assert not any(holds(meaning, one) for meaning in wrong)


def test_captions_are_fresh_in_every_epoch_and_hard_negatives_do_not_change_them(scenes: Path):
    source, indices = ToyboxSource(DATA, scenes, tokens=TOKENS), np.arange(40)
    now, later = source.rows(0, indices, indices), source.rows(0, indices + 70, indices)
    assert (now["ids"] != later["ids"]).any(1).mean() > 0.5  # a plain prompt comes again
    assert np.array_equal(replace(source, hard=1).rows(0, indices, indices)["ids"], now["ids"])


@pytest.mark.parametrize(("short", "plain"), [(1.0, True), (0.0, False)])
def test_the_short_fraction_is_that_of_plain_prompts(scenes: Path, short: float, plain: bool):
    known = facts(scenes_of(DATA, range(40)))
    rng = np.random.default_rng(0)
    texts = [
        toybox_data.tell(replace(DATA, short=short), *row, rng)[0]
        for row in zip(known["toys"], known["seen"], strict=True)
    ]
    wordy = [text for text in texts if {"small", "large", "shiny", "matte", "photo", "ball"} & set(text.split())]
    assert bool(wordy) != plain
    assert len({text for text in texts if "left" in text}) > 1 or not plain


def test_labels_are_kind_and_colour_of_the_one_toy():
    data = replace(DATA, toys=(1.0, 0.0, 0.0))
    rows = ToyboxSource(data, labels=True).rows(0, np.arange(30), np.arange(30))  # not finished: nothing is drawn
    drawn = scenes_of(data, range(30))
    assert rows["labels"].dtype == np.int32
    assert rows["labels"].tolist() == (drawn.kind[:, 0] * 8 + drawn.colour[:, 0]).tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": -1}, "count must be >= 0"),
        ({"size": 0}, "size must be > 0"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"toys": (1.0, 1.0)}, "toys must be 3 numbers"),
        ({"toys": (0.0, 0.0, 0.0)}, "toys must be 3 numbers"),
        ({"toys": (1.0, -1.0, 1.0)}, "toys must be 3 numbers"),
        ({"toys": (1.0, float("nan"), 1.0)}, "toys must be 3 numbers"),
        ({"short": 1.5}, "short must be >= 0 and <= 1"),
    ],
)
def test_toybox_data_that_cannot_be_is_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        ToyboxData(**options)


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="need a tokenizer"):
        ToyboxSource(DATA, hard=2)
    with pytest.raises(ValueError, match=r"set toys to \(1, 0, 0\)"):
        ToyboxSource(DATA, labels=True)
    with pytest.raises(ValueError, match="make these by keep_scenes first"):
        ToyboxSource(DATA, latents=tmp_path)
    with pytest.raises(ValueError, match="without end cannot be kept"):
        keep_scenes(replace(DATA, count=0), tmp_path)


# ---- what is kept ----


def test_latents_are_the_autoencoders_and_are_found_again(scenes: Path, tmp_path: Path, monkeypatch):
    rng, source = np.random.default_rng(0), ToyboxSource(DATA, scenes, tokens=TOKENS)
    normal = lambda one: rng.standard_normal(one.shape, np.float32) * 0.3
    params = {name: normal(one) for name, one in shapes(VAE, VAE_CONFIG).items()}
    folder = keep_latents(VAE_CONFIG, params, source, tmp_path, batch=32)  # 70 pictures: the last chunk begins earlier
    rows = replace(source, latents=folder).rows(0, np.arange(70), np.arange(70))
    assert set(rows) == {"mean", "logvar", "ids"} and rows["mean"].dtype == np.float16
    pictures = source.pictures(np.arange(70)).astype(np.float32) / 127.5 - 1
    encode = jax.jit(lambda params, pictures: bind(VAE, VAE_CONFIG, params).encode(pictures))
    for name, expected in zip(("mean", "logvar"), encode(params, pictures), strict=True):
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(rows[name], expected, rtol=2e-3, atol=4e-3)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_encode", lambda *_: pytest.fail("encoded again"))
        assert keep_latents(VAE_CONFIG, params, source, tmp_path) == folder
    other = jax.tree.map(lambda values: values * 1.01, params)
    assert keep_latents(VAE_CONFIG, other, source, tmp_path, batch=32) != folder


def test_latents_of_other_pictures_are_refused(scenes: Path, tmp_path: Path):
    folder = kept(tmp_path, {"pictures": "another"}, 1, lambda: [{"mean": np.zeros((1, 2))}])
    with pytest.raises(ValueError, match="latents of other pictures"):
        ToyboxSource(DATA, scenes, latents=folder)
    with pytest.raises(ValueError, match="holds no latents"):
        ToyboxSource(DATA, scenes, latents=tmp_path / "nothing")
    deep = replace(VAE_CONFIG, channels=(8,) * 5)
    with pytest.raises(ValueError, match="pictures of 8x8 have no latents: each side must divide by 16"):
        keep_latents(deep, {}, ToyboxSource(DATA, scenes), tmp_path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path):
    def parts():
        yield {"numbers": np.zeros((2, 3))}
        raise OSError(ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); choose a folder"):
        kept(tmp_path, {}, 4, parts)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        kept(tmp_path / "file", {}, 4, parts)


def test_of_two_processes_that_keep_the_same_the_first_one_stays(tmp_path: Path):
    def make(value: float, meanwhile=lambda: None):
        def parts():
            yield {"numbers": np.full((2, 3), value)}
            meanwhile()

        return parts

    inner = lambda: kept(tmp_path, {"a": 1}, 2, make(1.0))
    place = kept(tmp_path, {"a": 1}, 2, make(2.0, inner))
    assert np.array_equal(np.load(place / "numbers.npy"), np.ones((2, 3)))
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_facts_say_what_the_scene_says():
    drawn = scenes_of(DATA, range(20))
    known = facts(drawn)
    for index in range(20):
        one = take(drawn, index)
        n = int(toys_of(one))
        assert (known["toys"][index, :, 0] == one.kind).all()
        assert compare(*known["seen"][index, :n].T) == relations(one)
