"""Checkpoints of a training run: written while training goes on, kept only whole, and read back to the last bit.

    checkpoints/step-00000040/arrays/   every array of the state by name, written by orbax
    checkpoints/step-00000040/seal      a CRC-32, then JSON: what else is needed to go on, and length and CRC-32 of
                                        every file

The seal is written last. A folder without one was cut short; a folder whose files do not fit their seal was damaged
later. Both are passed over, with a warning, for the newest that is whole. A checkpoint is a dictionary from names such
as ``params/unet/encoder.conv_in.kernel`` to arrays, so it can be read without the code that wrote it.

Where a run has several processes they all see one folder; process 0 seals and removes.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ldm.files import write_whole

ARRAYS, SEAL = "arrays", "seal"
BLOCK = 1 << 22  # bytes read at a time for a checksum


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path in it: ``{"params/unet/conv_in.kernel": …}``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@contextlib.contextmanager
def checkpoints(folder: Path, keep: int) -> Iterator["Checkpoints"]:
    """Opens the checkpoints in ``folder``; at the end of the ``with``, the last one is whole on disk.

    Raises OSError there if it could not be written, unless another error ends the ``with``.
    """
    options = ocp.AsyncOptions(create_directories_asynchronously=False)  # nothing is under way when a save fails early
    opened = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
    with quiet(), contextlib.closing(opened) as orbax, ThreadPoolExecutor(1, "checkpoint") as worker:
        kept = Checkpoints(folder, keep, orbax, worker)
        try:
            yield kept
        except BaseException:
            with contextlib.suppress(Exception):
                kept.wait()
            raise
        kept.wait()


class Checkpoints:
    """The checkpoints in a folder, of which the newest ``keep`` are kept: see :func:`checkpoints`. For one thread."""

    def __init__(self, folder: Path, keep: int, orbax: ocp.AsyncCheckpointer, worker: ThreadPoolExecutor):
        self.folder, self.keep = folder, keep
        self._orbax, self._worker = orbax, worker
        self._pending: Future | None = None

    def save(self, step: int, state: Any, data: Any) -> None:
        """Begins to write ``state``, a tree of arrays, and ``data``, anything JSON holds, as the checkpoint of a step.

        Returns once the arrays are copied; the state may then be changed or given away. First waits for the one before.
        Raises OSError of one sentence if that one, or this one so far, could not be written.
        """
        self.wait()
        arrays = {name: leaf for name, leaf in named(state).items() if leaf.size}  # orbax takes no empty ones
        seal = {"step": step, "data": data, "arrays": {name: kind_of(leaf) for name, leaf in named(state).items()}}
        with self._explained(step):
            if jax.process_index() == 0:
                _vacate(self.folder, step)
                check_room(self.folder, sum(leaf.nbytes for leaf in arrays.values()))
            self._orbax.save(_place(self.folder, step).absolute() / ARRAYS, args=ocp.args.PyTreeSave(arrays))
        self._pending = self._worker.submit(self._finish, step, seal)

    def _finish(self, step: int, seal: dict) -> None:
        with self._explained(step):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                _seal(_place(self.folder, step), seal)
                _prune(self.folder, self.keep)

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turns whatever goes wrong in writing into one sentence, and takes away what was written so far."""
        try:
            yield
        except Exception as error:
            shutil.rmtree(_place(self.folder, step), ignore_errors=True)
            rest = [old for old in _steps(self.folder) if old < step]
            left = f"that of step {rest[-1]} is still there" if rest else "there is no older one"
            raise OSError(
                f"{self.folder}: cannot write the checkpoint of step {step} ({reason(error)}); {left}"
            ) from error

    def poll(self) -> None:
        """Raises OSError if the checkpoint begun last turned out not to be writable. Does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint begun last is whole on disk. Raises OSError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def newest(self, like: Any) -> tuple[Any, Any] | None:
        """(state, data) of the newest checkpoint that is whole, or None if there is none.

        ``like`` is a tree of arrays, or of their ``jax.ShapeDtypeStruct`` with shardings: the state comes back in its
        structure and its layout over devices. Raises ValueError if the checkpoint is of another model.
        """
        self.wait()
        for step in reversed(_steps(self.folder)):
            place = _place(self.folder, step)
            try:
                seal = checked(place)
            except ValueError as error:
                warnings.warn(f"{error}; looking for an older checkpoint", stacklevel=2)
                continue
            return self._restore(place, seal, like), seal["data"]
        return None

    def _restore(self, place: Path, seal: dict, like: Any) -> Any:
        wanted = named(like)
        check_same(place, seal["arrays"], {name: kind_of(leaf) for name, leaf in wanted.items()})
        specs = {name: _spec(leaf) for name, leaf in wanted.items() if leaf.size}
        args = ocp.args.PyTreeRestore(specs, restore_args=ocp.checkpoint_utils.construct_restore_args(specs))
        arrays = self._orbax.restore(place.absolute() / ARRAYS, args=args)
        leaves = [arrays[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def kind_of(leaf: Any) -> str:
    """Dtype and shape of an array in words: "float32[3, 3, 4, 64]"."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def check_same(place: Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises ValueError if the arrays of a checkpoint are not those that are wanted, naming the first that differs."""
    odd = [name for name in sorted(set(stored) | set(wanted)) if stored.get(name) != wanted.get(name)]
    if odd:
        here, there = (kinds.get(odd[0], "absent") for kinds in (wanted, stored))
        raise ValueError(
            f"{place} is a checkpoint of another model: {len(odd)} of {len(set(stored) | set(wanted))} arrays differ, "
            f"such as {odd[0]}, {there} there and {here} here"
        )


def reason(error: BaseException) -> str:
    """The heart of an error in one line: what the operating system said, if it is behind it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    said = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    return said or f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def _not_of_a_write(record: logging.LogRecord) -> bool:
    """Not one of orbax's writes that failed beside the first, of which asyncio tells when it throws them away."""
    text = record.getMessage()
    return "exception was never retrieved" not in text or "orbax" not in text


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the terminal what orbax logs, and what its writes that are still under way say after one has failed.

    All that is wrong comes as an exception anyway.
    """
    ours = lambda record: "orbax" not in record.pathname
    log, told = logging.getLogger("absl"), sys.unraisablehook
    late = "Event loop is closed"
    log.addFilter(ours)
    logging.getLogger("asyncio").addFilter(_not_of_a_write)  # to stay: they may be told of at the very end
    sys.unraisablehook = lambda about: None if str(about.exc_value) == late else told(about)
    try:
        yield
    finally:
        log.removeFilter(ours)
        sys.unraisablehook = told


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """The steps that have a folder, rising; whole or not."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def _vacate(folder: Path, step: int) -> None:
    """Makes room for ``step``: what is there from that step on is of a run that went back, or was cut short."""
    for old in _steps(folder):
        if old >= step:
            shutil.rmtree(_place(folder, old))
    _place(folder, step).mkdir(parents=True)


def check_room(folder: Path, size: int) -> None:
    """Raises OSError if ``size`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")


def _prune(folder: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` folders that have a seal."""
    steps = _steps(folder)
    for old in set(steps) - set([step for step in steps if (_place(folder, step) / SEAL).exists()][-keep:]):
        shutil.rmtree(_place(folder, old))


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


# ---------------------------------------------------------------------------------------------------------------------
# Seals


def checksum(path: Path) -> list[int]:
    """[length, CRC-32] of a file."""
    crc, length = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc, length = zlib.crc32(block, crc), length + len(block)
    return [length, crc]


def _seal(place: Path, seal: dict) -> None:
    files = sorted(path for path in (place / ARRAYS).rglob("*") if path.is_file())
    seal = seal | {"files": {path.relative_to(place).as_posix(): checksum(path) for path in files}}
    text = json.dumps(seal).encode()
    write_whole(place / SEAL, lambda file: file.write(b"%d\n%s" % (zlib.crc32(text), text)))


def checked(place: Path) -> dict:
    """The seal of a checkpoint, once every file was found to fit it. Raises ValueError saying what is wrong."""
    try:
        crc, _, text = (place / SEAL).read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise ValueError(f"{place} was never finished") from None
    except OSError as error:
        raise ValueError(f"{place} is damaged: {SEAL} cannot be read ({error.strerror})") from None
    if crc != b"%d" % zlib.crc32(text):
        raise ValueError(f"{place} is damaged: {SEAL} is not as it was written")
    seal = json.loads(text)
    for name, wanted in seal["files"].items():
        try:
            found = checksum(place / name)
        except OSError as error:
            raise ValueError(f"{place} is damaged: {name} cannot be read ({error.strerror})") from None
        if found != wanted:
            raise ValueError(f"{place} is damaged: {name} is not as it was written")
    return seal
