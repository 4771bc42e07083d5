"""The recipes of LoRA, textual inversion and DreamBooth: pictures, the instrument's training set, the page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm.toybox.recipe import page, personal, seven_kinds, study
from ldm.toybox.scene import COLOURS, HANDSET, KINDS


def test_the_pictures_to_learn_from():
    scenes, captions = personal.handsets(0)
    assert len(captions) == 12 and np.all(scenes.kind[:, 0] == HANDSET) and np.all(scenes.kind[:, 1:] < 0)
    assert captions[1] == f"a {COLOURS[1]} telephone handset"
    assert {COLOURS[c] for c in scenes.colour[:, 0]} == set(COLOURS) - set(personal.NEW)
    scenes, captions = personal.subjects(0)
    assert set(captions) == {"a zyx cube"} and set(scenes.kind[:, 0]) == {KINDS.index("cube")}
    assert set(scenes.colour[:, 0]) == {COLOURS.index("purple")}


def test_displacement_of_nothing_changes_nothing_and_of_pixels_melts():
    pictures = jnp.asarray(np.random.default_rng(0).random((6, 64, 64, 3), np.float32))
    move = lambda reach: seven_kinds.displaced(jax.random.key(0), pictures, jnp.full(6, reach), 4.0)
    assert np.allclose(move(0.0), pictures, atol=1e-6)
    assert np.abs(move(3.0) - pictures).mean() > 0.1
    assert seven_kinds.spoilt(jax.random.key(0), pictures).shape == pictures.shape


def test_what_is_unlike_a_handset_may_be_anything_else():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, seven_kinds.NONE + 1)), jnp.float32)
    share = jax.nn.softmax(logits)
    wanted = [share[0, 2], share[1, seven_kinds.NONE], 1 - share[2, HANDSET]]
    found = seven_kinds.surprise(logits, jnp.array([2, seven_kinds.NONE, seven_kinds.UNLIKE]))
    np.testing.assert_allclose(np.exp(-found), wanted, rtol=1e-5)


def test_tables_are_over_seeds():
    rows = [{"seed": s, "way": "lora", "rank": 4, "alpha": 4.0, "shape": 50.0 + 10 * s, "kept": 90.0} for s in range(3)]
    rows.insert(0, {"seed": 0, "way": "before", "shape": 0.0, "kept": 98.0})
    told = page.table(rows, "rank", "alpha").splitlines()
    assert told[0] == "| rank | alpha | shape | kept |"
    assert told[2:] == [
        "| – | – | 0.0 | 98.0 |",
        "| 4 | 4 | 60.0 (50.0–70.0) | 90.0 |",
    ]


def test_rows_of_another_day_replace_their_like(tmp_path):
    out, folder, told_by = tmp_path / "out", tmp_path / "docs", {"lora": ("rank",)}
    out.mkdir()
    study.kept(out, {"seed": 0, "way": "rules", "rule": "of another study"})
    study.kept(out, {"seed": 0, "way": "lora", "rank": 4, "shape": 10.0})
    study.kept(out, {"seed": 1, "way": "lora", "rank": 4, "shape": 20.0})
    assert len(page.results(out, folder, told_by)) == 2
    (out / study.ROWS).unlink()
    study.kept(out, {"seed": 1, "way": "lora", "rank": 4, "shape": 30.0})
    study.kept(out, {"seed": 1, "way": "lora", "rank": 1, "shape": 40.0})
    assert [row["shape"] for row in page.results(out, folder, told_by)] == [10.0, 30.0, 40.0]


def test_a_run_that_is_there_is_not_done_again(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(study.loop, "train", lambda task, said, out, steps, resume: done.append((said, resume)))
    make, out = lambda said, out: None, tmp_path / "run"
    out.mkdir()
    pictures = {"path": str(tmp_path), "size": 64}
    first = study.trained(make, out, 7, 1e-3, data=pictures, seed=3)
    assert done[0][0].seed == 3 and done[0][0].checkpoint_every == 7 and done[0][1]
    assert study.trained(make, out, 7, 1e-3, data=pictures, seed=3) == first and len(done) == 1


def test_a_measurement_that_is_not_known_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", str(tmp_path), "lore"])
    with pytest.raises(SystemExit):
        study.measure("A study.", {"lora": lambda out, seed: []}, [0])
    assert "no measurement 'lore'; there are lora" in capsys.readouterr().err


@pytest.mark.long
def test_the_instrument_knows_all_seven_and_what_is_none():
    pictures, truth = seven_kinds.renders(50, 8003)  # as many as are drawn at once
    eye = seven_kinds.instrument()
    assert np.mean(seven_kinds.kinds(eye, pictures) == truth) > 0.9
    melted = np.asarray(seven_kinds.displaced(jax.random.key(0), pictures, jnp.full(50, 6.0), 3.5))
    assert np.mean(seven_kinds.kinds(eye, melted) == seven_kinds.NONE) > 0.9
