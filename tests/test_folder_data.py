"""Laws of image folders as training data, and one sentence for each thing that can be wrong with one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.models.autoencoder import VAE, VAEConfig
from ldm.models.layers import shapes
from ldm.tokenizer import Tokenizer
from ldm.training.cache import keep_latents
from ldm.training.data import Batches, Tokens
from ldm.training.folder_data import FolderData, FolderSource, read_table, square

TOKENS = Tokens(Tokenizer.clip(), 8)
ROWS = [
    {"file_name": "a.png", "text": "a red square", "width": 9},
    {"file_name": "more/b.jpg", "caption": "a gray bar"},
    {"file_name": "more/../c.png", "text": ""},
]


def ramp(width: int, height: int) -> np.ndarray:
    """Columns from 0 to 255 in red, rows in green."""
    column, row = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return np.stack(np.broadcast_arrays(column, row[:, None], 0.0), -1).round().astype(np.uint8)


def write(folder: Path, rows: list) -> Path:
    (folder / "more").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    Image.new("L", (16, 8), 128).save(folder / "more" / "b.jpg")
    Image.fromarray(ramp(8, 12)).save(folder / "c.png")
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures", ROWS)


# ---- what is read ----


def test_rows_are_the_tables_in_its_order(folder: Path):
    source = FolderSource(FolderData(str(folder), size=8), tokens=TOKENS)
    rows = source.rows(0, np.arange(3), np.array([2, 0, 1]))
    assert rows["pictures"].shape == (3, 8, 8, 3) and rows["pictures"].dtype == np.uint8
    assert (rows["pictures"][1] == [255, 0, 0]).all() and (np.abs(rows["pictures"][2].astype(int) - 128) < 3).all()
    assert np.array_equal(rows["ids"], TOKENS(["", "a red square", "a gray bar"]))


def test_blank_lines_and_marks_of_the_encoding_are_no_rows(folder: Path):
    text = '\ufeff\n{"file_name": "a.png", "text": "one\u2028two"}\r\n\n'
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert [row.text for row in read_table(folder)] == ["one\u2028two"]


def test_batches_come_from_a_folder_and_each_epoch_has_every_picture(folder: Path):
    with Batches(FolderSource(FolderData(str(folder), size=8), tokens=TOKENS), 3, seed=1) as batches:
        for _ in range(3):
            ids = next(batches)["ids"]
            assert sorted(map(tuple, ids)) == sorted(map(tuple, TOKENS([row.text for row in read_table(folder)])))


def test_long_captions_are_cut_and_that_is_said_once(folder: Path):
    write(folder, [{"file_name": "a.png", "text": "a " * n} for n in (2, 9, 20)])
    with pytest.warns(UserWarning, match="2 of 3 captions .* have more tokens than the 8 that the model reads") as said:
        FolderSource(FolderData(str(folder)), tokens=TOKENS)
    assert len(said) == 1


# ---- squares ----


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 20))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_picture_becomes_a_square(tmp_path_factory, width: int, height: int, size: int):
    path = tmp_path_factory.mktemp("any") / "a.png"
    Image.fromarray(ramp(width, height)).save(path)
    for place in (0.0, 0.5, 1.0):
        cut = square(path, size, place)
        assert cut.shape == (size, size, 3)
        assert np.array_equal(square(path, size, place, mirrored=True), cut[:, ::-1])


def test_the_square_is_cut_where_it_is_said(tmp_path: Path):
    pixels = ramp(24, 8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "tall.png")
    for place, first in ((0.0, 0), (0.5, 8), (1.0, 16)):
        assert np.array_equal(square(tmp_path / "wide.png", 8, place), pixels[:, first : first + 8])
        assert np.array_equal(square(tmp_path / "tall.png", 8, place), pixels.swapaxes(0, 1)[first : first + 8])


def test_the_shorter_side_is_scaled(tmp_path: Path):
    Image.fromarray(ramp(60, 30)).save(tmp_path / "a.png")
    cut = square(tmp_path / "a.png", 10).astype(int)
    assert cut[..., 1].min() < 20 and cut[..., 1].max() > 235, "all rows are there"
    assert cut[..., 0].min() > 55 and cut[..., 0].max() < 200, "only the middle columns are"


def test_transparent_pictures_lie_on_white_and_turned_ones_are_upright(tmp_path: Path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (square(tmp_path / "clear.png", 8) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it
    pixels = ramp(8, 8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(square(tmp_path / "turned.png", 8), np.rot90(pixels, -1))


def test_crops_and_flips_are_drawn_anew_for_each_position(folder: Path):
    write(folder, [{"file_name": "more/b.jpg", "text": "x"}])
    Image.fromarray(ramp(200, 8)).save(folder / "more" / "b.jpg")
    data = FolderData(str(folder), size=8, crop="random", flip=True)
    source, positions = FolderSource(data), np.arange(40)
    pictures = source.rows(3, positions, 0 * positions)["pictures"].astype(int)
    assert len(np.unique(pictures[:, 4, 4, 0])) > 20
    mirrored = (pictures[:, 4, 0, 0] > pictures[:, 4, -1, 0]).mean()
    assert 0.2 < mirrored < 0.8
    assert np.array_equal(source.rows(3, positions[7:9], 0 * positions[7:9])["pictures"], pictures[7:9])
    still = FolderSource(replace(data, crop="centre", flip=False)).rows(3, positions, 0 * positions)["pictures"]
    assert (still == still[0]).all()


# ---- latents ----


def test_latents_of_a_folder_are_kept_until_a_picture_changes(folder: Path, tmp_path: Path):
    config = VAEConfig(channels=(4, 4), blocks=1, groups=2)
    params = {name: np.zeros(one.shape, np.float32) for name, one in shapes(VAE, config).items()}
    data = FolderData(str(folder), size=8)
    kept = keep_latents(config, params, FolderSource(data), tmp_path / "kept")
    rows = FolderSource(data, latents=kept, tokens=TOKENS).rows(0, np.arange(2), np.array([2, 1]))
    assert rows["mean"].shape == rows["logvar"].shape == (2, 4, 4, 4) and set(rows) == {"mean", "logvar", "ids"}
    with pytest.raises(ValueError, match="latents are of centre crops"):
        FolderSource(replace(data, flip=True), latents=kept)
    Image.new("RGB", (9, 9), "blue").save(folder / "a.png")
    with pytest.raises(ValueError, match="latents of other pictures"):
        FolderSource(data, latents=kept)


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", "line 2: is no JSON"),
        ("[" * 100_000, "line 2: is no JSON"),
        ("[1, 2]", r"line 2: expected an object with file_name and text, got \[1, 2\]"),
        ({"text": "a"}, "line 2: file_name is missing"),
        ({"file_name": 3, "text": "a"}, "line 2: file_name is missing"),
        ({"file_name": "a.png"}, "line 2: the caption of a.png is missing; give it as text"),
        ({"file_name": "a.png", "text": None}, "line 2: the caption of a.png is missing"),
        ({"file_name": "a.png", "text": ["a"]}, "line 2: the caption of a.png is missing"),
        ({"file_name": "d.png", "text": "a"}, "line 2: there is no file d.png"),
        ({"file_name": "more", "text": "a"}, "line 2: there is no file more"),
        ({"file_name": "a\0.png", "text": "a"}, "line 2: there is no file a"),
        ({"file_name": "../pictures/a.png", "text": "a"}, "line 2: ../pictures/a.png lies outside the folder"),
        ({"file_name": "more/../../x.png", "text": "a"}, "lies outside the folder"),
        ({"file_name": "/etc/hostname", "text": "a"}, "lies outside the folder"),
        ({"file_name": "metadata.jsonl", "text": "a"}, "metadata.jsonl: cannot be read as a picture"),
    ],
)
def test_a_bad_row_is_named(folder: Path, row: str | dict, words: str):
    write(folder, [ROWS[0], row])
    with pytest.raises(ValueError, match=words) as error:
        FolderSource(FolderData(str(folder)))
    assert "\n" not in str(error.value)


def test_a_bad_folder_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere: there is no such folder of pictures"):
        FolderSource(FolderData(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"has no metadata.jsonl; write one line of JSON a picture"):
        FolderSource(FolderData(str(tmp_path)))
    (folder / "metadata.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match="has no rows"):
        FolderSource(FolderData(str(folder)))
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl: is not UTF-8"):
        FolderSource(FolderData(str(folder)))


def test_deep_pictures_are_refused(folder: Path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: has more than 8 bits a value; save it as an 8-bit picture"):
        FolderSource(FolderData(str(folder)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it says more of broken TIFF files
@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.gif", "d.webp", "e.bmp", "f.tiff"])
def test_a_broken_picture_is_named_wherever_it_breaks(tmp_path: Path, name: str):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    named = 0
    for length in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:length])
        try:
            assert square(path, 8).shape == (8, 8, 3)  # what is cut off may be of no use
        except ValueError as error:
            assert f"{name}: cannot be read as a picture" in str(error) and "\n" not in str(error)
            named += 1
    assert named > 12


def test_an_unreadable_picture_ends_the_batches_with_its_name(folder: Path):
    source = FolderSource(FolderData(str(folder), size=8))
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    with Batches(source, 3) as batches, pytest.raises(ValueError, match=r"a\.png: cannot be read as a picture"):
        next(batches)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": 0}, "size must be > 0"), ({"crop": "center"}, "unknown crop 'center'; did you mean 'centre'")],
)
def test_folder_data_that_cannot_be_is_refused(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        FolderData("x", **options)
