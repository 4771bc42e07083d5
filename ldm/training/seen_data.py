"""What an image tower sees in the pictures of a source, for ``ldm train ip_adapter``: made once, and kept.

b rows of a batch, L tokens of the tower and V their width.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm.adapters.image_prompt import looked_at, square_of
from ldm.models.autoencoder import from_uint8
from ldm.models.layers import Params
from ldm.models.vision import VisionConfig
from ldm.training.beside import WithKept
from ldm.training.cache import Arrays, chunks, hash_of, kept
from ldm.training.folder_data import FolderSource
from ldm.training.toybox_data import CHUNK, ToyboxSource


def with_seen(
    source: ToyboxSource | FolderSource, vision: VisionConfig, tower: Params, states: bool, folder: Path
) -> WithKept:
    """The source whose batches also have seen, float16: of each picture the tower's ``states`` [b, L, V], or a vector
    [b, V].

    Raises ValueError for pictures that are not the same each time.
    """
    if not source.fixed:
        raise ValueError(
            "what a tower sees is kept for pictures that stay the same: give data.count, or cut without chance"
        )
    settings = {"pictures": source.key, "tower": hash_of([vision.__dict__, digest(tower)]), "states": states}

    def make() -> Iterator[Arrays]:
        for indices, new in chunks(source.count, CHUNK, "what the tower sees"):
            fitted = np.stack([square_of(picture, vision.image) for picture in source.pictures(indices)])
            yield {"seen": np.asarray(looked_at(vision, tower, from_uint8(fitted), states), np.float16)[new]}

    return WithKept(source, kept(folder, settings, source.count, make), "seen")


def digest(params: Params) -> list[tuple[str, float]]:
    """Enough of a tower's numbers to tell it from another."""
    return [(name, float(np.abs(np.asarray(array, np.float32)).sum())) for name, array in sorted(params.items())]
