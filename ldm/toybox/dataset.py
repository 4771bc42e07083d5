"""The toybox's datasets: example ``index`` of a seed and a split, in memory or in a folder.

Everything about an example follows from its index and the `Dataset`'s numbers: it is the same in any batch, in any
order, on any machine, and nothing has to be kept. Numbers of the caption come from a stream of their own, so that
another wording changes no scene.

B examples, H = W = size pixels, N slots, K keypoints.
Sources: the folder's layout is the image folder of Hugging Face's ``datasets``, whose table is ``metadata.jsonl``.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.files import into_place
from ldm.toybox import captions
from ldm.toybox.captions import VARIED, Wording
from ldm.toybox.grammar import Description
from ldm.toybox.sampling import SPLITS, Uniform, random_scene
from ldm.toybox.scene import GROUNDS, HEAD, IDENTITY, Scene, is_held_out, stack, take
from ldm.toybox.truth import KEYPOINTS, Truth
from ldm.toybox.world import render, to_uint8, truths

CAPTION_STREAMS = 10  # the streams from here on are those of captions, one for each split; scenes have the first ones
CHUNK = 8  # examples drawn together when a folder is written
MOST = 1_000_000  # file names have six digits
DEPTH_UNITS = 1000  # of a depth map's 16 bits to one toy unit
MAPS = ("segmentation", "depth", "normals", "edges")


@dataclass(frozen=True)
class Dataset:
    """Which examples, and how they are drawn and told. Raises ValueError for a seed below 0 or of more than 63 bits.

    ``split``, ``toys``: as :func:`ldm.toybox.sampling.random_scene` has them. ``size``: pixels along each side.
    ``samples``: rays along each side of a pixel.
    """

    seed: int = 0
    split: str = "train"
    toys: int | None = None
    size: int = 64
    samples: int = 2
    wording: Wording = VARIED

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, got {self.seed}")


class Example(NamedTuple):
    """One scene and a true sentence about it."""

    scene: Scene
    caption: str


def example(index: int, data: Dataset = Dataset()) -> Example:
    """Example ``index``. Raises ValueError for an index, seed, split or number of toys that the toybox has not."""
    scene = random_scene(index, data.seed, data.split, data.toys)
    rng = Uniform(data.seed, CAPTION_STREAMS + SPLITS.index(data.split), index)
    return Example(scene, captions.caption(scene, rng, data.wording))


def pictures(indices: Iterable[int], data: Dataset = Dataset()) -> dict[str, Any]:
    """The examples of some indices, as a batch for training:

    picture [B, H, W, 3] float32 in [0, 1], sRGB; caption, a list of B texts; scene, B of them in one `Scene`; index
    [B] int64. Their truth is ``ldm.toybox.world.truths(batch["scene"], data.size)``. One program is compiled for each
    B. Raises ValueError.
    """
    index = np.array([int(i) for i in indices], np.int64)
    if not index.size:
        raise ValueError("a batch needs at least one index, got none")
    made = [example(int(i), data) for i in index]
    scenes = stack([one.scene for one in made])
    drawn = np.asarray(render(scenes, data.size, data.samples))
    return {"picture": drawn, "caption": [one.caption for one in made], "scene": scenes, "index": index}


def batches(indices: Iterable[int], batch: int, data: Dataset = Dataset()) -> Iterator[dict[str, Any]]:
    """:func:`pictures` of ``batch`` indices at a time. ``itertools.count()`` gives batches without end.

    What is left over at the end and fills no batch is left out. Raises ValueError.
    """
    if batch < 1:
        raise ValueError(f"a batch has at least one example, got {batch}")
    rest = iter(indices)
    while len(chosen := list(islice(rest, batch))) == batch:
        yield pictures(chosen, data)


# ---------------------------------------------------------------------------------------------------------------------
# A folder.


def write_folder(folder: str | Path, n: int, data: Dataset = Dataset()) -> None:
    """Writes examples 0 to ``n`` - 1 with all their truths to ``folder``, which must not exist or be empty.

    The folder's README.md says what is in it. Nothing is left behind by an error or an interruption. Raises ValueError.
    """
    if not 1 <= n <= MOST:
        raise ValueError(f"a folder holds 1 to {MOST} pictures, got {n}")

    def write(to: Path) -> None:
        for kind in ("images", *MAPS):
            (to / kind).mkdir()
        (to / "README.md").write_text(about(n, data), encoding="utf-8")
        with (to / "metadata.jsonl").open("w", encoding="utf-8") as table:
            for row in tqdm(_write_pictures(to, n, data), total=n, unit="picture", leave=False, disable=None):
                table.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    into_place(Path(folder), write)


def _write_pictures(to: Path, n: int, data: Dataset) -> Iterator[dict[str, Any]]:
    """Writes the files of every example; yields its row. The last chunk is drawn whole, for one shape to compile."""
    for first in range(0, n, CHUNK):
        batch = pictures(range(first, first + CHUNK), data)
        found = Truth(*(np.asarray(values) for values in truths(batch["scene"], data.size)))
        for i in range(min(CHUNK, n - first)):
            one = Truth(*(values[i] for values in found))
            drawn = {"images": to_uint8(batch["picture"][i]), **encoded(one)}
            for kind, pixels in drawn.items():
                Image.fromarray(pixels).save(to / file_name(kind, first + i))
            made = Example(take(batch["scene"], i), batch["caption"][i])
            yield row(first + i, made, one, data)


def file_name(kind: str, index: int) -> str:
    """The place of an example's picture (``kind`` "images") or of one of its ``MAPS``, in the folder."""
    return f"{kind}/{index:06}.png"


def encoded(one: Truth) -> dict[str, np.ndarray]:
    """The maps of one picture as the folder's PNGs hold them: see ``ABOUT``. uint8, but depth uint16."""
    return {
        "segmentation": one.segmentation.astype(np.uint8),
        "depth": np.floor(np.clip(one.depth * DEPTH_UNITS + 0.5, 0, 65535)).astype(np.uint16),
        "normals": to_uint8(one.normals * 0.5 + 0.5),
        "edges": one.edges.astype(np.uint8) * 255,
    }


def row(index: int, made: Example, one: Truth, data: Dataset) -> dict[str, Any]:
    """An example's line of ``metadata.jsonl``. Every line has the same names; what a toy has not is null."""
    scene, text = made
    camera, light = scene.camera, np.degrees(scene.light)
    return {
        "file_name": file_name("images", index),
        "text": text,
        **{f"{kind}_file_name": file_name(kind, index) for kind in MAPS},
        "objects": [_toy(scene, i, words, one) for i, words in enumerate(captions.toys(scene))],
        "relations": [dict(zip(("first", "relation", "second"), r, strict=True)) for r in captions.relations(scene)],
        "camera": {
            "azimuth": _plain(np.degrees(camera.azimuth)),
            "elevation": _plain(np.degrees(camera.elevation)),
            "distance": _plain(camera.distance),
            "target": _plain(camera.target),
        },
        "ground": GROUNDS[int(scene.ground)],
        "light": {"azimuth": _plain(light[0]), "elevation": _plain(light[1])},
        "index": index,
        "seed": data.seed,
        "split": data.split,
        "held_out": is_held_out(scene),
    }


def _toy(scene: Scene, i: int, words: Description, one: Truth) -> dict[str, Any]:
    """What a row says of the toy of slot ``i``."""
    face = {
        "identity": _plain(scene.identity[i]),
        "keypoints": _plain(one.keypoints[i]),
        "keypoints_3d": _plain(one.keypoints_3d[i]),
        "keypoints_seen": one.keypoints_seen[i].tolist(),
    }
    return {
        **{name: value for name, value in asdict(words).items() if name != "number"},
        "position": _plain(scene.position[i]),
        "yaw": _plain(np.degrees(scene.yaw[i])),
        "box": _plain(one.boxes[i]),
        "area": _plain(one.area[i]),
        **(face if scene.kind[i] == HEAD else dict.fromkeys(face)),
    }


def _plain(values: Any) -> Any:
    """Numbers for JSON, to six decimals."""
    return np.round(np.asarray(values, np.float64), 6).tolist()


def about(n: int, data: Dataset) -> str:
    """The folder's README.md."""
    settings = ", ".join(f"{name} {value}" for name, value in asdict(data).items() if name != "wording")
    wording = ", ".join(f"{name} {value:g}" for name, value in asdict(data.wording).items())
    return ABOUT.format(
        n=n,
        settings=settings.replace("toys None", "1 to 3 toys"),
        wording=wording,
        units=DEPTH_UNITS,
        identity=", ".join(IDENTITY),
        keypoints=", ".join(KEYPOINTS),
    )


ABOUT = """# Toybox

{n} pictures of a small world of toys, and what is true of each of them, drawn by `ldm toybox`.
Settings: {settings}. Probabilities of the captions' wording: {wording}.

`metadata.jsonl` has one line for each picture: the paths of its files, its caption (`text`), and:

- `objects`: one for each toy, in the order of its slots. `kind`, `colour`, `size`, `material`; `position`, x and z on
  the ground, and `yaw` about the vertical, 0 facing +z; `box`, [x0, y0, x1, y1] of its visible part; `area`, the share
  of the picture that it covers. A head, and no other toy, also has `identity`, numbers in 0 to 1
  ({identity}),
  and `keypoints` ({keypoints}; left: of who faces it):
  where they are in the picture, where in space (`keypoints_3d`: right, up and forward from the camera), and whether
  they are in the frame and not hidden (`keypoints_seen`).
- `relations`: toy `first` is to the left of, to the right of, in front of or behind toy `second` as the camera sees
  them; only clear cases. Toys count from 0.
- `camera`: `azimuth`, `elevation`, `distance` from its `target`, a point x, y, z. At azimuth 0 it looks from +z; as the
  azimuth grows it moves towards +x. Its field of view is 30 degrees. `light`: azimuth and elevation of the lamp.
- `held_out`: whether the scene has a pair of colour and kind, or a kind, that no training scene has.

Positions in the picture are (column, row) fractions of its width and height, (0, 0) the upper left corner. Angles are
in degrees, lengths in toy units: a large toy is about 2 wide. y is up and the ground is y = 0.

| folder | PNG | a pixel's value |
|---|---|---|
| `images` | 8-bit RGB | sRGB |
| `segmentation` | 8-bit | 0 for the table and the wall, i + 1 for toy i |
| `depth` | 16-bit | depth along the camera's axis in 1/{units} toy unit; 60000 where there is only wall |
| `normals` | 8-bit RGB | 255 (n + 1) / 2 of the unit normal n: right, up and to the camera; 128 for the wall |
| `edges` | 8-bit | 255 for outlines and creases, else 0 |
"""
