"""Scenes to pictures by sphere tracing: toys, table, soft shadows, matte and shiny surfaces, anti-aliased.

R rays of a picture, each coordinate an array of its own ([R]), so that the compiler keeps whole formulas in registers.
A ray starts at the nearest sphere that bounds a toy and steps by the distance to the nearest surface; the table is a
plane and is met in closed form. Normals are finite differences of the distance at the corners of a tetrahedron (its
derivative does not exist at edges). Shadows are as soft as the lamp is wide: the narrowest cone that the ray to the
lamp clears.

Sources: J. C. Hart, "Sphere tracing" (1996), section 2; B. T. Phong, "Illumination for computer generated pictures"
(1975), with the half vector of J. F. Blinn (1977).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.toybox import solids
from ldm.toybox.camera import origin, picture_rays
from ldm.toybox.scene import HEAD, RADIUS, SLOTS, Scene

MARCH, SHADOW = 24, 10  # steps
FAR = 60.0
CLOSE = 0.002  # of the distance travelled: near enough to be a hit
LAMP = 7.0  # its hardness: one over the tangent of the angle under which it is seen

GROUND = np.array(  # linear light, by ground
    [
        [0.52, 0.52, 0.53],
        [0.66, 0.56, 0.42],
        [0.66, 0.46, 0.46],
        [0.46, 0.60, 0.47],
        [0.42, 0.54, 0.66],
        [0.27, 0.30, 0.35],
    ],
    np.float32,
)
PAINT = 0.9  # of the white of eyes


class Hit(NamedTuple):
    """What each ray meets. Every field is [R]."""

    t: Array  # distance travelled
    x: Array
    y: Array
    z: Array
    toy: Array  # bool: a toy, else the table or nothing
    table: Array  # bool
    part: Array  # int32, the nearest part


def entry(spheres: tuple, o: Array, d: tuple) -> Array:
    """Where rays from ``o`` (3 numbers or arrays) along ``d`` first enter one of the spheres, or FAR. [R]."""
    t = jnp.full_like(d[0], FAR)
    for i in range(SLOTS):
        px, py, pz = (o[axis] - spheres[axis][i] for axis in range(3))
        b = px * d[0] + py * d[1] + pz * d[2]
        inside = b * b - (px * px + py * py + pz * pz - spheres[3][i] ** 2)
        near = jnp.maximum(-b - jnp.sqrt(jnp.maximum(inside, 0.0)), 0.0)
        meets = (inside > 0) & (b - jnp.sqrt(jnp.maximum(inside, 0.0)) < 0) & (spheres[3][i] > 0)
        t = jnp.where(meets, jnp.minimum(t, near), t)
    return t


def trace(scene: Scene, every: solids.Part, d: tuple) -> Hit:
    """Follows rays from the camera along the unit directions ``d`` (x, y, z, each [R])."""
    o = origin(scene.camera)
    below = jnp.where(d[1] < -1e-4, -o[1] / jnp.minimum(d[1], -1e-4), FAR)  # where the table is

    def step(_, t):
        return jnp.minimum(t + solids.nearest(every, *(o[i] + t * d[i] for i in range(3))), FAR)

    t = jax.lax.fori_loop(0, MARCH, step, entry(solids.bounds(scene), o, d))
    x, y, z = (o[i] + t * d[i] for i in range(3))
    gaps = solids.distances(every, x, y, z)
    gap, part = gaps[0], jnp.zeros(t.shape, jnp.int32)
    for i in range(1, solids.PARTS):
        part = jnp.where(gaps[i] < gap, i, part)
        gap = jnp.minimum(gap, gaps[i])
    toy = (gap < CLOSE * t) & (t < below) & (t < FAR)
    table = ~toy & (below < FAR)
    t = jnp.where(toy, t, below)
    return Hit(t, *(o[i] + t * d[i] for i in range(3)), toy, table, part)


def normals(every: solids.Part, hit: Hit) -> tuple[Array, Array, Array]:
    """Unit normals (x, y, z, each [R]) where rays meet something; the table's is straight up."""
    h = 0.004
    n = [jnp.zeros_like(hit.x) for _ in range(3)]
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        gap = solids.nearest(every, *(p + h * c for p, c in zip(hit[1:4], corner, strict=True)))
        n = [value + c * gap for value, c in zip(n, corner, strict=True)]
    norm = jax.lax.rsqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-12)
    return tuple(jnp.where(hit.toy, value * norm, up) for value, up in zip(n, (0.0, 1.0, 0.0), strict=True))


def lit(scene: Scene, every: solids.Part, hit: Hit, n: tuple, lamp: tuple) -> Array:
    """How much of the lamp is seen from where each ray ends, in [0, 1]. [R]."""
    o = tuple(p + 0.02 * m for p, m in zip(hit[1:4], n, strict=True))
    x, y, z, r = solids.bounds(scene)
    d = tuple(jnp.full_like(hit.x, v) for v in lamp)
    start = entry((x, y, z, 1.25 * r), o, d)

    def step(_, state):
        t, clear = state
        gap = solids.nearest(every, *(o[i] + t * d[i] for i in range(3)))
        clear = jnp.minimum(clear, LAMP * gap / jnp.maximum(t, 1e-3))
        return jnp.minimum(t + jnp.clip(gap, 0.03, 1.0), FAR), clear

    _, clear = jax.lax.fori_loop(0, SHADOW, step, (jnp.maximum(start, 0.02), jnp.ones_like(start)))
    clear = jnp.clip(clear, 0.0, 1.0)
    return clear * clear * (3 - 2 * clear)


def contact(scene: Scene, hit: Hit, n: tuple) -> Array:
    """How much of the sky is left open by the toys, each taken for a sphere, in [0, 1]. [R]."""
    x, y, z, r = solids.bounds(scene)
    open_ = jnp.ones_like(hit.x)
    for i in range(SLOTS):
        r_in = 0.8 * r[i]
        dx, dy, dz = x[i] - hit.x, y[i] - hit.y, z[i] - hit.z
        far2 = dx * dx + dy * dy + dz * dz + 1e-6
        facing = (n[0] * dx + n[1] * dy + n[2] * dz) * jax.lax.rsqrt(far2)
        own = hit.toy & (hit.part // solids.PER_TOY == i)
        open_ *= jnp.where(own, 1.0, 1 - jnp.clip(facing, 0, 1) * jnp.minimum(r_in * r_in / far2, 0.9))
    return open_


def painted(scene: Scene, every: solids.Part, hit: Hit) -> tuple[list[Array], Array]:
    """The surface's colour (red, green, blue, linear light, each [R]) and how shiny it is, [R]."""
    ground = jnp.asarray(GROUND)[scene.ground]
    colour = [jnp.full_like(hit.x, ground[c]) for c in range(3)]
    for i in range(solids.PARTS):
        here = hit.toy & (hit.part == i)
        colour = [jnp.where(here, v[i], c) for v, c in zip((every.red, every.green, every.blue), colour, strict=True)]
    shiny = jnp.zeros_like(hit.x)
    for i in range(SLOTS):
        own = hit.toy & (hit.part // solids.PER_TOY == i)
        shiny = jnp.where(own, jnp.asarray(scene.material)[i].astype(jnp.float32), shiny)
        colour = _faced(scene, i, hit, own & (hit.part % solids.PER_TOY == 0) & (scene.kind[i] == HEAD), colour)
    return colour, shiny


def _faced(scene: Scene, i: int, hit: Hit, skull: Array, colour: list[Array]) -> list[Array]:
    """Eyes and mouth on the front of a head."""
    who = solids.face(jnp.asarray(scene.identity)[i])
    scale = jnp.asarray(RADIUS)[scene.size[i]]
    dx, dz = hit.x - scene.position[i, 0], hit.z - scene.position[i, 1]
    cos, sin = jnp.cos(scene.yaw[i]), jnp.sin(scene.yaw[i])
    x, y, z = (dx * cos - dz * sin) / scale, hit.y / scale, (dx * sin + dz * cos) / scale
    front = skull & (z > 0)
    from_eye = jnp.sqrt((jnp.abs(x) - who.eye_x) ** 2 + (y - who.eye_y) ** 2 + 1e-12)
    curve = who.mouth_y + who.smile * ((x / who.mouth) ** 2 - 0.5)
    mouth = (jnp.abs(x) < who.mouth) & (jnp.abs(y - curve) < 0.055)
    eye = solids.hue(who.eye_hue)
    for where, paint in (
        (from_eye < who.eye, (PAINT, PAINT, PAINT)),
        (from_eye < 0.62 * who.eye, 0.35 * eye),
        (from_eye < 0.34 * who.eye, (0.01, 0.01, 0.01)),
        (mouth, (0.03, 0.004, 0.006)),
    ):
        colour = [jnp.where(front & where, p, c) for p, c in zip(paint, colour, strict=True)]
    return colour


def shade(scene: Scene, every: solids.Part, d: tuple) -> list[Array]:
    """The light that comes back along rays: red, green, blue, linear, each [R]."""
    hit = trace(scene, every, d)
    n = normals(every, hit)
    ca, ce = jnp.cos(scene.light[0]), jnp.cos(scene.light[1])
    lamp = (jnp.sin(scene.light[0]) * ce, jnp.sin(scene.light[1]), ca * ce)
    towards = sum(a * b for a, b in zip(n, lamp, strict=True))
    sun = jnp.maximum(towards, 0.0) * lit(scene, every, hit, n, lamp)
    sky = contact(scene, hit, n)
    facing = -sum(a * b for a, b in zip(n, d, strict=True))
    mirror = [b + 2 * facing * a for a, b in zip(n, d, strict=True)]
    glint = jnp.maximum(sum(a * b for a, b in zip(mirror, lamp, strict=True)), 0.0) * (sun > 0)
    rim = jnp.clip(1 - facing, 0.0, 1.0) ** 3
    colour, shiny = painted(scene, every, hit)
    ground = jnp.asarray(GROUND)[scene.ground]
    air = 1 - jnp.exp(-((jnp.minimum(hit.t, FAR) / 34.0) ** 4))  # the table's far end fades into the wall
    out = []
    for c in range(3):
        bounce = 0.16 + 0.22 * (0.5 + 0.5 * n[1]) + 0.10 * ground[c] * (0.5 - 0.5 * n[1])
        light = colour[c] * (0.95 * sun + 1.15 * bounce * sky)
        room = jnp.clip(0.2 + 1.5 * mirror[1], 0.0, 1.0) + ground[c] * jnp.clip(-1.6 * mirror[1], 0.0, 1.0)
        gloss = 1.1 * glint**20 + 0.22 * glint**4 + (0.14 + 0.5 * rim) * room * (0.5 + 0.7 * colour[c])
        light = light + shiny * (gloss - 0.25 * light)
        wall = 0.75 * ground[c] + 0.10
        out.append(jnp.where(hit.toy, light, (1 - air) * light + air * wall))
    return out


def picture(scene: Scene, height: int, width: int, samples: int) -> Array:
    """One scene -> [height, width, 3] float32 in [0, 1] (sRGB), ``samples`` x ``samples`` rays for each pixel."""
    d = picture_rays(scene.camera, height * samples, width * samples)
    seen = jnp.stack(shade(scene, solids.parts(scene), d))
    seen = seen.reshape(3, height, samples, width, samples)
    return jnp.moveaxis(encode(seen).mean((2, 4)), 0, -1)


def encode(light: Any) -> Any:
    """Linear light to sRGB's display values in [0, 1]."""
    light = jnp.clip(light, 0.0, 1.0)
    return jnp.where(light < 0.0031308, 12.92 * light, 1.055 * jnp.maximum(light, 1e-6) ** (1 / 2.4) - 0.055)
