"""Reads the safetensors format: an 8-byte length, a JSON header, and one buffer of raw tensors.

    u64 little-endian N | N bytes of JSON, from "{" | buffer
    {"name": {"dtype": "F32", "shape": [4, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {text: text}}

What the format promises is checked before any tensor is handed out: the header is at most 100 MB of UTF-8, no name
comes twice, every tensor has the bytes that its shape asks for, and the tensors cover the buffer with no hole and no
overlap. Numbers are little-endian and in C order. NaN and infinity are not looked for.

Source: the format's own description (github.com/huggingface/safetensors, README, "Format").
"""

import json
import os
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.tensor import Checkpoint, LazyTensor, checked_shape

MOST_HEADER_BYTES = 100_000_000
DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
    "C64": np.complex64, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


def read_safetensors(path: Path) -> Checkpoint:
    """The tensors and the metadata of the safetensors file at ``path``; CheckpointError where a promise is broken."""
    with open(path, "rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        check_length(length, file_bytes)
        header = parse(file.read(length))
    start = 8 + length
    metadata = checked_metadata(header.pop("__metadata__", None))
    entries = {name: checked_entry(name, entry) for name, entry in header.items()}
    check_cover([(begin, end, name) for name, (_, _, begin, end) in entries.items()], file_bytes - start)
    tensors = {
        name: LazyTensor(shape, dtype, path, start + begin) for name, (dtype, shape, begin, _) in entries.items()
    }
    return Checkpoint(tensors, metadata, source=str(path))


def check_length(length: int, file_bytes: int) -> None:
    """The promised length of the header against the format's limit and the file."""
    if length > MOST_HEADER_BYTES:
        raise CheckpointError(f"a safetensors header of {length} bytes is promised, the format's limit is 100 MB")
    if 8 + length > file_bytes:
        raise CheckpointError(
            f"truncated: the safetensors header promises {8 + length} bytes, {file_bytes} are there; download it again"
        )


def parse(text: bytes) -> dict:
    """The JSON header as a dict whose names come once each."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        table = dict(pairs)
        if len(table) < len(pairs):
            seen = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise CheckpointError(f"the safetensors header has {quoted(twice)} twice")
        return table

    if not text.startswith(b"{"):
        raise CheckpointError(f"a safetensors header starts with '{{', this one with {text[:8]!r}")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the safetensors header is not JSON in UTF-8 ({str(error)[:100]})") from None


def checked_metadata(metadata: object) -> dict[str, str]:
    """The ``__metadata__`` entry: text to text, absent or null for none."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("__metadata__ of a safetensors header must map text to text")
    return metadata


def checked_entry(name: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """One tensor's (dtype, shape, begin, end) in the buffer; its bytes must be those of its shape."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"tensor {quoted(name)} needs dtype, shape and data_offsets in the safetensors header")
    label = entry["dtype"]
    if not isinstance(label, str) or label not in DTYPES:
        shown = quoted(label) if isinstance(label, str) else kind(label)
        raise CheckpointError(f"tensor {quoted(name)} has the dtype {shown}; read are {', '.join(DTYPES)}")
    dtype = np.dtype(DTYPES[label])
    shape = checked_shape(entry["shape"], f"the shape of {quoted(name)}")
    offsets = checked_shape(entry["data_offsets"], f"data_offsets of {quoted(name)}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"data_offsets of {quoted(name)} must be a begin and an end that does not precede it")
    if offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"tensor {quoted(name)} of shape {shape} and dtype {label} needs {prod(shape) * dtype.itemsize} bytes, "
            f"its data_offsets give {offsets[1] - offsets[0]}"
        )
    return dtype, shape, offsets[0], offsets[1]


def check_cover(pieces: list[tuple[int, int, str]], buffer_bytes: int) -> None:
    """The tensors must follow one another through the whole buffer: no hole, no overlap, nothing after."""
    reached, before = 0, "the header"
    for begin, end, name in sorted(pieces):
        if begin != reached:
            word = "a hole" if begin > reached else "an overlap"
            raise CheckpointError(
                f"{word} between {quoted(before)} and tensor {quoted(name)}: byte {begin} instead of {reached}"
            )
        reached, before = end, name
    if reached > buffer_bytes:
        raise CheckpointError(
            f"truncated: the safetensors header promises {reached} bytes of tensors, {buffer_bytes} are there; "
            "download it again"
        )
    if reached < buffer_bytes:
        raise CheckpointError(f"{buffer_bytes - reached} bytes follow the last tensor; none should")
