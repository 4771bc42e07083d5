"""Pictures of a class for DreamBooth: drawn by the model before it is trained, and mixed into every batch.

b rows of a batch, h w Z latents, S tokens.
Source: "DreamBooth" (arXiv:2208.12242), section 3.3: class-specific prior preservation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.bundle import Bundle
from ldm.models.layers import Params
from ldm.training.cache import hash_of, keep_latents, kept, read_rows
from ldm.training.data import Batch, Source
from ldm.training.samples import GUIDANCE, STEPS, draw

AT_ONCE = 20
CLASS = "class_"


@dataclass(frozen=True)
class Drawn:
    """Pictures that lie in a folder of ``ldm.training.cache``, as :func:`keep_latents` wants them."""

    folder: Path
    count: int

    @property
    def key(self) -> str:
        """Their folder is named by a hash of all that they depend on."""
        return self.folder.name

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3]."""
        return read_rows(self.folder, "pictures", indices)


@dataclass(frozen=True)
class WithClass:
    """A source whose batches also have class_mean, class_logvar [b, h, w, Z] and class_ids [b, S].

    Example p of the run goes with picture p of the class, counted round and round.
    """

    own: Source
    latents: Path
    count_class: int
    ids: np.ndarray  # [S]

    @property
    def count(self) -> int:
        """That of one's own pictures."""
        return self.own.count

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """See `ldm.training.data.Source`."""
        others = positions % self.count_class
        found = {CLASS + name: read_rows(self.latents, name, others) for name in ("mean", "logvar")}
        found[CLASS + "ids"] = np.broadcast_to(self.ids, (len(indices), len(self.ids))).copy()
        return self.own.rows(seed, positions, indices) | found

    def finish(self, rows: Batch) -> Batch:
        """See `ldm.training.data.Source`."""
        others = {name: rows.pop(name) for name in list(rows) if name.startswith(CLASS)}
        return self.own.finish(rows) | others


def pictures_of(base: Bundle, ids: np.ndarray, count: int) -> Iterator[dict[str, np.ndarray]]:
    """``count`` pictures of one caption, ids [S], some at a time, each from noise of its own."""
    empty = base.tokenizer([""], base.configs.text.length)[0]
    for first in range(0, count, AT_ONCE):
        rows = np.broadcast_to(ids, (AT_ONCE, len(ids)))
        made = draw(base.configs, base.params, rows, empty, base.size, first)
        yield {"pictures": made[: count - first]}


def class_source(base: Bundle, prompt: str, count: int, folder: Path) -> Callable[[Source], WithClass]:
    """Draws the pictures, unless an earlier run of the same settings has left them in ``folder``."""
    ids = base.tokenizer([prompt], base.configs.text.length)[0]
    settings: dict[str, Any] = {"prompt": prompt, "count": count, "steps": STEPS, "guidance": GUIDANCE}
    settings |= {"model": hash_of({part: fingerprint(params) for part, params in base.params.items()})}
    place = kept(folder, settings, count, lambda: pictures_of(base, ids, count))
    latents = keep_latents(base.configs.vae, base.params["vae"], Drawn(place, count), folder)
    return lambda own: WithClass(own, latents, count, ids)


def fingerprint(params: Params) -> list[float]:
    """A few numbers that differ between models: sums of the first arrays."""
    return [float(np.sum(np.asarray(array, np.float32))) for array in list(params.values())[:8]]
