"""Drawing on several devices of one machine: every device has the whole model and its own part of the pictures.

Each runs the program of one device on its part (``shard_map``), so nothing is communicated, kernels that the compiler
could not split work as they are, and a picture's noise, which follows from its number alone, is the same to the bit.

Shapes: N pictures over D devices.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm.bundle import Bundle

AXIS = "pictures"
WHOLE, CUT, CUT_SECOND = P(), P(AXIS), P(None, AXIS)  # on every device in full; cut along the first or second axis


def on_devices(bundle: Bundle, count: int) -> Bundle:
    """The bundle with its parameters on each of ``count`` devices of this machine; ``generate`` then uses them all.

    Raises ValueError where there are not so many.
    """
    mesh = mesh_of(count)
    return replace(bundle, params=on_each(mesh, dict(bundle.params)), mesh=mesh)


def on_each(mesh: Mesh | None, arrays: Any) -> Any:
    """A pytree of arrays on every device of a mesh; as it is without one."""
    return arrays if mesh is None else jax.device_put(arrays, NamedSharding(mesh, WHOLE))


def mesh_of(count: int) -> Mesh:
    """The first ``count`` devices of this machine in a row. Raises ValueError where there are not so many."""
    local = jax.local_devices()
    if not 1 <= count <= len(local):
        raise ValueError(f"{count} devices were asked for, but JAX sees {len(local)} here ({local[0].platform})")
    return Mesh(np.asarray(local[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def check_count(mesh: Mesh | None, count: int) -> None:
    """Raises ValueError unless ``count`` pictures can be cut over a mesh."""
    if mesh is not None and count % mesh.size:
        near = max(mesh.size, count - count % mesh.size)
        raise ValueError(f"{count} pictures cannot be shared out evenly by {mesh.size} devices; try {near}")


def over(mesh: Mesh | None, function: Callable, given: Any, made: Any) -> Callable:
    """``function`` on every device's part; itself without a mesh. given, made: how arguments and results are cut."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)
