"""Training on several devices: how a batch and a state are laid out over a mesh, on one machine or on several.

A mesh has two axes. Every device has its own part of the batch, along both axes; the state (masters, average, moments
of the optimiser) is whole along "data" and cut along "fsdp":

| mesh                            | what it is                                                               |
|---------------------------------|--------------------------------------------------------------------------|
| make_mesh()                     | data parallel: every device holds the whole state                        |
| make_mesh(data=1, fsdp=8)       | fully sharded: every device holds an eighth of every array that has an   |
|                                 | axis that 8 divides                                                      |
| make_mesh(data=4, fsdp=8)       | both: four copies of the state, each spread over eight devices           |

The compiler puts in the communication: gradients are summed over all devices (an all-reduce, or a reduce-scatter to
the device that keeps the part), and weights that are cut are gathered once a step, after they are cast to the dtype of
the loss (a CPU moves float32 all the same). So between steps a device holds 1/fsdp of the state, and within a step one
whole copy of the weights besides.

One machine:
    mesh = make_mesh(data=1, fsdp=8)
    step = make_step(loss, optimiser, seed=0, mesh=mesh)
    state, frozen = shard_state(mesh, start(params, optimiser)), replicate(mesh, frozen)
    state, metrics = step(state, frozen, shard_batch(mesh, batch))

Several: the same program on every machine, begun with ``distributed()``, before anything else touches a device. Each
process reads its own part of the data and gives ``shard_batch`` that part only; the other functions are given the same
values by all. Where the parts are the batch of one process, cut in order, so is the result. By hand, on two machines:
    JAX_COORDINATOR_ADDRESS=first-machine:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 <the command>
    JAX_COORDINATOR_ADDRESS=first-machine:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 <the command>

Sources: GSPMD (arXiv:2105.04663), section 3, for the compiler's part; ZeRO (arXiv:1910.02054), section 5, for cutting
the state.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x fsdp devices, by default all there are; ``data`` -1: as many as are left. Raises ValueError."""
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise ValueError(f"a mesh has 1 or more devices along an axis (data -1: all left), got {data} and {fsdp}")
    data = len(devices) // fsdp if data == -1 else data
    if data * fsdp != len(devices):
        raise ValueError(f"a mesh of {data} x {fsdp} devices does not use the {len(devices)} there are")
    return Mesh(np.asarray(devices).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts. A tree's leaves are arrays, or anything else with a shape.


def whole(mesh: Mesh) -> NamedSharding:
    """The layout of what every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: the first axis is cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The layout of every array of a state: cut along its largest axis that "fsdp" divides, whole if there is none.

    Of equal axes the last is taken: the channels that a kernel makes. The rule looks at shapes only, so an array, its
    gradient, its average and its moments lie alike, and adding them moves nothing.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(np.shape(leaf), mesh.shape["fsdp"])), tree)


def _spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    fits = [(size, axis) for axis, size in enumerate(shape) if size % parts == 0 and size >= parts > 1]
    return PartitionSpec(*[None] * max(fits)[1], "fsdp") if fits else PartitionSpec()


# ---------------------------------------------------------------------------------------------------------------------
# Onto the devices


def shard_state(mesh: Mesh, state: Any) -> Any:
    """A state, laid out by :func:`state_shardings`. Every process gives the same whole arrays."""
    return jax.tree.map(_put, state, state_shardings(mesh, state))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every device needs in full, such as frozen parts. Every process gives the same whole arrays."""
    return jax.tree.map(lambda leaf: _put(leaf, whole(mesh)), tree)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """A batch cut over all devices along its first axis. Every process gives its own rows, all as many.

    Returns the batch of all processes together, in the order of the processes. Raises ValueError if the rows of a
    process are not the same number for each of its devices.
    """
    here = mesh.local_mesh.size
    for leaf in jax.tree.leaves(batch):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % here:
            raise ValueError(f"a batch of shape {np.shape(leaf)} cannot be cut into {here} parts, one for each device")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows(mesh), np.asarray(leaf)), batch)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


# ---------------------------------------------------------------------------------------------------------------------
# Under jit: the same layouts as constraints; without a mesh they do nothing.


def keep_whole(mesh: Mesh | None, tree: Any) -> Any:
    """Asks the compiler for every array in full on every device."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, whole(mesh))


def keep_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Asks the compiler for arrays cut along the first axis."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, rows(mesh))


def keep_state(mesh: Mesh | None, tree: Any) -> Any:
    """Asks the compiler for the layout of :func:`state_shardings`."""
    return tree if mesh is None else lax.with_sharding_constraint(tree, state_shardings(mesh, tree))


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def distributed(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
    """Joins the processes of a run; returns (index of this process, number of processes).

    coordinator   "host:port" of process 0, which all can reach; else from JAX_COORDINATOR_ADDRESS
    processes     how many there are;                            else from JAX_NUM_PROCESSES
    process       which this one is, from 0;                     else from JAX_PROCESS_ID

    With no coordinator named anywhere this is a run of one process, and nothing is joined. Under a cluster's own
    launcher (Slurm, Open MPI, Kubernetes, Cloud TPU), which JAX knows how to ask, "auto" is enough for a coordinator.
    Call it before any other use of JAX. Raises ValueError if one of the three is missing or wrong.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        return 0, 1
    if coordinator == "auto":
        jax.distributed.initialize()
        return jax.process_index(), jax.process_count()
    processes = _number("JAX_NUM_PROCESSES", processes)
    process = _number("JAX_PROCESS_ID", process)
    if not 0 <= process < processes:
        raise ValueError(f"process {process} of {processes}: processes are numbered from 0 to {processes - 1}")
    jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
    return process, processes


def _number(name: str, given: int | None) -> int:
    text = os.environ.get(name, "") if given is None else str(given)
    if not text.isdecimal():
        raise ValueError(f"a run of several processes needs a whole number for {name}, got {text!r}")
    return int(text)
