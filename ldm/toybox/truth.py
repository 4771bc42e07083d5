"""What is true of a picture of a scene, from the scene itself: masks, boxes, depth, normals, edges, keypoints.

H W pixels, N slots, K = 5 keypoints. Maps are taken at the middle of each pixel, with the renderer's own rays; the
maps of an object therefore end where its picture does, to the pixel.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.toybox import solids
from ldm.toybox.camera import axes, origin, picture_rays, project, to_camera
from ldm.toybox.render import FAR, normals, trace
from ldm.toybox.scene import HEAD, SLOTS, Scene

KEYPOINTS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")  # left: of who faces it
FACING = np.array([[1.0], [1.0], [-1.0]], np.float32)  # from the camera's axes to those of normals
CREASE, STEP = 0.8, 0.25  # cosine between neighbouring normals, toy units between neighbouring depths: then an edge


class Truth(NamedTuple):
    """Of one picture, or with leading axes of a batch. Positions are (column, row) fractions, (0, 0) upper left."""

    segmentation: Array  # [H, W] int32: 0 table or wall, i + 1 the toy of slot i
    depth: Array  # [H, W] float32: toy units along the camera's axis; FAR where there is only wall
    normals: Array  # [H, W, 3] float32: unit, right, up and towards the camera; 0 for the wall
    edges: Array  # [H, W] bool: outlines and creases
    boxes: Array  # [N, 4] float32: x0, y0, x1, y1 of the visible part; 0 for what is not seen
    area: Array  # [N] float32: share of the picture that each toy covers
    keypoints: Array  # [N, K, 2] float32: of heads; 0 for other toys
    keypoints_3d: Array  # [N, K, 3] float32: the same in the camera's coordinates, toy units
    keypoints_seen: Array  # [N, K] bool: in the frame and not hidden


def truth(scene: Scene, height: int, width: int) -> Truth:
    """All truth of one scene's picture."""
    every = solids.parts(scene)
    d = picture_rays(scene.camera, height, width)
    hit = trace(scene, every, d)
    n = jnp.stack(normals(every, hit), -1)
    met = hit.toy | hit.table
    frame = axes(scene.camera)
    seen = jnp.where(met[:, None], n @ (frame * FACING).T, 0.0).reshape(height, width, 3)
    along = sum(a * b for a, b in zip(d, frame[2], strict=True))
    depth = jnp.where(met, jnp.minimum(hit.t * along, FAR), FAR).reshape(height, width)
    segmentation = jnp.where(hit.toy, hit.part // solids.PER_TOY + 1, 0).reshape(height, width)
    part = jnp.where(hit.toy, hit.part, -1).reshape(height, width)
    boxes, area = extents(segmentation)
    return Truth(
        segmentation, depth, seen, edges(part, depth, seen), boxes, area, *keypoints(scene, every, width / height)
    )


def edges(part: Array, depth: Array, n: Array) -> Array:
    """Where a pixel differs from what is a 64th of the picture to its right or below: part, depth, normal. [H, W] bool.

    That is its neighbour at 64 pixels; lines are as wide, and creases as sharp, at any size.
    """
    found = jnp.zeros(part.shape, bool)
    for axis in (0, 1):
        size = part.shape[axis]
        reach = max(1, round(size / 64))
        other = [jnp.roll(values, -reach, axis) for values in (part, depth, n)]
        toy = (part >= 0) | (other[0] >= 0)  # the table's own depth changes fast near the horizon
        step = (
            (part != other[0]) | (toy & (jnp.abs(depth - other[1]) > STEP)) | (toy & ((n * other[2]).sum(-1) < CREASE))
        )
        inner = jnp.arange(size) < size - reach
        found |= step & (inner[:, None] if axis == 0 else inner)
    return found


def extents(segmentation: Array) -> tuple[Array, Array]:
    """The boxes of the toys' visible pixels [N, 4], pixel borders as fractions, and the shares they cover [N]."""
    masks = segmentation == jnp.arange(1, SLOTS + 1)[:, None, None]  # [N, H, W]
    any_ = masks.any((1, 2))

    def span(lines: Array) -> tuple[Array, Array]:
        size = lines.shape[-1]
        return jnp.argmax(lines, -1) / size, (size - jnp.argmax(lines[:, ::-1], -1)) / size

    (x0, x1), (y0, y1) = span(masks.any(1)), span(masks.any(2))
    return jnp.where(any_[:, None], jnp.stack([x0, y0, x1, y1], -1), 0.0), masks.mean((1, 2))


def face_points(scene: Scene) -> Array:
    """The five keypoints of every slot taken for a head, in the world. [N, K, 3]."""
    who = solids.face(jnp.asarray(scene.identity))
    corner = who.mouth_y + 0.5 * who.smile
    x = jnp.stack([-who.eye_x, who.eye_x, 0 * who.nose, -who.mouth, who.mouth], -1)
    y = jnp.stack([who.eye_y, who.eye_y, who.nose_y, corner, corner], -1)
    z = solids.surface_depth(solids.Face(*(value[:, None] for value in who)), x, y)
    z = z.at[:, 2].set(solids.NOSE_DEPTH + who.nose)  # the tip
    return jnp.stack(solids.standing(scene, x, y, z), -1)


def keypoints(scene: Scene, every: solids.Part, aspect: float) -> tuple[Array, Array, Array]:
    """Positions in the picture [N, K, 2], in the camera's coordinates [N, K, 3], and whether they are seen [N, K]."""
    points = face_points(scene).reshape(-1, 3)
    o = origin(scene.camera)
    away = points - o
    far = jnp.sqrt((away * away).sum(-1))
    hit = trace(scene, every, tuple((away / far[:, None]).T))
    where, _ = project(scene.camera, points, aspect)
    framed = ((where > 0) & (where < 1)).all(-1)
    own = hit.toy & (hit.part // solids.PER_TOY == jnp.repeat(jnp.arange(SLOTS), len(KEYPOINTS)))
    head = jnp.asarray(scene.kind) == HEAD
    shape = (SLOTS, len(KEYPOINTS))
    seen = (framed & own & (jnp.abs(hit.t - far) < 0.05)).reshape(shape) & head[:, None]
    keep = head[:, None, None]
    local = to_camera(scene.camera, points)
    return jnp.where(keep, where.reshape(*shape, 2), 0.0), jnp.where(keep, local.reshape(*shape, 3), 0.0), seen
