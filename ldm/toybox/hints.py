"""The truth of a scene as the pictures that ControlNets are told with: depth, normals, edges, segmentation, keypoints.

Shapes: B any leading axes, H W pixels, N slots, K keypoints. Values are in [0, 1]. Pure functions of a `Truth`, to be
called under jit or not.

Sources: "Adding Conditional Control to Text-to-Image Diffusion Models" (arXiv:2302.05543), whose conditions they are
among; "Towards Robust Monocular Depth Estimation" (arXiv:1907.01341, MiDaS) for inverse depth up to scale and shift.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from ldm.toybox.truth import Truth

PALETTE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)  # table and wall, then slot by slot
POINTS = np.array([[0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1]], np.float32)  # colours, as truth.KEYPOINTS
BONES = ((0, 2), (1, 2), (2, 3), (2, 4), (3, 4))  # lines between keypoints: eyes to nose, nose to mouth, mouth
BONE = 0.6  # a line's brightness
DOT, WIRE = 1 / 80, 1 / 160  # radius of a dot, half a line's width: shares of the picture's height


def hint(name: str, truth: Truth) -> Array:
    """The picture of a condition: [B, H, W, 3] float32 in [0, 1]. Raises ValueError for a name not in ``HINTS``."""
    if name not in PAINTERS:
        raise ValueError(f"the toybox has no hint {name!r} (known: {', '.join(HINTS)})")
    return PAINTERS[name](truth)


def depth(truth: Truth) -> Array:
    """Inverse depth, stretched over each picture: its nearest point is white, its farthest black, as MiDaS is shown."""
    near = 1 / jnp.asarray(truth.depth)
    least, most = (f(near, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    return grey((near - least) / jnp.maximum(most - least, 1e-6))


def normals(truth: Truth) -> Array:
    """(n + 1) / 2: right is red, up is green, towards the camera is blue; the wall, which has none, is grey."""
    return jnp.clip((jnp.asarray(truth.normals) + 1) / 2, 0, 1)


def edges(truth: Truth) -> Array:
    """Outlines and creases, white on black."""
    return grey(jnp.asarray(truth.edges, jnp.float32))


def segmentation(truth: Truth) -> Array:
    """Each slot in its colour of ``PALETTE``: which toy a pixel belongs to, not of which kind it is."""
    return jnp.asarray(PALETTE)[truth.segmentation]


def keypoints(truth: Truth) -> Array:
    """Heads' keypoints as dots, each in its colour, and lines between them, on black; only what is seen is drawn."""
    height, width = truth.segmentation.shape[-2:]
    places = jnp.asarray(truth.keypoints) * np.array([width, height], np.float32)  # [B, N, K, 2] pixels
    seen = jnp.asarray(truth.keypoints_seen)
    first, second = (np.array(ends) for ends in zip(*BONES, strict=True))
    colours = BONE * (POINTS[first] + POINTS[second]) / 2
    a, b = places[..., first, :], places[..., second, :]
    lines = strokes(a, b, seen[..., first] & seen[..., second], WIRE, height, width)
    dots = strokes(places, places, seen, DOT, height, width)
    return over(over(jnp.zeros((*lines.shape[:-4], height, width, 3)), lines, colours), dots, POINTS)


def grey(values: Array) -> Array:
    """[B, H, W] -> [B, H, W, 3]."""
    return jnp.repeat(values[..., None], 3, axis=-1)


def strokes(a: Array, b: Array, drawn: Array, radius: float, height: int, width: int) -> Array:
    """How much of each pixel lies on the lines from ``a`` to ``b`` [B, N, K, 2] (pixels): [B, N, K, H, W] in [0, 1].

    ``radius`` is a share of the height, and at least half a pixel. What is not ``drawn`` [B, N, K] is nowhere.
    """
    x, y = jnp.arange(width) + 0.5, (jnp.arange(height) + 0.5)[:, None]
    (ax, ay), (bx, by) = (jnp.moveaxis(ends[..., None, None, :], -1, 0) for ends in (a, b))
    dx, dy = bx - ax, by - ay
    share = jnp.clip(((x - ax) * dx + (y - ay) * dy) / jnp.maximum(dx * dx + dy * dy, 1e-6), 0, 1)
    distance = jnp.hypot(x - ax - share * dx, y - ay - share * dy)
    cover = jnp.clip(max(radius * height, 0.5) + 0.5 - distance, 0, 1)
    return jnp.where(drawn[..., None, None], cover, 0)


def over(picture: Array, cover: Array, colours: np.ndarray) -> Array:
    """Strokes [B, N, K, H, W] in their ``colours`` [K, 3], one after the other, on a picture [B, H, W, 3]."""
    for slot in range(cover.shape[-4]):
        for k, colour in enumerate(colours):
            share = cover[..., slot, k, :, :, None]
            picture = (1 - share) * picture + share * colour
    return picture


PAINTERS = {
    "depth": depth,
    "normals": normals,
    "edges": edges,
    "segmentation": segmentation,
    "keypoints": keypoints,
}
HINTS = tuple(PAINTERS)
