"""The toybox's recogniser: what toys a picture shows, where they are, and whether it can be read at all.

It is the instrument that samples are measured with. A small convolutional network looks at 64x64 pictures and says for
each cell of a 16x16 grid how much it is the middle of a toy, and what toy; peaks of that map are the toys. One more
number says whether the picture is a picture of the toybox. Its card, ``data/RECOGNISER.md``, has what it was trained
on and what it gets right; `ldm.toybox.recipe` trains it and scores it.

B pictures, H W pixels, G = 16 cells along each side, N = 3 slots, F features. Positions are fractions of the picture,
(0, 0) its upper left corner. Kinds are indices into ``KINDS``: the handset is not among those it knows.
Sources: toys as peaks of a map of centres, Zhou et al., "Objects as Points" (arXiv:1904.07850), sections 3 and 4.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ldm import weights_file
from ldm.models.autoencoder import space_to_depth
from ldm.models.layers import Keys, ResBlock, bind, conv, group_norm, linear, upsample_nearest
from ldm.toybox.captions import compare
from ldm.toybox.grammar import Meaning, Relation, described, matches
from ldm.toybox.scene import COLOURS, HANDSET, MATERIALS, SIZES, SLOTS

SHIPPED = Path(__file__).parent / "data" / "recogniser.safetensors"
SIZE, GRID = 64, 16  # pixels, cells
AT_ONCE = 50  # pictures in the network together
ATTRIBUTES = {"kind": HANDSET, "colour": len(COLOURS), "size": len(SIZES), "material": len(MATERIALS)}
CHANNELS = {"heat": 1, **ATTRIBUTES, "box": 4, "column": 1, "depth": 1}  # what is said of each cell, in this order
REACH, DEEP = 0.25, 2.0  # what 1 means for an offset from the cell, and for a depth: fractions, toy units
THRESHOLDS = "thresholds"  # the array's name in the file: least readability, score and certainty


@dataclass(frozen=True)
class RecogniserConfig:
    """Widths at 32x32, 16x16 and 8x8, of the heads, and the number of groups of the normalisations."""

    channels: tuple[int, int, int] = (32, 64, 128)
    head: int = 128
    groups: int = 8


CONFIG = RecogniserConfig()


class Cells(NamedTuple):
    """What the network says: of each cell, and of the whole picture."""

    maps: Array  # [B, G, G, sum of CHANNELS] float32, see :func:`split`
    readable: Array  # [B] float32: a logit
    features: Array  # [B, F] float32: the trunk's means over the picture


class Slots(NamedTuple):
    """Readings of a batch as arrays, the most certain toys first. What is in a slot that is not there means nothing."""

    readable: Array  # [B] bool
    there: Array  # [B, N] bool
    kind: Array  # [B, N] int32, as the next three
    colour: Array
    size: Array
    material: Array
    box: Array  # [B, N, 4] float32: x0, y0, x1, y1 of the visible part
    column: Array  # [B, N] float32: of the toy's middle, as `captions.seen_at` has it
    depth: Array  # [B, N] float32, toy units: of the middle, beyond the point that the camera looks at
    score: Array  # [B, N] float32: the map at its peak
    certainty: Array  # [B, N] float32: probability of the least certain of the four attributes
    readability: Array  # [B] float32: probability of being a picture of the toybox


class Sighting(NamedTuple):
    """One toy that was seen; the fields are those of `Slots`."""

    kind: int
    colour: int
    size: int
    material: int
    box: tuple[float, float, float, float]
    column: float
    depth: float
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """(column, row) of the box's middle."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


class Reading(NamedTuple):
    """What was read in one picture: ``toys`` from left to right; what is not readable may show some all the same."""

    readable: bool
    toys: tuple[Sighting, ...]


# ---------------------------------------------------------------------------------------------------------------------
# The network.


class Recogniser(nnx.Module):
    """Pictures [B, 64, 64, 3] in [0, 1] -> `Cells`."""

    def __init__(self, config: RecogniserConfig, keys: Keys):
        a, b, c = config.channels
        block = lambda c_in, c_out: ResBlock(c_in, c_out, config.groups, 1e-5, keys)
        self.stem = conv(4 * 3 + 2, a, keys)  # 2x2 pixels and the place
        self.fine = block(a, a)
        self.down = conv(a, b, keys, stride=2)
        self.middle = block(b, b)
        self.deeper = conv(b, c, keys, stride=2)
        self.deep = nnx.List([block(c, c), block(c, c)])
        self.norm = group_norm(c, config.groups, 1e-5, keys)
        self.up = linear(c, b, keys)
        self.join = block(b, b)
        self.head_norm = group_norm(b, config.groups, 1e-5, keys)
        self.head = linear(b, config.head, keys)
        self.out = linear(config.head, sum(CHANNELS.values()), keys)
        self.whole = linear(2 * c, config.head, keys)
        self.readable = linear(config.head, 1, keys)

    def __call__(self, pictures: Array) -> Cells:
        h = self.fine(self.stem(_unfold(2 * pictures - 1)))  # [B, 32, 32, a]
        skip = self.middle(self.down(h))  # [B, 16, 16, b]
        h = self.deeper(skip)
        for block in self.deep:
            h = block(h)
        h = nnx.silu(self.norm(h))  # [B, 8, 8, c]
        features = h.mean((1, 2))
        whole = nnx.silu(self.whole(jnp.concatenate([features, h.max((1, 2))], -1)))
        h = self.join(skip + upsample_nearest(self.up(h)))
        maps = self.out(nnx.silu(self.head(nnx.silu(self.head_norm(h)))))
        return Cells(maps, self.readable(whole)[:, 0], features)


def _unfold(x: Array) -> Array:
    """[B, H, W, C] -> [B, H/2, W/2, 4C + 2]: 2x2 pixels as channels, and each one's row and column in [-1, 1]."""
    x = space_to_depth(x, 2)
    rows, columns = (jnp.linspace(-1, 1, side) for side in x.shape[1:3])
    place = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    return jnp.concatenate([x, jnp.broadcast_to(place, (len(x), *place.shape))], -1)


def split(maps: Array) -> dict[str, Array]:
    """The channels [..., sum of CHANNELS] by name; attributes are logits, ``heat`` too."""
    ends = np.cumsum(list(CHANNELS.values()))
    return dict(zip(CHANNELS, jnp.split(maps, ends[:-1], -1), strict=True))


def places() -> Array:
    """The middles of the cells: (column, row), [G * G, 2] float32."""
    middle = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    rows, columns = np.meshgrid(middle, middle, indexing="ij")
    return jnp.asarray(np.stack([columns, rows], -1).reshape(-1, 2))


def decode(maps: dict[str, Array], at: Array) -> tuple[Array, Array, Array]:
    """Box, column and depth that cells [..., C] at ``at`` [..., 2] speak of."""
    box = jnp.concatenate([at, at], -1) + REACH * maps["box"]
    return box, at[..., 0] + REACH * maps["column"][..., 0], DEEP * maps["depth"][..., 0]


# ---------------------------------------------------------------------------------------------------------------------
# Reading.


@functools.cache
def load(path: Path = SHIPPED) -> dict[str, Array]:
    """The parameters in a file, float32, with their thresholds; by default those that ship. Raises ValueError."""
    return {name: jnp.asarray(array, jnp.float32) for name, array in weights_file.read(path).items()}


def scan(params: Mapping[str, Array], pictures: Array) -> Slots:
    """Reads pictures [B, H, W, 3] float32 in [0, 1]; pure, to be used under jit. Square ones of any size: see `fit`.

    A picture is readable if it looks like one of the toybox, at least one toy is seen, and all that are seen are
    certain, each by the threshold that was chosen on validation pictures.
    """
    cells = bind(Recogniser, CONFIG, params)(fit(pictures))
    said = {name: values.reshape(len(pictures), GRID * GRID, -1) for name, values in split(cells.maps).items()}
    heat = jax.nn.sigmoid(cells.maps[..., 0])
    best = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")
    score, index = jax.lax.top_k(jnp.where(heat == best, heat, 0.0).reshape(len(pictures), -1), SLOTS)
    said = {name: jnp.take_along_axis(values, index[..., None], 1) for name, values in said.items()}
    least = jnp.stack([jax.nn.softmax(said[name]).max(-1) for name in ATTRIBUTES]).min(0)
    readability = jax.nn.sigmoid(cells.readable)
    known, seen, sure = params[THRESHOLDS]
    there = score >= seen
    readable = (readability >= known) & there[:, 0] & (~there | (least >= sure)).all(-1)
    attributes = [said[name].argmax(-1) for name in ATTRIBUTES]
    return Slots(readable, there, *attributes, *decode(said, places()[index]), score, least, readability)


def fit(pictures: Array) -> Array:
    """Square pictures [B, H, H, 3] at 64x64: smaller by area (linear, anti-aliased), larger by linear interpolation."""
    if pictures.shape[1:3] == (SIZE, SIZE):
        return pictures
    return jax.image.resize(pictures, (len(pictures), SIZE, SIZE, 3), "linear", antialias=True)


def read(pictures: Any, params: Mapping[str, Array] | None = None) -> list[Reading]:
    """What each of a batch of pictures shows.

    pictures [B, H, H, 3] float in [0, 1], H at least 16 pixels, sRGB; other sizes than 64 are resized, see `fit`. Each
    is read by itself. ``params``: of :func:`load`. Compiles once for each shape of a batch. Raises ValueError.
    """
    slots = jax.tree.map(np.asarray, scan_all(load() if params is None else params, _checked(pictures)))
    return [_reading(Slots(*row)) for row in zip(*slots, strict=True)]


def features(pictures: Any, params: Mapping[str, Array] | None = None) -> Array:
    """[B, F] float32 for Fréchet distances: what the trunk says on average over each picture. As :func:`read`."""
    return _features(load() if params is None else params, _checked(pictures))


def relations(reading: Reading) -> list[Relation]:
    """All clear relations between the toys of a reading, with the margins that captions have, the clearest first."""
    return compare([toy.column for toy in reading.toys], [toy.depth for toy in reading.toys])


def agrees(meaning: Meaning, reading: Reading, exact: bool = True) -> bool:
    """Whether a picture shows what a prompt says: it is readable, the toys and relations are those that are named.

    ``exact``: and there are no other toys. With :func:`ldm.toybox.parsing.parse`, ``agrees(parse(prompt), reading)``.
    """
    there = [described(toy.kind, toy.colour, toy.size, toy.material) for toy in reading.toys]
    counted = not exact or len(there) == meaning.toys
    return reading.readable and counted and matches(meaning, there, relations(reading))


def _reading(one: Slots) -> Reading:
    columns = (one.kind, one.colour, one.size, one.material, one.box, one.column, one.depth, one.score)
    rows = zip(*(values[one.there].tolist() for values in columns), strict=True)
    toys = [Sighting(*row[:4], tuple(row[4]), *row[5:]) for row in rows]
    return Reading(bool(one.readable), tuple(sorted(toys, key=lambda toy: toy.column)))


def _checked(pictures: Any) -> Array:
    pictures = np.asarray(pictures)
    shape, dtype = pictures.shape, pictures.dtype
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or shape[1] < 16 or not len(pictures):
        raise ValueError(f"expected square pictures [B, H, H, 3] of 16 pixels or more, got shape {shape}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"expected pictures of float numbers in 0 to 1, got {dtype}; divide bytes by 255")
    low, high = float(pictures.min()), float(pictures.max())  # NaN if there is one
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected pictures with values in 0 to 1, got {low:.3g} to {high:.3g}; clip them first")
    return jnp.asarray(pictures, jnp.float32)


def _in_parts(look: Any, pictures: Array) -> Any:
    """``look`` [b, ...] over all pictures, some at a time: memory does not grow with the batch."""
    one = lambda picture: jax.tree.map(lambda values: values[0], look(picture[None]))
    return jax.lax.map(one, pictures, batch_size=AT_ONCE)


@jax.jit
def scan_all(params: Mapping[str, Array], pictures: Array) -> Slots:
    """:func:`scan`, compiled once for each shape; the batch may be as large as there is room for its pictures."""
    return _in_parts(lambda some: scan(params, some), pictures)


@jax.jit
def _features(params: Mapping[str, Array], pictures: Array) -> Array:
    return _in_parts(lambda some: bind(Recogniser, CONFIG, params)(fit(some)).features, pictures)
