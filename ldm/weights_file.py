"""Parameters in a file: safetensors, laid out so that a CPU computes with the arrays where they lie.

The format allows tensors in any order and spaces after the header. So the data begin at a multiple of 64 bytes, arrays
whose own bytes are a multiple of 64 come first, and nearly every array is aligned as XLA wants it: loading maps the
file and copies next to nothing. Any tool reads the file as the plain safetensors file that it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

ALIGNMENT = 64
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write(arrays: Mapping[str, Any], path: Path) -> None:
    """Writes ``arrays`` (float32, float16 or bfloat16; anything NumPy can view) by name."""
    ready = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    order = sorted(ready, key=lambda name: (ready[name].nbytes % ALIGNMENT > 0, name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + ready[name].nbytes
        dtype, shape = NAMES[ready[name].dtype], list(ready[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(ready[name].reshape(-1).view(np.uint8).data)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, as read-only views of it. Raises ValueError, naming the file, where it cannot be read."""
    try:
        with safe_open(path, framework="numpy"):  # the library proves header, offsets and length
            raw = np.memmap(path, np.uint8, "r")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    entries = json.loads(raw[8:start].tobytes())
    entries.pop("__metadata__", None)
    odd = sorted({entry["dtype"] for entry in entries.values()} - set(DTYPES))
    if odd:
        raise ValueError(f"{path}: holds {', '.join(odd)} numbers, where {', '.join(DTYPES)} are expected")
    return {
        name: np.ndarray(e["shape"], DTYPES[e["dtype"]], raw.data, start + e["data_offsets"][0])
        for name, e in entries.items()
    }
