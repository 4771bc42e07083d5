"""Random scenes: scene number ``index`` of a seed and a split, the same on every machine.

Every random number is ``Generator.random`` of a Philox stream whose counter holds the index, the part of NumPy whose
numbers do not change between versions; choices are made from those uniform numbers here. A layout is drawn by
rejection: the toys do not overlap, lie within the frame, and none is hidden by more than ``HIDDEN``.

A = 64 candidate layouts are tried at once; n toys. Places in the camera's frame: u to its right, w towards it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ldm.toybox.camera import FIELD_OF_VIEW
from ldm.toybox.scene import (
    COLOURS,
    DISTANCE,
    GROUNDS,
    HANDSET,
    HEAD,
    HELD_OUT,
    IDENTITY,
    MATERIALS,
    RADIUS,
    SIZES,
    SLOTS,
    TARGET,
    Camera,
    Scene,
    stack,
)

SPLITS = ("train", "test", "held_out")
PAIRS = tuple((c, k) for k in range(HANDSET) for c in range(len(COLOURS)))
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
CANDIDATES = 64
MARGIN, HIDDEN, GAP = 0.05, 0.25, 0.12  # of the frame, of a toy's outline, toy units between toys
ELEVATION = (22.0, 42.0)  # degrees

# Half width and height of each kind's outline at radius 1, for what it hides.
OUTLINE = np.array([[0.92, 1.84], [0.90, 1.40], [0.73, 1.64], [0.85, 1.75], [0.97, 0.62], [0.75, 2.10], [0.95, 0.80]])


class Uniform:
    """A stream of uniform numbers with the choices that a scene is made of."""

    def __init__(self, seed: int, stream: int, index: int):
        self.generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, index, 0]))

    def random(self, shape: Any = None) -> Any:
        """Uniform in [0, 1)."""
        return self.generator.random(shape)

    def between(self, low: float, high: float, shape: Any = None) -> Any:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random(shape)

    def choice(self, n: int, shape: Any = None) -> Any:
        """Whole numbers below ``n``."""
        return np.floor(n * self.random(shape)).astype(np.int32)


def random_scene(index: int, seed: int = 0, split: str = "train", toys: int | None = None) -> Scene:
    """Scene ``index`` of a split: ``train``, ``test`` (the same kind of scenes, none of them the same) or ``held_out``
    (every scene has a pair of colour and kind that no training scene has).

    ``toys``: 1 to 3, or None: two fifths have one, two fifths two, one fifth three. Raises ValueError.
    """
    if split not in SPLITS:
        raise ValueError(f"the toybox has no split {split!r}; choose from {', '.join(SPLITS)}")
    if toys is not None and toys not in range(1, SLOTS + 1):
        raise ValueError(f"a scene has 1 to {SLOTS} toys, got {toys}")
    if not (0 <= index < 2**63 and 0 <= seed < 2**63):
        raise ValueError(f"scenes and seeds are numbered from 0 to 2**63 - 1, got scene {index} of seed {seed}")
    rng = Uniform(seed, SPLITS.index(split), index)
    first = rng.random()
    n = toys or 1 + (first >= 0.4) + (first >= 0.8)
    while True:
        pairs = _pairs(rng, n, split)
        size = rng.choice(len(SIZES), n)
        azimuth, elevation = rng.between(-np.pi, np.pi), np.radians(rng.between(*ELEVATION))
        distance = DISTANCE[n - 1] * rng.between(0.97, 1.03)
        places = _places(rng, n, RADIUS[size])
        good = _fits(places, pairs[:, 1], size, elevation, distance)
        if good.any():
            break
    return _assemble(rng, pairs, size, places[int(good.argmax())], (azimuth, elevation, distance))


def random_scenes(indices: Iterable[int], seed: int = 0, split: str = "train", toys: int | None = None) -> Scene:
    """A batch of scenes by number, see :func:`random_scene`."""
    return stack([random_scene(int(index), seed, split, toys) for index in indices])


def _pairs(rng: Uniform, n: int, split: str) -> np.ndarray:
    """Colour and kind of each toy, [n, 2]."""
    pairs = np.array(SEEN)[rng.choice(len(SEEN), n)]
    if split == "held_out":
        pairs[rng.choice(n)] = np.array(sorted(HELD_OUT))[rng.choice(len(HELD_OUT))]
    return pairs


def _places(rng: Uniform, n: int, radius: np.ndarray) -> np.ndarray:
    """Candidate places (u, w) around the middle, [A, n, 2]."""
    if n == 1:
        return rng.between(-0.4, 0.4, (CANDIDATES, 1, 2))
    if n == 3:
        return rng.between(-1.0, 1.0, (CANDIDATES, 3, 2)) * np.array([2.1, 2.0])
    along = rng.between(radius.sum() + GAP, 3.1, CANDIDATES)
    across = rng.between(-0.5, 0.5, CANDIDATES)
    apart = np.stack([along, across], -1) * np.where(rng.random(CANDIDATES) < 0.5, 1, -1)[:, None]
    if rng.random() < 0.5:  # one behind the other
        apart = apart[:, ::-1]
    middle = rng.between(-0.25, 0.25, (CANDIDATES, 2))
    return middle[:, None] + np.stack([apart, -apart], 1) / 2


def _fits(places: np.ndarray, kind: np.ndarray, size: np.ndarray, elevation: float, distance: float) -> np.ndarray:
    """Which candidates have their toys apart, in the frame and in sight, [A] bool."""
    n, radius = len(kind), RADIUS[size]
    sin, cos = np.sin(elevation), np.cos(elevation)
    u, w = places[..., 0], places[..., 1]
    depth = distance - w * cos - 0.1 * sin  # of each toy's middle height, near enough
    reach = 2 * np.tan(FIELD_OF_VIEW / 2) * depth
    half, height = OUTLINE[kind, 0] * radius, OUTLINE[kind, 1] * radius
    left, right = 0.5 + (u - half) / reach, 0.5 + (u + half) / reach
    rise = TARGET[1] * cos + w * sin  # of the picture's middle over each toy's foot
    low = 0.5 + (rise + half * sin) / reach
    high = 0.5 + (rise - height * cos - 0.5 * half * sin) / reach
    good = (np.minimum(left, high).min(-1) > MARGIN) & (np.maximum(right, low).max(-1) < 1 - MARGIN)
    for i in range(n):
        hidden = np.zeros(len(places))
        for j in range(n):
            if i == j:
                continue
            good &= np.hypot(*(places[:, i] - places[:, j]).T) > radius[i] + radius[j] + GAP
            wide = np.minimum(right[:, i], right[:, j]) - np.maximum(left[:, i], left[:, j])
            tall = np.minimum(low[:, i], low[:, j]) - np.maximum(high[:, i], high[:, j])
            hidden += np.where(w[:, j] > w[:, i], np.maximum(wide, 0) * np.maximum(tall, 0), 0)
        good &= hidden <= HIDDEN * (right - left)[:, i] * (low - high)[:, i]
    return good


def _assemble(rng: Uniform, pairs: np.ndarray, size: np.ndarray, places: np.ndarray, pose: tuple) -> Scene:
    """The scene, in the world's coordinates."""
    n, (azimuth, elevation, distance) = len(pairs), pose
    right, towards = np.array([np.cos(azimuth), -np.sin(azimuth)]), np.array([np.sin(azimuth), np.cos(azimuth)])
    position = places[:, :1] * right + places[:, 1:] * towards
    facing = azimuth + np.radians(rng.between(-40, 40, n))
    yaw = np.where(pairs[:, 1] == HEAD, facing, rng.between(-np.pi, np.pi, n))
    side = np.where(rng.random() < 0.5, -1, 1)
    lamp = np.array([azimuth + side * np.radians(rng.between(25, 65)), np.radians(rng.between(40, 62))])

    def slots(values: np.ndarray, empty: float = 0) -> np.ndarray:
        whole = np.full((SLOTS, *values.shape[1:]), empty, values.dtype)
        whole[:n] = values
        return whole.astype(np.float32 if values.dtype.kind == "f" else np.int32)

    return Scene(
        kind=slots(pairs[:, 1], -1),
        colour=slots(pairs[:, 0]),
        size=slots(size),
        material=slots(rng.choice(len(MATERIALS), n)),
        position=slots(position),
        yaw=slots(yaw),
        identity=slots(rng.random((n, len(IDENTITY))), 0.5),
        ground=rng.choice(len(GROUNDS)),
        light=lamp.astype(np.float32),
        camera=Camera(np.float32(azimuth), np.float32(elevation), np.float32(distance), TARGET),
    )
