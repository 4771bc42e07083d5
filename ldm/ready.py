"""Programs that are ready when they are called: compiled while the weights are read, and traced once for all processes.

A process that finds its machine code in the compilation cache (``ldm.startup``) still has to trace the networks' Python
to know what to look for: seconds. What tracing makes, StableHLO, is therefore kept beside the machine code, by
``jax.export``, under a name that is a digest of all that it follows from: this package's source, the versions of JAX
and Flax, the kind of device, what is compiled in, and every argument's shape.

Nothing of this is done unless ``ldm.startup.cache_compilations`` has been called: :func:`call` is then the plain call.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jaxlib
import numpy as np
from jax import export

from ldm import startup
from ldm.files import write_whole

KEPT = 64  # files; a picture needs three. Those longest unused go first
CUSTOM = ("__cudnn$fmhaSoftmax",)  # of the attention on GPUs: named as unstable, but these files are of one version


class Program(NamedTuple):
    """A jitted function and how else it was jitted, which an export does not say.

    donated: positions of arguments whose memory it may reuse; options: for the compiler.
    """

    function: Callable
    donated: tuple[int, ...] = ()
    options: dict[str, Any] | None = None


_ready: dict[Any, jax.stages.Compiled] = {}


def call(program: Program, *args: Any, **static: Any) -> Any:
    """``program.function(*args, **static)``: by what is kept, where programs are kept and this one can be."""
    if startup.kept_in is None or not keepable(static) or elsewhere(args):
        return program.function(*args, **static)
    return prepare(program, *args, **static)(*jax.tree.leaves(args))


def keepable(static: dict[str, Any]) -> bool:
    """Whether all that is compiled in can be told to another process: names and numbers, but no function or device."""
    values = (one for value in static.values() for one in (value if isinstance(value, tuple) else (value,)))
    return all(value is None or isinstance(value, str) or dataclasses.is_dataclass(value) for value in values)


def elsewhere(args: Any) -> bool:
    """Whether an array was put on another device than the first."""
    first = {jax.devices()[0]}
    return any(leaf.devices() != first for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array))


def prepare(program: Program, *args: Any, **static: Any) -> jax.stages.Compiled:
    """The compiled program, of the leaves of ``args``; those may be shapes (``jax.ShapeDtypeStruct``).

    Made once in a process, traced once for all. Call :func:`keepable` first.
    """
    leaves, tree = jax.tree.flatten(args)
    specs = tuple(jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in leaves)
    key = (program.function, tree, specs, tuple(sorted(static.items(), key=lambda item: item[0])))
    if key not in _ready:
        _ready[key] = compiled(program, tree, specs, static)
    return _ready[key]


def compiled(program: Program, tree: Any, specs: tuple, static: dict[str, Any]) -> jax.stages.Compiled:
    """From the folder of kept programs, or traced now and kept there."""

    def flat(*leaves: Any) -> Any:
        return program.function.__wrapped__(*jax.tree.unflatten(tree, leaves), **static)

    name = f"{program.function.__module__}.{program.function.__qualname__}"
    told = repr((source(), name, str(tree), specs, sorted(static.items(), key=lambda item: item[0])))
    path = startup.kept_in / f"{program.function.__name__}-{hashlib.sha256(told.encode()).hexdigest()}.stablehlo"
    exported = read(path)
    if exported is None:
        checks = [export.DisabledSafetyCheck.custom_call(name) for name in CUSTOM]
        exported = export.export(jax.jit(flat), disabled_checks=checks)(*specs)
        keep(exported, path)
    owner = [i for i, part in enumerate(tree.children()) for _ in range(part.num_leaves)]
    donated = [leaf for leaf, argument in enumerate(owner) if argument in program.donated]
    again = jax.jit(exported.call, donate_argnums=donated, compiler_options=program.options)
    return again.lower(*specs).compile()


@functools.cache
def source() -> str:
    """A digest of what traces: this package's files, and the versions and the device that they are traced for."""
    package = Path(__file__).parent
    told = hashlib.sha256(repr((jax.__version__, jaxlib.__version__, flax.__version__)).encode())
    told.update(jax.devices()[0].device_kind.encode())
    for path in sorted(package.rglob("*.py")):
        told.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return told.hexdigest()


def read(path: Path) -> export.Exported | None:
    """What was kept; None if it was not, or is damaged, of which one is warned."""
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
        os.utime(path)
        return exported
    except FileNotFoundError:
        return None
    except Exception as error:  # the reader of the format raises whatever it stumbles over
        warnings.warn(f"{path} is damaged and made again ({type(error).__name__})", stacklevel=2)
        return None


def keep(exported: export.Exported, path: Path) -> None:
    """Writes a file, and forgets the oldest ones. A folder that cannot be written to costs a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # the user's own choice of a folder need not exist yet
        write_whole(path, lambda file: file.write(exported.serialize()))
    except OSError as error:
        warnings.warn(f"a traced program is not kept for the next time: {error}", stacklevel=2)
    files = sorted(path.parent.glob("*.stablehlo"), key=lambda file: file.stat().st_mtime)
    for old in files[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()


def register(*results: type) -> None:
    """Named tuples that programs return: the format must know their names."""
    for kind in results:
        export.register_namedtuple_serialization(kind, serialized_name=f"{kind.__module__}.{kind.__qualname__}")
