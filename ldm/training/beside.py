"""A source of training data with something more beside its pictures: hints, or what an image tower sees in them.

b rows of a batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.training.cache import read_rows
from ldm.training.data import Batch, Source


@dataclass(frozen=True)
class WithKept:
    """A source whose batches also have ``name`` [b, ...]: the rows of an array that ``ldm.training.cache`` keeps."""

    own: Source
    folder: Path
    name: str

    @property
    def count(self) -> int:
        """That of the pictures."""
        return self.own.count

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """Those that it is kept beside, uint8 [n, H, W, 3]."""
        return self.own.pictures(indices)

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """See `ldm.training.data.Source`."""
        return self.own.rows(seed, positions, indices) | {self.name: read_rows(self.folder, self.name, indices)}

    def finish(self, rows: Batch) -> Batch:
        """See `ldm.training.data.Source`."""
        return self.own.finish(rows)
