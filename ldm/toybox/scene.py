"""What a toybox scene is: some toys on a table, a light and a camera, as a pytree of small arrays.

N = 3 slots for toys, I = 10 numbers of identity. Attributes are indices into the tuples below, so a scene can be
batched, sent through jit and compared. Empty slots have ``kind`` -1 and come last.

The held-out part belongs to the definition: the pairs of colour and kind in ``HELD_OUT`` and every ``handset`` are in
no training scene, so that composition and personalisation can be measured on things never seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from ldm.toybox.camera import Camera

KINDS = ("sphere", "cube", "cylinder", "cone", "torus", "head", "handset")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SIZES = ("small", "large")
MATERIALS = ("matte", "shiny")
GROUNDS = ("stone", "sand", "rose", "mint", "sky", "slate")

SLOTS = 3
HEAD, HANDSET = KINDS.index("head"), KINDS.index("handset")
RADIUS = np.array([0.66, 1.0], np.float32)  # toy units, by size; every toy lies in a circle of this radius
REACH = 6.0  # toys stand within this distance of the world's centre
IDENTITY = (
    "face width",
    "face height",
    "eye spacing",
    "eye size",
    "nose size",
    "mouth width",
    "smile",
    "hat kind",
    "hat hue",
    "eye hue",
)  # of a head: numbers in [0, 1]; 0.5 is the middle

# One colour of each kind that is trained on.
HELD_OUT = frozenset(
    (COLOURS.index(colour), KINDS.index(kind))
    for colour, kind in (
        ("blue", "sphere"),
        ("yellow", "cube"),
        ("green", "cylinder"),
        ("red", "cone"),
        ("purple", "torus"),
        ("orange", "head"),
    )
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """One scene, or a batch of them with leading axes.

    kind, colour, size, material [N] int32: indices, ``kind`` -1 for an empty slot; position [N, 2] float32: x and z on
    the ground, toy units; yaw [N] float32: radians about the vertical, 0 faces +z; identity [N, I] float32 in [0, 1],
    read for heads only; ground [] int32; light [2] float32: azimuth and elevation of the lamp, radians; camera.
    """

    kind: Any
    colour: Any
    size: Any
    material: Any
    position: Any
    yaw: Any
    identity: Any
    ground: Any
    light: Any
    camera: Camera


@dataclass(frozen=True)
class Toy:
    """One toy in words, for :func:`scene`."""

    kind: str
    colour: str = "red"
    size: str = "large"
    material: str = "matte"
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0
    identity: Sequence[float] = (0.5,) * len(IDENTITY)


DISTANCE = (6.4, 9.0, 10.4)  # of the camera, by the number of toys: they fill the frame
TARGET = np.array([0.0, 0.7, 0.0], np.float32)  # what it looks at


def view(azimuth: float = 0.0, elevation: float = 30.0, distance: float = DISTANCE[1], target=TARGET) -> Camera:
    """A camera; angles in degrees, lengths in toy units."""
    return Camera(*(np.float32(v) for v in (np.radians(azimuth), np.radians(elevation), distance)), _floats(target))


def scene(
    toys: Sequence[Toy], camera: Camera | None = None, ground: str = "stone", light: tuple[float, float] = (-40, 50)
) -> Scene:
    """A scene from words. ``light`` is azimuth and elevation in degrees. Raises ValueError, see :func:`check`."""
    if not 1 <= len(toys) <= SLOTS:
        raise ValueError(f"a scene holds 1 to {SLOTS} toys, got {len(toys)}")
    camera = view(distance=DISTANCE[len(toys) - 1]) if camera is None else camera
    empty = Toy(KINDS[0])
    slots = [*toys, *[empty] * (SLOTS - len(toys))]
    kind = _indices([toy.kind for toy in slots], "kind", KINDS)
    made = Scene(
        kind=np.where(np.arange(SLOTS) < len(toys), kind, -1).astype(np.int32),
        colour=_indices([toy.colour for toy in slots], "colour", COLOURS),
        size=_indices([toy.size for toy in slots], "size", SIZES),
        material=_indices([toy.material for toy in slots], "material", MATERIALS),
        position=_floats([(toy.x, toy.z) for toy in slots]),
        yaw=_floats([toy.yaw for toy in slots]),
        identity=_floats([toy.identity for toy in slots]),
        ground=_indices([ground], "ground", GROUNDS)[0],
        light=_floats(np.radians(light)),
        camera=camera,
    )
    check(made)
    return made


def _floats(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _indices(words: Sequence[str], what: str, known: tuple[str, ...]) -> np.ndarray:
    odd = [word for word in words if word not in known]
    if odd:
        raise ValueError(f"the toybox has no {what} {odd[0]!r}; choose from {', '.join(known)}")
    return np.array([known.index(word) for word in words], np.int32)


def count(one: Scene) -> Any:
    """How many toys there are, [...]."""
    return (one.kind >= 0).sum(-1)


def stack(scenes: Sequence[Scene]) -> Scene:
    """A batch of scenes: every array gets a first axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *scenes)


def take(batch: Scene, index: int) -> Scene:
    """One scene of a batch."""
    return jax.tree.map(lambda array: array[index], batch)


def is_held_out(one: Scene) -> bool:
    """Whether a scene has something that no training scene has."""
    present = zip(np.asarray(one.colour).tolist(), np.asarray(one.kind).tolist(), strict=True)
    return any(kind == HANDSET or (colour, kind) in HELD_OUT for colour, kind in present)


def check(scenes: Scene) -> None:
    """Raises ValueError, in one sentence, for a scene (or one of a batch) that is no scene of this world."""
    for field, known in (("kind", KINDS), ("colour", COLOURS), ("size", SIZES), ("material", MATERIALS)):
        values = np.asarray(getattr(scenes, field))
        if values.shape[-1:] != (SLOTS,) or values.dtype.kind not in "iu":
            raise ValueError(f"a scene's {field} is {SLOTS} integers, got {values.dtype} of shape {values.shape}")
        good = (values >= -(field == "kind")) & (values < len(known))
        _require(good.all(-1), values, f"a scene's {field} lies in 0 to {len(known) - 1}")
    kind, ground = np.asarray(scenes.kind), np.asarray(scenes.ground)
    full = kind >= 0
    good = full[..., 0] & (full[..., :-1] >= full[..., 1:]).all(-1)
    _require(good, kind, f"a scene has 1 to {SLOTS} toys, and -1 for the kind of its empty slots, which come last")
    _require((ground >= 0) & (ground < len(GROUNDS)), ground, f"a scene's ground lies in 0 to {len(GROUNDS) - 1}")
    _check_numbers(scenes, kind.shape[:-1])
    place, radius = np.asarray(scenes.position), RADIUS[np.asarray(scenes.size)]
    _require((~full | (np.abs(place).max(-1) <= REACH)).all(-1), place, f"toys stand within {REACH} of the centre")
    for i in range(SLOTS):
        for j in range(i):
            apart = np.hypot(*np.moveaxis(place[..., i, :] - place[..., j, :], -1, 0))
            good = ~full[..., i] | (apart >= radius[..., i] + radius[..., j])
            _require(
                good,
                place,
                f"toys {j} and {i} overlap: each needs a circle of radius {RADIUS[0]:.2f} or {RADIUS[1]:.2f}",
            )


def _require(good: np.ndarray, values: np.ndarray, what: str) -> None:
    """Raises ValueError with the values of the first scene that is not ``good``."""
    if not good.all():
        bad = tuple(np.argwhere(~good)[0])
        where = f" (scene {bad[0]} of the batch)" if bad else ""
        raise ValueError(f"{what}, got {np.asarray(values)[bad].round(3).tolist()}{where}")


def _check_numbers(scenes: Scene, batch: tuple) -> None:
    wanted = {"position": (SLOTS, 2), "yaw": (SLOTS,), "identity": (SLOTS, len(IDENTITY)), "light": (2,)}
    camera = {field.name: (3,) if field.name == "target" else () for field in fields(Camera)}
    for owner, shapes in ((scenes, wanted), (scenes.camera, camera)):
        for name, shape in shapes.items():
            values = np.asarray(getattr(owner, name))
            if values.shape != (*batch, *shape):
                raise ValueError(f"a scene's {name} has shape {(*batch, *shape)}, got {values.shape}")
            finite = np.isfinite(values).all(tuple(range(len(batch), values.ndim)))
            _require(finite, values, f"a scene's {name} is finite numbers")
    identity, far = np.asarray(scenes.identity), np.asarray(scenes.camera.distance)
    _require(((identity >= 0) & (identity <= 1)).all((-1, -2)), identity, "identity numbers lie in 0 to 1")
    for name, angle in (("camera", scenes.camera.elevation), ("lamp", np.asarray(scenes.light)[..., 1])):
        degrees = np.degrees(np.asarray(angle))
        _require((degrees >= 2) & (degrees <= 90.001), degrees, f"the {name} stands 2 to 90 degrees above the ground")
    _require((far >= 3) & (far <= 40), far, "the camera stands 3 to 40 units from its target")
