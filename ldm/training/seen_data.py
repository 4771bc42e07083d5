"""What an image tower sees in the pictures of a source, for ``ldm train ip_adapter``: made once, and kept.

b rows of a batch, L tokens of the tower and V their width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.adapters.image_prompt import looked_at, square_of
from ldm.models.autoencoder import from_uint8
from ldm.models.layers import Params
from ldm.models.vision import VisionConfig
from ldm.training.cache import Arrays, chunks, hash_of, kept, read_rows
from ldm.training.data import Batch, Source
from ldm.training.folder_data import FolderSource
from ldm.training.toybox_data import CHUNK, ToyboxSource


@dataclass(frozen=True)
class WithSeen:
    """A source whose batches also have seen, float16 [b, V] or [b, L, V]."""

    own: Source
    folder: Path

    @property
    def count(self) -> int:
        """That of the pictures."""
        return self.own.count

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """Those that are seen, uint8 [n, H, W, 3]."""
        return self.own.pictures(indices)

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """See `ldm.training.data.Source`."""
        return self.own.rows(seed, positions, indices) | {"seen": read_rows(self.folder, "seen", indices)}

    def finish(self, rows: Batch) -> Batch:
        """See `ldm.training.data.Source`."""
        return self.own.finish(rows)


def with_seen(
    source: ToyboxSource | FolderSource, vision: VisionConfig, tower: Params, states: bool, folder: Path
) -> WithSeen:
    """The source with what the tower says of its pictures: its ``states``, or one vector for each.

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

    return WithSeen(source, kept(folder, settings, source.count, make))


def digest(params: Params) -> list[tuple[str, float]]:
    """Enough of a tower's numbers to tell it from another."""
    return [(name, float(np.abs(np.asarray(array, np.float32)).sum())) for name, array in sorted(params.items())]
