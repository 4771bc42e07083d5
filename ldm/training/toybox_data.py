"""Toybox scenes as training data: pictures or latents, captions as ids, hard negatives, labels.

Scenes are drawn once and kept (`keep_scenes`), or drawn whenever they are asked for, without end if ``count`` is 0.
Captions are always fresh: their words come from the position of the example in the run.

b rows of a batch, N slots of a scene, H = W = size, S tokens, K hard negatives, h w Z latents.
"""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ldm.toybox import camera, captions, render, sampling, scene, solids, world
from ldm.toybox.captions import SHORT, VARIED, caption_of, compare
from ldm.toybox.grammar import Description, described
from ldm.toybox.mistakes import hard_captions
from ldm.toybox.parsing import parse
from ldm.toybox.sampling import SPLITS, Uniform, random_scene
from ldm.toybox.scene import COLOURS, SLOTS, Scene, stack
from ldm.training.cache import Arrays, check_latents, chunks, hash_of, kept, read_rows
from ldm.training.config import check, one_of, within
from ldm.training.data import Batch, Tokens

COUNT_STREAM, CAPTION_STREAM = 20, 30  # `ldm.toybox.dataset` has the streams below 20; one for each split from here on
CHUNK = 64  # scenes drawn together
ATTRIBUTES = ("kind", "colour", "size", "material")  # the columns of "toys"
DRAWN_BY = (camera, render, sampling, scene, solids, world)  # if one of these changes, so do the pictures


@dataclass(frozen=True)
class ToyboxData:
    """Which scenes, and how they are drawn and told.

    count         different scenes; 0: no end of them
    size, samples pixels along each side; rays along each side of a pixel
    split, seed   as :func:`ldm.toybox.sampling.random_scene` has them
    toys          how often a scene has one, two and three toys, in any unit
    short         fraction of captions in the words of a plain prompt; the others vary in words and detail
    """

    count: int = within(0, (">=", 0), ("<", 2**32))
    size: int = within(64, (">", 0), ("<=", world.LARGEST))
    samples: int = within(2, (">", 0), ("<=", 8))
    split: str = one_of("train", *SPLITS)
    seed: int = within(0, (">=", 0), ("<", 2**32))
    toys: tuple[float, ...] = (2.0, 2.0, 1.0)
    short: float = within(0.25, (">=", 0), ("<=", 1))

    def __post_init__(self) -> None:
        check(self)
        if len(self.toys) != SLOTS or min(self.toys) < 0 or not 0 < sum(self.toys) < np.inf:
            raise ValueError(f"toys must be {SLOTS} numbers, how often a scene has 1 to {SLOTS} toys, got {self.toys}")

    @cached_property
    def key(self) -> str:
        """A hash of all that the pictures depend on: these numbers, and the program that draws."""
        numbers = asdict(self) | {"toys": [float(share) for share in self.toys], "short": None}
        return hash_of([numbers, [inspect.getsource(module) for module in DRAWN_BY]])


def scenes_of(data: ToyboxData, indices: Iterable[int]) -> Scene:
    """A batch of the data's scenes, by number."""
    return stack([_scene(data, int(index)) for index in indices])


def _scene(data: ToyboxData, index: int) -> Scene:
    edges = np.cumsum(data.toys) / sum(data.toys)
    u = Uniform(data.seed, COUNT_STREAM + SPLITS.index(data.split), index).random()
    return random_scene(index, data.seed, data.split, 1 + int((u >= edges[:-1]).sum()))


def facts(scenes: Scene) -> dict[str, np.ndarray]:
    """What captions are made of: toys int8 [b, N, 4], their ``ATTRIBUTES``, kind -1 for none; seen float32 [b, N, 2],
    column and depth of each in the picture."""
    toys = np.stack([np.asarray(getattr(scenes, name), np.int8) for name in ATTRIBUTES], -1)
    return {"toys": toys, "seen": np.stack([np.asarray(values) for values in captions.seen_at(scenes)], -1)}


def draw(data: ToyboxData, scenes: Scene) -> np.ndarray:
    """Pictures of scenes, uint8 [b, H, W, 3]."""
    return world.to_uint8(world.render(scenes, data.size, data.samples))


def keep_scenes(data: ToyboxData, folder: Path) -> Path:
    """The folder with ``pictures.npy`` and the :func:`facts` of all scenes of ``data``, drawn if it has them not yet.

    Raises ValueError if ``data`` has no end, and where nothing can be written.
    """
    if not data.count:
        raise ValueError("scenes without end cannot be kept: give their count")

    def make() -> Iterator[Arrays]:
        for indices, new in chunks(data.count, CHUNK, "pictures"):
            scenes = scenes_of(data, indices)
            yield {name: rows[new] for name, rows in (facts(scenes) | {"pictures": draw(data, scenes)}).items()}

    return kept(folder, {"scenes": data.key}, data.count, make)


def keep_maps(data: ToyboxData, side: int, folder: Path) -> Path:
    """The folder with ``segmentation.npy`` of all scenes of ``data``: uint8 [N, side, side], 0 none, i + 1 slot i.

    Cells are as large as latents are, and each has what is seen at its middle. Raises ValueError as `keep_scenes`.
    """
    if not data.count:
        raise ValueError("maps of scenes without end cannot be kept: give their count")

    def make() -> Iterator[Arrays]:
        for indices, new in chunks(data.count, CHUNK, "maps"):
            found = world.truths(scenes_of(data, indices), side).segmentation
            yield {"segmentation": np.asarray(found, np.uint8)[new]}

    return kept(folder, {"maps": data.key, "side": side}, data.count, make)


@dataclass(frozen=True)
class ToyboxSource:
    """The source of `ldm.training.data.Batches` for the toybox. A batch has

    pictures    uint8 [b, H, W, 3]; or, where ``latents`` is given,
    mean logvar float16 [b, h, w, Z], unscaled
    ids         int32 [b, S], with ``tokens``: a true caption of each
    hard_ids    int32 [b, K, S], with ``hard`` = K: captions that are nearly true, see `ldm.toybox.mistakes`
    labels      int32 [b], with ``labels``: kind * colours + colour of the first toy
    toys seen   the :func:`facts` of the scenes, with ``truth``
    segmentation  uint8 [b, side, side], with ``maps``, the folder that :func:`keep_maps` gave

    ``scenes``: the folder that :func:`keep_scenes` gave; None: scenes are drawn as they are asked for. ``latents``: the
    folder that :func:`ldm.training.cache.keep_latents` gave for this very source without it. Raises ValueError for
    folders of other data, and for settings that do not go together.
    """

    data: ToyboxData
    scenes: Path | None = None
    latents: Path | None = None
    tokens: Tokens | None = None
    hard: int = 0
    labels: bool = False
    truth: bool = False
    maps: Path | None = None

    def __post_init__(self) -> None:
        if self.scenes is not None and self.scenes.name != hash_of({"scenes": self.data.key}):
            raise ValueError(f"{self.scenes}: these are scenes of other settings; make new ones by keep_scenes")
        if self.latents is not None and self.scenes is None:
            raise ValueError("latents are of scenes that are kept: make these by keep_scenes first")
        if self.latents is not None:
            check_latents(self.latents, self.key)
        if self.hard < 0 or (self.hard and self.tokens is None):
            raise ValueError(f"hard negatives are 0 or more and need a tokenizer, got {self.hard}")
        if self.labels and any(self.data.toys[1:]):
            raise ValueError(f"labels are of scenes with one toy: set toys to (1, 0, 0), got {self.data.toys}")

    @property
    def count(self) -> int:
        """How many different scenes; 0: no end of them."""
        return self.data.count

    @property
    def fixed(self) -> bool:
        """Whether a picture is the same each time it comes, so that its latents can be kept."""
        return self.count > 0

    @property
    def key(self) -> str:
        """A hash of all that the pictures depend on."""
        return self.data.key

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """Pictures by number, uint8 [n, H, W, 3]."""
        if self.scenes is None:
            return draw(self.data, scenes_of(self.data, indices))
        return read_rows(self.scenes, "pictures", indices)

    def rows(self, seed: int, positions: np.ndarray, indices: np.ndarray) -> Batch:
        """See `ldm.training.data.Source`."""
        if self.scenes is None:
            drawn = scenes_of(self.data, indices)
            known, rows = facts(drawn), {"scenes": drawn}
        else:
            known = {name: read_rows(self.scenes, name, indices) for name in ("toys", "seen")}
            folder, names = (self.latents, ("mean", "logvar")) if self.latents else (self.scenes, ("pictures",))
            rows = {name: read_rows(folder, name, indices) for name in names}
        if self.maps:
            rows["segmentation"] = read_rows(self.maps, "segmentation", indices)
        more = known if self.truth or self.maps else {}
        labels = known["toys"][:, 0, 0].astype(np.int32) * len(COLOURS) + known["toys"][:, 0, 1]
        return rows | more | self._texts(seed, positions, known) | ({"labels": labels} if self.labels else {})

    def finish(self, rows: Batch) -> Batch:
        """Draws scenes that are not kept, here, where the accelerators are."""
        return {"pictures": draw(self.data, rows.pop("scenes")), **rows} if "scenes" in rows else rows

    def _texts(self, seed: int, positions: np.ndarray, known: dict[str, np.ndarray]) -> Batch:
        if self.tokens is None:
            return {}
        told = [
            tell(self.data, toys, seen, Uniform(seed, CAPTION_STREAM, int(position)), self.hard)
            for toys, seen, position in zip(known["toys"], known["seen"], positions, strict=True)
        ]
        ids = self.tokens([text for texts in told for text in texts]).reshape(len(told), 1 + self.hard, -1)
        return {"ids": ids[:, 0]} | ({"hard_ids": ids[:, 1:]} if self.hard else {})


def tell(data: ToyboxData, toys: np.ndarray, seen: np.ndarray, rng: Uniform, hard: int = 0) -> list[str]:
    """A true caption of the :func:`facts` of one scene, then ``hard`` captions that are nearly true."""
    n = int((toys[:, 0] >= 0).sum())
    there, known = [_described(*row) for row in toys[:n].tolist()], compare(seen[:n, 0], seen[:n, 1])
    wording = SHORT if rng.random() < data.short else VARIED
    text = caption_of(there, known, rng, wording)
    return [text, *(hard_captions(parse(text), there, known, rng, hard, wording.paraphrase) if hard else [])]


@cache
def _described(kind: int, colour: int, size: int, material: int) -> Description:
    return described(kind, colour, size, material)
