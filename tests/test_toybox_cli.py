"""``ldm toybox``: what it writes, and that mistakes give one sentence, status 2, and no file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.cli import main
from ldm.toybox import sheets
from ldm.toybox.camera import project
from ldm.toybox.dataset import Dataset, example
from ldm.toybox.sampling import random_scene
from ldm.toybox.scene import HEAD, RADIUS, is_held_out
from ldm.toybox.sheets import GAP, LINE, MARGIN, grid, showcase

pytestmark = pytest.mark.optimised


def run(capsys, *argv):
    """(status, standard output, standard error) of one command."""
    try:
        status = main(["toybox", *map(str, argv)])
    except SystemExit as stop:  # argparse's own refusals
        status = stop.code
    out, err = capsys.readouterr()
    return status, out.strip(), err


def width(tiles: int, size: int) -> int:
    """Of a sheet with so many tiles of so many pixels in a row; heights too."""
    return tiles * (size + GAP) - GAP + 2 * MARGIN


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "options", "size"),
    [
        ("--grid", ("--size", 16, "--toys", 1), (width(8, 16), width(8, 16))),
        ("--turntable", ("--size", 16, "--seed", 2), (width(6, 16), width(2, 16 + LINE))),
        ("--truths", ("--size", 160, "--split", "held_out"), (width(7, 160), width(3, 160 + 2 * LINE))),
        ("--hints", ("--size", 160, "--toys", 2), (width(6, 160), width(1, 160 + LINE))),
    ],
)
def test_sheets_are_written(capsys, tmp_path, mode: str, options: tuple, size: tuple):
    out = tmp_path / "sheet.png"
    assert run(capsys, mode, out, *options)[:2] == (0, str(out))
    with Image.open(out) as image:
        pixels = np.asarray(image)
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
    edges = pixels[:10], pixels[-10:], pixels[:, :MARGIN], pixels[:, -MARGIN:]
    assert all((edge == 255).all() for edge in edges)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.long
def test_a_folder_is_made(capsys, tmp_path):
    out = tmp_path / "toys"
    argv = ("--make", 3, "--out", out, "--size", 32, "--seed", 5, "--split", "held_out", "--toys", 2)
    assert run(capsys, *argv)[:2] == (0, str(out))
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [example(i, Dataset(5, "held_out", 2)).caption for i in range(3)]
    assert all(row["held_out"] and len(row["objects"]) == 2 for row in rows)
    with Image.open(out / rows[2]["file_name"]) as image:
        assert image.size == (32, 32)
    again = run(capsys, *argv)
    assert again[0] == 2 and "already exists and is not an empty folder" in again[2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--grid", "x.jpg"), "a name that ends in .png"),
        (("--grid", "missing/x.png"), "cannot be written"),
        (("--grid", "x.png", "--out", "y"), "--make N and --out DIR go together"),
        (("--make", 3), "--make N and --out DIR go together"),
        (("--make", 0, "--out", "y"), "1 to 1000000 pictures, got 0"),
        (("--make", 1, "--out", "y", "--size", 0), "1 to 4096 pixels wide and high, got 0x0"),
        (("--make", 1, "--out", "y", "--seed", 2**70), "a seed is a whole number"),
        (("--grid", "x.png", "--size", 8), "16 to 512 pixels wide, got 8"),
        (("--truths", "x.png", "--size", 100), "160 to 512 pixels wide, got 100"),
        (("--hints", "x.png", "--size", 100), "160 to 512 pixels wide, got 100"),
        (("--turntable", "x.png", "--toys", 4), "1 to 3 toys, got 4"),
        (("--truths", "x.png", "--split", "valid"), "no split 'valid'"),
        (("--turntable", "x.png", "--seed", -1), "a seed is a whole number"),
        ((), "one of the arguments --grid --truths --hints --turntable --make is required"),
        (("--grid", "x.png", "--truths", "y.png"), "not allowed with"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, tmp_path, monkeypatch, argv: tuple, words: str):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "") and words in err and "Traceback" not in err
    assert err.startswith("usage: ") or len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_grid_holds_its_pictures_where_they_belong():
    tiles = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    sheet = np.asarray(grid(tiles, columns=3, gap=1, margin=2))
    assert sheet.shape == (2 * 4 + 1 + 4, 3 * 6 + 2 + 4, 3)
    for i, tile in enumerate(tiles):
        y, x = 2 + i // 3 * 5, 2 + i % 3 * 7
        assert np.array_equal(sheet[y : y + 4, x : x + 6], tile)
    assert np.array_equal(sheet, np.asarray(grid(tiles / 255.0, columns=3, gap=1, margin=2)))


@pytest.mark.parametrize("tiles", [np.zeros((0, 4, 4, 3)), np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 1))])
def test_a_grid_of_something_else_is_refused(tiles: np.ndarray):
    with pytest.raises(ValueError, match=r"pictures \[B, H, W, 3\], at least one, got shape"):
        grid(tiles, 2)


@pytest.mark.parametrize("toys", [1, 2, 3])
def test_a_showcase_shows_large_toys_and_a_head(toys: int):
    for split in ("train", "held_out"):
        chosen = [showcase(toys, Dataset(split=split), nth).scene for nth in range(3)]
        assert len({one.position.tobytes() for one in chosen}) == 3
        for one in chosen:
            assert (one.kind >= 0).sum() == toys and (one.kind == HEAD).sum() == 1 and one.size[one.kind >= 0].all()
            assert is_held_out(one) == (split == "held_out")


def test_a_turntable_keeps_every_toy_in_the_frame():
    for i in range(40):
        one = random_scene(i, seed=1)
        there = one.kind >= 0
        feet = np.stack([one.position[:, 0], 0 * one.yaw, one.position[:, 1]], -1)[there]
        for azimuth in np.linspace(-3, 3, 9, dtype=np.float32):
            camera = replace(sheets._orbit(one), azimuth=azimuth)
            where, depth = project(camera, feet)
            half = RADIUS[one.size[there]] / (2 * np.tan(np.radians(15)) * np.asarray(depth))
            assert (np.abs(np.asarray(where)[:, 0] - 0.5) + half < 0.56).all()
