"""The toybox's camera: an orbit around a point, and what it makes of points in space.

World: x, y (up), z in toy units; the ground is y = 0. Camera: x right, y up, z forward, the depth. Pictures: (column,
row) as fractions of width and height, (0, 0) the upper left corner. Works on NumPy and on JAX arrays, under vmap too.

An azimuth of 0 looks from +z; as it grows the camera moves towards +x. The right-hand axis depends on the azimuth
alone, so an elevation of 90 degrees, straight down, is no special case.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FIELD_OF_VIEW = np.float32(np.radians(30.0))  # of the picture's height


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Camera:
    """Where a picture is taken from. Every field may carry leading batch axes.

    azimuth, elevation [...] radians; distance [...] to ``target`` [..., 3], the point that it looks at.
    """

    azimuth: Any
    elevation: Any
    distance: Any
    target: Any


def _numpy_for(camera: Camera, *others: Any) -> Any:
    """The module to compute with: NumPy as long as nothing is an array of JAX, which costs far more a call."""
    return jnp if any(isinstance(value, jax.Array) for value in jax.tree.leaves((camera, others))) else np


def axes(camera: Camera) -> Any:
    """The camera's right, up and forward directions in the world, as the rows of [..., 3, 3]."""
    xp = _numpy_for(camera)
    ca, sa = xp.cos(camera.azimuth), xp.sin(camera.azimuth)
    ce, se = xp.cos(camera.elevation), xp.sin(camera.elevation)
    right = xp.stack([ca, xp.zeros_like(ca), -sa], -1)
    up = xp.stack([-se * sa, ce, -se * ca], -1)
    forward = xp.stack([-ce * sa, -se, -ce * ca], -1)
    return xp.stack([right, up, forward], -2)


def origin(camera: Camera) -> Any:
    """Where the camera stands, [..., 3]."""
    return camera.target - axes(camera)[..., 2, :] * _numpy_for(camera).asarray(camera.distance)[..., None]


def to_camera(camera: Camera, points: Any) -> Any:
    """World points [..., N, 3] in the camera's own coordinates: right, up, depth."""
    xp = _numpy_for(camera, points)
    return xp.einsum("...ij,...nj->...ni", axes(camera), points - origin(camera)[..., None, :])


def to_world(camera: Camera, points: Any) -> Any:
    """The inverse of :func:`to_camera`."""
    xp = _numpy_for(camera, points)
    return xp.einsum("...ij,...ni->...nj", axes(camera), points) + origin(camera)[..., None, :]


def project(camera: Camera, points: Any, aspect: float = 1.0) -> tuple[Any, Any]:
    """World points [..., N, 3] -> (positions in the picture [..., N, 2], depths [..., N]).

    ``aspect`` is width / height. Points at or behind the camera's plane have depth <= 0, and no meaningful position.
    """
    xp, seen = _numpy_for(camera, points), to_camera(camera, points)
    scale = 0.5 / (np.tan(FIELD_OF_VIEW / 2) * xp.maximum(seen[..., 2], 1e-6))
    where = xp.stack([0.5 + seen[..., 0] * scale / aspect, 0.5 - seen[..., 1] * scale], -1)
    return where, seen[..., 2]


def rays(camera: Camera, rows: Any, columns: Any, aspect: float = 1.0) -> tuple[Any, Any, Any]:
    """Unit directions (x, y, z, each of the shape of ``rows``) through positions of the picture.

    ``rows`` and ``columns`` are fractions of height and width. For one camera, without batch axes.
    """
    reach = 2 * np.tan(FIELD_OF_VIEW / 2)
    right, up, forward = axes(camera)
    u, v = (columns - 0.5) * reach * aspect, (0.5 - rows) * reach
    x, y, z = (right[i] * u + up[i] * v + forward[i] for i in range(3))
    norm = jax.lax.rsqrt(x * x + y * y + z * z)
    return x * norm, y * norm, z * norm


def picture_rays(camera: Camera, height: int, width: int) -> tuple[Any, Any, Any]:
    """:func:`rays` through the middles of all pixels of a picture, row after row: x, y, z, each [height * width]."""
    rows, columns = jnp.meshgrid((jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width, indexing="ij")
    return rays(camera, rows.reshape(-1), columns.reshape(-1), width / height)


def relative_pose(first: Camera, second: Camera) -> tuple[Any, Any]:
    """R [..., 3, 3] and t [..., 3] that take the first camera's coordinates to the second's: ``R p + t``."""
    xp = _numpy_for(first, second)
    turn = xp.einsum("...ij,...kj->...ik", axes(second), axes(first))
    shift = xp.einsum("...ij,...j->...i", axes(second), origin(first) - origin(second))
    return turn, shift
