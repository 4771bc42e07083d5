"""``ldm generate`` from pictures: what it keeps, what it records, and what it says to mistakes."""

import json

import numpy as np
import pytest
from pictures import HOLE, PHOTO
from PIL import Image

import ldm
from ldm.cli import main


@pytest.fixture(scope="module")
def tiny_folder(least, tmp_path_factory):
    """A folder of our own; networks do not matter here."""
    folder = tmp_path_factory.mktemp("least") / "model"
    ldm.save(least, folder)
    return folder


@pytest.fixture
def files(tmp_path):
    """A picture, its mask, and where the result goes."""
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    Image.fromarray(HOLE.astype(np.uint8) * 255).save(tmp_path / "hole.png")
    return tmp_path


def run(capsys, model, *argv):
    """(status, standard error)."""
    status = main(["generate", "a cube", "--model", str(model), "--steps", "2", *map(str, argv)])
    return status, capsys.readouterr().err


def test_a_picture_to_start_from(capsys, tiny_folder, files):
    out = files / "out.png"
    options = ["--image", files / "photo.png", "--strength", 0.5, "--sampler", "Euler a", "--out", out]
    assert run(capsys, tiny_folder, *options)[0] == 0
    with Image.open(out) as picture:
        assert picture.size == (64, 48)
        settings = json.loads(picture.info["ldm"])
    assert settings["strength"] == 0.5 and settings["image"] == str(files / "photo.png")


@pytest.mark.parametrize("tile", [[], ["--tile", 8]])
def test_outside_of_a_mask_the_file_stays(capsys, tiny_folder, files, tile):
    options = ["--image", files / "photo.png", "--mask", files / "hole.png", "--out", files / "out.png", *tile]
    assert run(capsys, tiny_folder, *options)[0] == 0
    with Image.open(files / "out.png") as picture:
        pixels = np.asarray(picture)
    assert np.array_equal(pixels[~HOLE], PHOTO[~HOLE])
    assert not np.array_equal(pixels[HOLE], PHOTO[HOLE])


def test_more_around_a_picture(capsys, tiny_folder, files):
    options = ["--image", files / "photo.png", "--outpaint", 8, 0, 24, 16, "--out", files / "out.png"]
    assert run(capsys, tiny_folder, *options)[0] == 0
    with Image.open(files / "out.png") as picture:
        assert picture.size == (96, 64) and np.array_equal(np.asarray(picture)[:48, 8:72], PHOTO)


def test_a_size_resizes_the_picture(capsys, tiny_folder, files):
    options = [
        "--image",
        files / "photo.png",
        "--mask",
        files / "hole.png",
        "--size",
        "32x32",
        "--out",
        files / "o.png",
    ]
    assert run(capsys, tiny_folder, *options)[0] == 0
    with Image.open(files / "o.png") as picture:
        assert picture.size == (32, 32)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--mask", "hole.png"], "--mask is of a picture: give --image too"),
        (["--strength", "0.5"], "--strength is of a picture: give --image too"),
        (["--image", "none.png"], "none.png: no picture that can be read"),
        (["--image", "text.png"], "text.png: no picture that can be read"),
        (["--image", "half.png"], "half.png: no picture that can be read"),
        (["--image", "photo.png", "--mask", "small.png"], "the mask is 10x10, but the picture 64x48"),
        (["--image", "photo.png", "--strength", "1.5"], "strength must be between 0"),
        (["--image", "small.png"], "size 10x10 is not a multiple of 8"),
        (["--image", "photo.png", "--outpaint", "0", "0", "0", "0"], "margins must be four numbers"),
        (["--image", "photo.png", "--mask", "hole.png", "--outpaint", "8", "0", "0", "0"], "give one of them"),
        (["--sampler", "eular a"], "did you mean 'euler_a'"),
        (["--noise", "browning"], "did you mean 'brownian'"),
        (["--rescale", "2"], "rescale must be between 0 and 1"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tiny_folder, files, monkeypatch, options, phrase):
    monkeypatch.chdir(files)
    Image.fromarray(PHOTO[:10, :10]).save("small.png")
    (files / "text.png").write_text("no picture")
    whole = (files / "photo.png").read_bytes()
    (files / "half.png").write_bytes(whole[: len(whole) // 2])
    status, err = run(capsys, tiny_folder, *options, "--out", "out.png")
    assert status == 2 and phrase in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (files / "out.png").exists()


def test_a_prompt_whose_brackets_do_not_balance(capsys, tiny_folder, files):
    argv = ["generate", "a (red cube", "--model", str(tiny_folder), "--syntax", "--out", str(files / "o.png")]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "character 3" in err and "literal bracket" in err and err.count("\n") == 1
