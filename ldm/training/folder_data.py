"""A folder of pictures with captions as training data: the image folder of Hugging Face's ``datasets``.

Beside the pictures, or above them, lies ``metadata.jsonl``, one line of JSON a picture:

    {"file_name": "images/000017.png", "text": "a red cube"}

``file_name`` is a path within the folder; the caption is ``text``, or else ``caption``; other names are left alone.
A picture is scaled until its shorter side is ``size`` pixels, and a square is cut out of it.

b rows of a batch, H = W = size, S tokens, h w Z latents.
Sources: the layout, https://huggingface.co/docs/datasets/image_dataset, "ImageFolder".
"""

import json
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ldm.toybox.sampling import Uniform
from ldm.training.cache import check_latents, hash_of, read_rows
from ldm.training.config import check, one_of, within
from ldm.training.data import Batch, Tokens

TABLE = "metadata.jsonl"
CAPTIONS = ("text", "caption")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a value: what would be white is not known
CROP_STREAM = 40  # streams below are the toybox's
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class FolderData:
    """Which folder, and how its pictures become squares.

    path    the folder
    size    pixels along each side
    crop    where the square is cut: "centre", or "random" along the longer side
    flip    left and right change places in half of the examples
    """

    path: str
    size: int = within(512, (">", 0), ("<=", 4096))
    crop: str = one_of("centre", "centre", "random")
    flip: bool = False

    def __post_init__(self) -> None:
        check(self)


class Row(NamedTuple):
    """A picture's path and its caption."""

    path: Path
    text: str


def read_table(folder: Path) -> list[Row]:
    """The pictures of a folder, in the order of its ``metadata.jsonl``.

    Every file is opened as far as its header. Raises ValueError, naming the line, for whatever is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of pictures")
    table = folder / TABLE
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other ends of lines
    except OSError:
        raise ValueError(f"{folder}: has no {TABLE}; write one line of JSON a picture, file_name and text") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    rows = [_row(folder, line, f"{table}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{table}: has no rows; write one line of JSON a picture, file_name and text")
    return rows


def _row(folder: Path, line: str, where: str) -> Row:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is no JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object with file_name and text, got {line.strip()[:60]}")
    name, texts = entry.get("file_name"), [entry[key] for key in CAPTIONS if entry.get(key) is not None]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: file_name is missing")
    if not texts or not isinstance(texts[0], str):
        raise ValueError(f"{where}: the caption of {name} is missing; give it as text")
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
        raise ValueError(f"{where}: {name} lies outside the folder")
    path = folder / inside
    if not path.is_file():
        raise ValueError(f"{where}: there is no file {name}")
    _open(path).close()
    return Row(path, texts[0])


# ---------------------------------------------------------------------------------------------------------------------
# Pictures.


def _open(path: Path) -> Image.Image:
    """A picture of which only the header is read."""
    try:
        image = Image.open(path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from None
    if image.mode in DEEP:
        image.close()
        raise ValueError(f"{path}: has more than 8 bits a value; save it as an 8-bit picture")
    return image


def square(path: Path, size: int, place: float = 0.5, mirrored: bool = False) -> np.ndarray:
    """A picture as uint8 [size, size, 3], upright, on white where it is transparent.

    ``place``: where along the longer side the square is cut, 0 to 1, 0.5 the middle; ``mirrored``: left and right
    change places. Raises ValueError for a file that cannot be read.
    """
    with _open(path) as image:
        try:
            image = _on_white(ImageOps.exif_transpose(image))
        except UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read as a picture ({error})") from None
    shorter = min(image.size)
    left, top = ((side - shorter) * place for side in image.size)
    box = (left, top, left + shorter, top + shorter)
    cut = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    pixels = np.asarray(cut, np.uint8)
    return pixels[:, ::-1] if mirrored else pixels


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


# ---------------------------------------------------------------------------------------------------------------------
# The source.


@dataclass(frozen=True)
class FolderSource:
    """The source of `ldm.training.data.Batches` for a folder. A batch has

    pictures    uint8 [b, H, W, 3]; or, where ``latents`` is given,
    mean logvar float16 [b, h, w, Z], unscaled
    ids         int32 [b, S], with ``tokens``: each picture's caption

    ``latents``: the folder that :func:`ldm.training.cache.keep_latents` gave for this very source without it; they are
    of centre crops, not mirrored. The folder is read, and its captions turned to ids, when the source is made. Raises
    ValueError as :func:`read_table` does, and for latents of other pictures.
    """

    data: FolderData
    latents: Path | None = None
    tokens: Tokens | None = None

    def __post_init__(self) -> None:
        if self.latents is not None and not self.fixed:
            raise ValueError("latents are of centre crops: set crop to centre and flip to false, or train on pictures")
        if self.latents is not None:
            check_latents(self.latents, self.key)
        self._ids  # noqa: B018  what is wrong with the folder is said now

    @cached_property
    def table(self) -> list[Row]:
        """The pictures and their captions."""
        return read_table(Path(self.data.path))

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.table)

    @property
    def fixed(self) -> bool:
        """Whether a picture is the same each time it comes, so that its latents can be kept."""
        return not self.data.flip and self.data.crop == "centre"

    @cached_property
    def key(self) -> str:
        """A hash of all that the pictures depend on: names, lengths and times of the files, and the size."""
        files = [(str(row.path), row.path.stat().st_size, row.path.stat().st_mtime_ns) for row in self.table]
        return hash_of([self.data.size, files])

    @cached_property
    def _ids(self) -> np.ndarray | None:
        """int32 [N, S]. What the tokenizer would say of each caption that is too long is said once."""
        texts = [row.text for row in self.table]
        if self.tokens is None:
            return None
        with warnings.catch_warnings(record=True) as cut:
            warnings.simplefilter("always")
            ids = self.tokens(texts)
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(texts)} captions of {self.data.path} have more tokens than the {ids.shape[1]} that"
                f" the model reads, and are cut",
                stacklevel=4,
            )
        return ids

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """Centre crops by number, not mirrored, uint8 [n, H, W, 3]."""
        return np.stack([square(self.table[i].path, self.data.size) for i in indices])

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """See `ldm.training.data.Source`."""
        rows = {} if self._ids is None else {"ids": self._ids[indices]}
        if self.latents is not None:
            return {name: read_rows(self.latents, name, indices) for name in ("mean", "logvar")} | rows
        pairs = zip(positions.tolist(), indices.tolist(), strict=True)
        return {"pictures": np.stack([self._picture(seed, p, i) for p, i in pairs])} | rows

    def finish(self, rows: Batch) -> Batch:
        """Nothing is left to do."""
        return rows

    def _picture(self, seed: int, position: int, index: int) -> np.ndarray:
        u, v = Uniform(seed, CROP_STREAM, position).random(2)
        place = u if self.data.crop == "random" else 0.5
        return square(self.table[index].path, self.data.size, place, self.data.flip and v < 0.5)
