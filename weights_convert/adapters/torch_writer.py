"""Writes a small PyTorch file without PyTorch: a zip of a pickle and of the bytes of each tensor.

The pickle is of protocol 2 and holds what ``torch.save`` would: dictionaries, texts, whole numbers, None, and for each
tensor a call of ``torch._utils._rebuild_tensor_v2`` with a persistent id in the place of its storage.

Source: the documentation of PyTorch, "Serialization semantics", and the opcodes of Python's ``pickletools``.
"""

import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

ROOT = "archive"
MARK, TUPLE, EMPTY_TUPLE, EMPTY_DICT, SETITEMS, STOP = b"(", b"t", b")", b"}", b"u", b"."
NONE, TRUE, FALSE, PERSISTENT, REDUCE = b"N", b"\x88", b"\x89", b"Q", b"R"


def pickled(value: Any, tensors: list[np.ndarray]) -> Iterator[bytes]:
    """The opcodes that leave ``value`` on the stack; the tensors in it are added to ``tensors``. Raises TypeError."""
    if value is None or isinstance(value, bool):
        yield NONE if value is None else TRUE if value else FALSE
    elif isinstance(value, int):
        yield b"J" + struct.pack("<i", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        yield b"X" + struct.pack("<I", len(text)) + text
    elif isinstance(value, tuple):
        yield MARK
        for item in value:
            yield from pickled(item, tensors)
        yield TUPLE
    elif isinstance(value, dict):
        yield EMPTY_DICT + MARK
        for pair in value.items():
            for item in pair:
                yield from pickled(item, tensors)
        yield SETITEMS
    elif isinstance(value, np.ndarray) and value.dtype == np.float32:
        yield from tensor(value, tensors)
    else:
        raise TypeError(f"{type(value).__name__} cannot be written")


def tensor(array: np.ndarray, tensors: list[np.ndarray]) -> Iterator[bytes]:
    """A float32 tensor in C order: rebuild(storage, 0, shape, strides, False, OrderedDict())."""
    tensors.append(array)
    strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, np.float32).strides)
    yield b"ctorch._utils\n_rebuild_tensor_v2\n" + MARK
    yield MARK + b"".join(pickled("storage", tensors)) + b"ctorch\nFloatStorage\n"
    yield from (part for item in (str(len(tensors) - 1), "cpu", array.size) for part in pickled(item, tensors))
    yield TUPLE + PERSISTENT
    for item in (0, array.shape, strides, False):
        yield from pickled(item, tensors)
    yield b"ccollections\nOrderedDict\n" + EMPTY_TUPLE + REDUCE + TUPLE + REDUCE


def write_torch(value: Any, file: BinaryIO) -> None:
    """Writes ``value`` so that ``torch.load(…, weights_only=True)`` gives it back."""
    tensors: list[np.ndarray] = []
    program = b"\x80\x02" + b"".join(pickled(value, tensors)) + STOP
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{ROOT}/data.pkl", program)
        archive.writestr(f"{ROOT}/byteorder", "little")
        for number, array in enumerate(tensors):
            archive.writestr(f"{ROOT}/data/{number}", np.ascontiguousarray(array).astype("<f4").tobytes())
        archive.writestr(f"{ROOT}/version", "3\n")
