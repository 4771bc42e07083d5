"""What a run tells: lines of metrics that survive being cut, sheets of samples, curves."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.training import reports


def test_metrics_go_on_after_a_line_that_was_cut_and_steps_that_were_lost(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "seconds": 1.5}\n{"step": 4, "seconds": 3.0}\n{"step": 6, "sec')
    metrics = reports.Metrics(path, batch=8, done=2)
    metrics.add({"loss": np.float32(2)})
    metrics.add({"loss": np.float32(np.inf)})
    line = metrics.write(4)
    assert line["loss"] is None and line["seconds"] >= 1.5 and line["samples_per_second"] > 0
    assert reports.read(path) == [{"step": 2, "seconds": 1.5}, line]


def test_a_sheet_holds_every_picture_once():
    pictures = np.random.default_rng(0).integers(0, 255, (7, 5, 4, 3), dtype=np.uint8)
    sheet = np.asarray(reports.sheet(pictures))
    assert sheet.shape == (3 * 7 + 2, 3 * 6 + 2, 3)
    for index in range(7):
        row, column = divmod(index, 3)
        top, left = 2 + 7 * row, 2 + 6 * column
        assert np.array_equal(sheet[top : top + 5, left : left + 4], pictures[index])
    assert (sheet[:2] == 255).all() and (sheet[16:21, 8:] == 255).all()


def test_smoothing_keeps_what_is_constant_and_does_not_lag():
    assert reports.smoothed(np.full(9, 3.0), 2) == pytest.approx(np.full(9, 3.0))
    line = np.arange(101.0)
    assert reports.smoothed(line, 5)[50] == pytest.approx(50)
    line[50] = np.nan
    assert reports.smoothed(line, 5)[50] == pytest.approx(50)
    assert np.isnan(reports.smoothed(np.full(3, np.nan), 2)).all() and reports.smoothed(np.zeros(0), 2).shape == (0,)


@pytest.mark.parametrize("losses", [[], [1.0], [None, None], [2.0, None, 1.0], [-1.0, 0.0, 3.0]])
def test_any_metrics_have_a_curve(tmp_path: Path, losses: list):
    lines = [{"step": n + 1, "loss": loss, "learning_rate": 1e-3} for n, loss in enumerate(losses)]
    reports.draw_curve(lines, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as curve:
        assert len(set(curve.convert("L").get_flattened_data())) > 10
