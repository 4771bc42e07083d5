"""Hints beside the pictures of a source, for ``ldm train controlnet``: the toybox's truths, files of one's own, Canny.

A hint is made once for every picture and kept as ``hint.npy``, uint8 [N, H, W, 3].

    toybox   one of ``ldm.toybox.hints.HINTS``, from the truth of the scene; or "canny", of the picture
    folder   "files": ``hint_file_name`` (or ``conditioning_image_file_name``) beside ``file_name`` in its
             ``metadata.jsonl``, cut as the picture is; or "canny"

b rows of a batch, H = W = size.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm.hints import canny
from ldm.schedule import check_name
from ldm.toybox import world
from ldm.toybox.hints import HINTS, hint
from ldm.training.beside import WithKept
from ldm.training.cache import Arrays, chunks, hash_of, kept
from ldm.training.folder_data import TABLE, FolderSource, square
from ldm.training.toybox_data import CHUNK, ToyboxSource, scenes_of

FILES, CANNY = "files", "canny"
NAMES = ("hint_file_name", "conditioning_image_file_name")  # the second as other tools' data sets call it


def with_hints(source: ToyboxSource | FolderSource, name: str, folder: Path) -> WithKept:
    """The source with the hints called ``name``, made in ``folder`` if they are not there.

    Raises ValueError for a hint that the source has not, for pictures that are not the same each time, and for files
    that are missing.
    """
    toybox = isinstance(source, ToyboxSource)
    check_name("data.hint", name, (*HINTS, CANNY) if toybox else (FILES, CANNY))
    if not source.fixed:
        raise ValueError("hints are kept beside pictures that stay the same: give data.count, or cut without chance")
    settings: dict[str, Any] = {"pictures": source.key, "hint": name}
    paths = hint_files(source) if name == FILES else []
    if paths:
        settings["files"] = hash_of([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths])

    def of(indices: np.ndarray) -> np.ndarray:
        if name == CANNY:
            return np.stack([canny(picture) for picture in source.pictures(indices)])
        if name == FILES:
            return np.stack([square(paths[i], source.data.size) for i in indices])
        truths = world.truths(scenes_of(source.data, indices), source.data.size)
        return world.to_uint8(np.asarray(hint(name, truths)))

    def make() -> Iterator[Arrays]:
        for indices, new in chunks(source.count, CHUNK, "hints"):
            yield {"hint": of(indices)[new]}

    return WithKept(source, kept(folder, settings, source.count, make), "hint")


def hint_files(source: FolderSource) -> list[Path]:
    """The hint of every picture of a folder, in order. Raises ValueError, naming the line, where one is missing."""
    table = Path(source.data.path) / TABLE
    lines = [line for line in table.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        entry = json.loads(line)
        name = next((entry[key] for key in NAMES if isinstance(entry.get(key), str)), None)
        if name is None:
            raise ValueError(f"{table}, picture {number}: has no {NAMES[0]}, the picture to be its hint")
        path = table.parent / name
        if not path.is_file() or table.parent.resolve() not in path.resolve().parents:
            raise ValueError(f"{table}, picture {number}: there is no file {name} in the folder")
        found.append(path)
    return found
