"""Arrays made once and kept: a folder of .npy files, one row an example, under the hash of all that they depend on.

A run with the same settings finds them; one with other settings makes others beside them. They are written row after
row: on a full disk that is an error in one sentence, where writing through mapped memory would end the process.

N examples, H W pictures, h w Z latents.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ldm.files import into_place
from ldm.models.autoencoder import VAE, VAEConfig, from_uint8
from ldm.models.layers import Params, bind

Arrays = Mapping[str, np.ndarray]
SETTINGS = "settings.json"


def hash_of(settings: Any) -> str:
    """16 hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def kept(folder: Path, settings: Mapping[str, Any], count: int, make: Callable[[], Iterable[Arrays]]) -> Path:
    """The sub-folder of ``folder`` for some settings; if it is not there, its files are written.

    ``make()`` yields arrays of consecutive rows, ``count`` in all, each time under the same names. The sub-folder
    appears whole or not at all, and ``settings.json`` in it holds the settings. Raises ValueError where it cannot be
    written.
    """
    place = folder / hash_of(settings)

    def write(to: Path) -> None:
        (to / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        write_arrays(to, count, make())

    if not place.is_dir():
        try:
            into_place(place, write)
        except OSError as error:
            if not place.is_dir():  # else another process was faster
                reason = error.strerror or error
                raise ValueError(f"{place}: cannot be written ({reason}); choose a folder with more room") from None
    return place


def write_arrays(folder: Path, count: int, parts: Iterable[Arrays]) -> None:
    """Writes ``folder/name.npy``, ``count`` rows, for each name of the ``parts``. Raises OSError."""
    with ExitStack() as opened:
        files: dict[str, Any] = {}
        for part in parts:
            for name, rows in part.items():
                if name not in files:
                    files[name] = opened.enter_context((folder / f"{name}.npy").open("wb"))
                    shape = (count, *rows.shape[1:])
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[name], header)
                files[name].write(np.ascontiguousarray(rows))


def read_rows(folder: Path, name: str, indices: np.ndarray) -> np.ndarray:
    """Some rows of an array that is kept. The file is opened anew: a worker process has nothing to inherit."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")[indices]


def chunks(count: int, size: int, unit: str) -> Iterator[tuple[np.ndarray, slice]]:
    """Indices in chunks of one shape, and which of a chunk are new: the last one begins earlier. Shows a bar."""
    size = min(size, count)
    for first in tqdm(range(0, count, size), unit=f" x {size} {unit}", leave=False, disable=None):
        begin = min(first, count - size)
        yield np.arange(begin, begin + size), slice(first - begin, None)


# ---------------------------------------------------------------------------------------------------------------------
# Latents.


class Pictures(Protocol):
    """A source of pictures that are the same each time."""

    count: int
    key: str
    """A hash of all that the pictures depend on."""

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3]."""


def keep_latents(config: VAEConfig, params: Params, source: Pictures, folder: Path, batch: int = 32) -> Path:
    """The folder with ``mean.npy`` and ``logvar.npy``, float16 [N, h, w, Z], of all pictures of a source.

    They are unscaled, as :meth:`ldm.models.autoencoder.VAE.encode` returns them; a sample is
    ``reparameterize(mean, logvar, noise)``. Encodes ``batch`` pictures at a time, in the dtype of ``params``, if the
    folder does not have them yet. Raises ValueError for pictures that are no multiple of the autoencoder's factor, and
    where nothing can be written.
    """
    size = source.pictures(np.arange(1)).shape[1:3]
    if any(side % config.factor for side in size):
        raise ValueError(f"pictures of {size[1]}x{size[0]} have no latents: each side must divide by {config.factor}")
    settings = {"pictures": source.key, "vae": repr(config), "weights": weights_hash(params)}

    def make() -> Iterator[Arrays]:
        for indices, new in chunks(source.count, batch, "latents"):
            mean, logvar = _encode(config, params, source.pictures(indices))
            yield {"mean": np.asarray(mean)[new], "logvar": np.asarray(logvar)[new]}

    return kept(folder, settings, source.count, make)


def check_latents(folder: Path, key: str) -> None:
    """Raises ValueError if ``folder`` has not the latents of the pictures of ``key``."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"{folder}: holds no latents; make them by keep_latents") from None
    if settings.get("pictures") != key:
        raise ValueError(f"{folder}: these are latents of other pictures; make new ones by keep_latents")


def weights_hash(params: Params) -> str:
    """16 hexadecimal digits of names, shapes, dtypes and numbers."""
    found = hashlib.sha256()
    for name, array in sorted(params.items()):
        values = np.ascontiguousarray(array)
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.view(np.uint8).data)
    return found.hexdigest()[:16]


@partial(jax.jit, static_argnums=0)
def _encode(config: VAEConfig, params: Params, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, logvar = bind(VAE, config, params).encode(from_uint8(pictures))
    return mean.astype(jnp.float16), logvar.astype(jnp.float16)
