"""The toybox's solids: signed distances, all of them from one formula.

P = 9 parts, three for each slot of a scene: most solids use one, a head (skull, nose, hat) and a handset (bar, two
cups) three. A part is everything within ``r`` of a core, so that every edge is rounded, and the core is either a box
or a solid of revolution. In the part's own coordinates, with ``rho`` the distance from its vertical axis,

    box:         q = (|x|, |z|, |y|) - (b1, b2, b3)                     sphere: b = 0
    revolution:  q = (cos a · |rho - ring| + sin a · y - b1, 0, h - b3)     h = |y|; a cone's is -y: it has no lid
    distance  =  |max(q, 0)| - r                                        torus: b = 0, ring > 0; cylinder: ring = 0

The formula is exact outside the core but for the cone, where it never exceeds the distance: rays cannot step through.
Source of distance fields: J. C. Hart, "Sphere tracing" (The Visual Computer 12, 1996).
"""

import colorsys
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.toybox.scene import HEAD, KINDS, RADIUS, SLOTS, Scene

PER_TOY = 3
PARTS = SLOTS * PER_TOY
NOWHERE = -1e3  # the rounding of a part that is not there: its surface is a thousand units behind itself

PALETTE = np.array(  # linear light, by colour
    [
        [0.72, 0.035, 0.03],
        [0.86, 0.24, 0.02],
        [0.86, 0.62, 0.03],
        [0.05, 0.37, 0.06],
        [0.03, 0.53, 0.58],
        [0.03, 0.11, 0.66],
        [0.27, 0.05, 0.47],
        [0.17, 0.17, 0.17],
    ],
    np.float32,
)


class Part(NamedTuple):
    """Shapes in toy units; every field is [P]."""

    x: Any  # centre in the world
    y: Any
    z: Any
    cos: Any  # of the yaw
    sin: Any
    box: Any  # 1 a box, 0 a solid of revolution
    ring: Any
    slope: Any  # sine of the angle a
    b1: Any
    b2: Any
    b3: Any
    lid: Any  # 1 closed above, 0 a cone
    r: Any
    red: Any
    green: Any
    blue: Any


class Local(NamedTuple):
    """A part of a toy of radius 1 that stands at the origin and faces +z."""

    x: Any = 0.0
    y: Any = 0.0
    z: Any = 0.0
    box: Any = 1.0
    ring: Any = 0.0
    slope: Any = 0.0
    b1: Any = 0.0
    b2: Any = 0.0
    b3: Any = 0.0
    lid: Any = 1.0
    r: Any = NOWHERE


def _cone(y: float, base: float, height: float, r: float) -> Local:
    slope = base / float(np.hypot(base, height))
    return Local(y=y + r, box=0.0, slope=slope, b1=(base - r) * float(np.sqrt(1 - slope**2)), lid=0.0, r=r)


ABSENT = Local()
SHAPES: dict[str, tuple[Local, ...]] = {
    "sphere": (Local(y=0.92, r=0.92),),
    "cube": (Local(y=0.70, b1=0.63, b2=0.63, b3=0.63, r=0.07),),
    "cylinder": (Local(y=0.82, box=0.0, b1=0.66, b3=0.75, r=0.07),),
    "cone": (_cone(0.0, 0.92, 1.75, 0.05),),
    "torus": (Local(y=0.31, box=0.0, ring=0.66, r=0.31),),
    "head": (),  # depends on who it is: see head
    "handset": (
        Local(y=0.66, b1=0.72, b2=0.1, b3=0.04, r=0.12),
        Local(x=-0.66, y=0.27, box=0.0, b1=0.18, b3=0.2, r=0.08),
        Local(x=0.66, y=0.27, box=0.0, b1=0.18, b3=0.2, r=0.08),
    ),
}
# A sphere around each solid of radius 1: the height of its centre, its radius. Rays begin at it.
BOUNDS = np.array(
    [[0.92, 0.93], [0.70, 1.16], [0.82, 1.10], [0.72, 1.20], [0.31, 0.98], [0.92, 1.26], [0.42, 1.02]], np.float32
)
FACE_DEPTH, FACE_ROUND = 0.6, 0.4
NOSE_DEPTH = FACE_DEPTH + 0.02


class Face(NamedTuple):
    """Where a head's features are, in the coordinates of a head of radius 1, and what colour. Fields are [...]."""

    width: Any  # half of the skull
    height: Any
    eye_x: Any
    eye_y: Any
    eye: Any  # radius
    nose: Any  # radius
    nose_y: Any
    mouth: Any  # half width
    mouth_y: Any
    smile: Any  # how far its corners lie above its middle
    hat: Any  # 0 none, 1 cone, 2 cylinder, 3 cap
    hat_hue: Any
    eye_hue: Any


def face(identity: Any) -> Face:
    """The features that an identity [..., I] means."""
    width, height, spacing, eye, nose, mouth, smile, hat, hat_hue, eye_hue = jnp.moveaxis(jnp.asarray(identity), -1, 0)
    height = 0.54 + 0.16 * height
    return Face(
        width=0.54 + 0.18 * width,
        height=height,
        eye_x=0.17 + 0.11 * spacing,
        eye_y=1.24 * height,
        eye=0.09 + 0.06 * eye,
        nose=0.08 + 0.07 * nose,
        nose_y=0.92 * height,
        mouth=0.16 + 0.16 * mouth,
        mouth_y=0.5 * height,
        smile=0.16 * (smile - 0.35),
        hat=jnp.clip(jnp.floor(4 * hat), 0, 3),
        hat_hue=hat_hue,
        eye_hue=eye_hue,
    )


def surface_depth(who: Face, x: Any, y: Any) -> Any:
    """The z of the skull's front at (x, y), for points of a head of radius 1."""
    across = jnp.maximum(jnp.abs(x) - (who.width - FACE_ROUND), 0)
    along = jnp.maximum(jnp.abs(y - who.height) - (who.height - FACE_ROUND), 0)
    return FACE_DEPTH - FACE_ROUND + jnp.sqrt(jnp.maximum(FACE_ROUND**2 - across**2 - along**2, 0))


def head(identity: Any) -> tuple[Local, Local, Local]:
    """Skull, nose and hat of one identity [I]."""
    who = face(identity)
    r, top = FACE_ROUND, 2 * who.height
    skull = Local(y=who.height, b1=who.width - r, b2=FACE_DEPTH - r, b3=who.height - r, r=r)
    nose = Local(y=who.nose_y, z=NOSE_DEPTH, r=who.nose)
    hats = (
        ABSENT,
        _cone(0.0, 0.42, 0.8, 0.04)._replace(y=top - 0.06),
        Local(y=top + 0.16, box=0.0, b1=0.34, b3=0.16, r=0.06),
        Local(y=top - 0.24, b1=who.width - 0.34, b2=0.26, r=0.36),
    )
    hat = Local(*(jnp.select([who.hat == i for i in range(4)], values) for values in zip(*hats, strict=True)))
    return skull, nose, hat


def _locals(kind: Array, identity: Array) -> Local:
    """The three parts of one toy of radius 1: fields [3]."""
    table = [[*SHAPES[name], *[ABSENT] * PER_TOY][:PER_TOY] for name in KINDS]
    fixed = jnp.asarray(np.array(table, np.float32))  # [kinds, 3, fields]
    own = jnp.stack([jnp.stack([jnp.asarray(v, jnp.float32) for v in part]) for part in head(identity)])
    chosen = jnp.where(kind == HEAD, own, fixed[jnp.maximum(kind, 0)])
    return Local(*jnp.moveaxis(jnp.where(kind < 0, jnp.array(ABSENT, jnp.float32), chosen), -1, 0))


def _colours(colour: Array, kind: Array, identity: Array) -> Array:
    """The colour of each part of a toy, [3, 3]: noses are darker than their face, hats have their own."""
    base, who = jnp.asarray(PALETTE)[colour], face(identity)
    special = jnp.stack([base, 0.55 * base, hue(who.hat_hue)])
    return jnp.where(kind == HEAD, special, base)


def hue(h: Any) -> Array:
    """A strong colour of hue ``h`` in [0, 1], linear light [3]; for hats and eyes."""
    wheel = np.array([np.array(colorsys.hsv_to_rgb(i / 12, 0.85, 0.9)) ** 2.2 for i in range(13)], np.float32)
    return jnp.stack([jnp.interp(h, np.linspace(0, 1, 13, dtype=np.float32), wheel[:, c]) for c in range(3)])


def parts(scene: Scene) -> Part:
    """Every part of one scene: fields [P], in the order of its slots."""
    local = jax.vmap(_locals)(jnp.asarray(scene.kind), jnp.asarray(scene.identity))  # fields [N, 3]
    colours = jax.vmap(_colours)(scene.colour, scene.kind, scene.identity)  # [N, 3, 3]
    scale = jnp.asarray(RADIUS)[scene.size][:, None]
    cos, sin = jnp.cos(scene.yaw)[:, None], jnp.sin(scene.yaw)[:, None]
    ones = jnp.ones((SLOTS, PER_TOY))
    lengths = {name: getattr(local, name) * scale for name in ("ring", "b1", "b2", "b3", "r")}
    x, y, z = standing(scene, local.x, local.y, local.z)
    made = Part(
        x=x,
        y=y,
        z=z,
        cos=cos * ones,
        sin=sin * ones,
        box=local.box,
        slope=local.slope,
        lid=local.lid,
        red=colours[..., 0],
        green=colours[..., 1],
        blue=colours[..., 2],
        **lengths,
    )
    return Part(*(jnp.reshape(values, (PARTS,)) for values in made))


def standing(scene: Scene, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """Points [N, any] of toys of radius 1 that stand at the origin and face +z: where they are in the scene."""
    cos, sin = jnp.cos(scene.yaw)[:, None], jnp.sin(scene.yaw)[:, None]
    scale = jnp.asarray(RADIUS)[scene.size][:, None]
    return (
        scene.position[:, :1] + (x * cos + z * sin) * scale,
        y * scale,
        scene.position[:, 1:] + (z * cos - x * sin) * scale,
    )


def bounds(scene: Scene) -> tuple[Array, Array, Array, Array]:
    """A sphere around each toy: centre x, y, z and radius, each [N]; an empty slot's radius is 0."""
    kind, scale = jnp.asarray(scene.kind), jnp.asarray(RADIUS)[scene.size]
    table = jnp.asarray(BOUNDS)[jnp.maximum(kind, 0)] * scale[:, None]
    return scene.position[:, 0], table[:, 0], scene.position[:, 1], jnp.where(kind < 0, 0.0, table[:, 1])


def distance(part: Part, x: Array, y: Array, z: Array) -> Array:
    """Signed distance from points to one part (its fields scalars); the points' coordinates have any one shape."""
    dx, dy, dz = x - part.x, y - part.y, z - part.z
    lx, lz = dx * part.cos - dz * part.sin, dx * part.sin + dz * part.cos
    rho = jnp.sqrt(lx * lx + lz * lz + 1e-12)
    steep = jnp.sqrt(1 - part.slope * part.slope)
    round_ = part.box < 0.5
    q1 = jnp.where(round_, steep * jnp.abs(rho - part.ring) + part.slope * dy, jnp.abs(lx)) - part.b1
    q2 = jnp.where(round_, 0.0, jnp.abs(lz) - part.b2)
    q3 = jnp.where(part.lid < 0.5, -dy, jnp.abs(dy)) - part.b3
    q1, q2, q3 = (jnp.maximum(q, 0.0) for q in (q1, q2, q3))
    return jnp.sqrt(q1 * q1 + q2 * q2 + q3 * q3 + 1e-12) - part.r


def distances(every: Part, x: Array, y: Array, z: Array) -> list[Array]:
    """Signed distances from points to each of all parts."""
    return [distance(Part(*(v[i] for v in every)), x, y, z) for i in range(PARTS)]


def nearest(every: Part, x: Array, y: Array, z: Array) -> Array:
    """Signed distance from points to the nearest of all parts."""
    return functools.reduce(jnp.minimum, distances(every, x, y, z))
