"""Writes small checkpoint files by hand, good ones and, piece by piece, bad ones: no PyTorch is needed.

Three layers: pickles as joined operations (``text``, ``name``, ``value``...), zip files with every field at hand, and
whole files (``safetensors_bytes``, ``torch_zip_bytes``, ``legacy_bytes``) of named arrays.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

LABELS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL", "uint8": "U8"}
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
PROTO, STOP, MARK, TUPLE, REDUCE = b"\x80\x02", b".", b"(", b"t", b"R"


@dataclass(frozen=True)
class Saved:
    """A tensor as PyTorch pickles it: ``shape`` and ``strides`` over storage ``key``, from element ``offset``."""

    key: str
    dtype: str
    count: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


# pickles


def text(words: str) -> bytes:
    """BINUNICODE."""
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(number: int) -> bytes:
    """BININT, or LONG1 for what does not fit."""
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def pickled(content: object) -> bytes:
    """The operations that push ``content``: bytes are operations already, dicts, lists and tuples are nested."""
    plain = {str: text, int: integer, bytes: bytes, Saved: tensor, float: lambda x: b"G" + struct.pack(">d", x)}
    constants = {None: b"N", True: b"\x88", False: b"\x89"}
    if content is None or isinstance(content, bool):
        return constants[content]
    if isinstance(content, Mapping):
        return b"}" + MARK + b"".join(pickled(k) + pickled(v) for k, v in content.items()) + b"u"
    if isinstance(content, list):
        return b"]" + MARK + b"".join(map(pickled, content)) + b"e"
    if isinstance(content, tuple):
        return MARK + b"".join(map(pickled, content)) + TUPLE
    return plain[type(content)](content)


def storage_id(saved: Saved, *view: object) -> bytes:
    """The persistent id of a tensor's storage."""
    return pickled(("storage", name("torch", STORAGES[saved.dtype]), saved.key, "cpu", saved.count, *view)) + b"Q"


def tensor(saved: Saved, storage: bytes | None = None) -> bytes:
    """The call that rebuilds a tensor."""
    hooks = name("collections", "OrderedDict") + b")" + REDUCE
    args = (storage or storage_id(saved), saved.offset, saved.shape, saved.strides, False, hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + pickled(args) + REDUCE


def program(content: object) -> bytes:
    """A whole pickle."""
    return PROTO + pickled(content) + STOP


def called(function: bytes, *args: object) -> bytes:
    """REDUCE of a name with arguments."""
    return function + pickled(args) + REDUCE


FOUR = Saved("0", "float32", 4, (4,), (1,))


# zip files


@dataclass(frozen=True)
class Entry:
    """An entry of a zip file; ``here`` is its name at its own place, where that differs from the directory's."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    here: str | None = None
    size: int | None = None
    crc: int | None = None


def zip_bytes(entries: Iterable[Entry], wide: bool = False, count: int | None = None, shift: int = 0) -> bytes:
    """A zip file; ``wide`` writes every size in 64 bits, ``count`` and ``shift`` lie about the directory."""
    entries, body, directory = list(entries), b"", b""
    for entry in entries:
        size = len(entry.data) if entry.size is None else entry.size
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        here, at = (entry.here or entry.name).encode(), len(body)
        sizes = (0xFFFFFFFF, 0xFFFFFFFF) if wide else (size, size)
        extra = struct.pack("<2H3Q", 1, 24, size, size, at) if wide else b""
        fields = (entry.flags, entry.method, 0, 0, crc, *sizes)
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(here), 0) + here + entry.data
        central = struct.pack("<4s6H3L", b"PK\1\2", 20, 20, *fields)
        lengths = struct.pack("<5H2L", len(entry.name.encode()), len(extra), 0, 0, 0, 0, 0xFFFFFFFF if wide else at)
        directory += central + lengths + entry.name.encode() + extra
    count, start, size = len(entries) if count is None else count, len(body) + shift, len(directory)
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    large += struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + size, 1)
    narrow = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if wide else (count, count, size, start)
    return body + directory + (large if wide else b"") + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *narrow, 0)


# whole files


def saved_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Saved]:
    """Each array as a tensor over a storage of its own, with keys "0", "1", ..."""
    return {
        label: Saved(str(key), array.dtype.name, array.size, array.shape, strides_of(array))
        for key, (label, array) in enumerate(arrays.items())
    }


def strides_of(array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements of the array in C order."""
    return tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)


def torch_entries(content: object, storages: Iterable[bytes], pickle: bytes | None = None) -> list[Entry]:
    """The entries of a file by ``torch.save``; ``pickle`` replaces the pickled ``content``."""
    data = [Entry(f"archive/data/{key}", storage) for key, storage in enumerate(storages)]
    first = Entry("archive/data.pkl", program(content) if pickle is None else pickle)
    return [first, Entry("archive/byteorder", b"little"), *data, Entry("archive/version", b"3\n")]


def torch_zip_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What ``torch.save`` writes for named arrays."""
    return zip_bytes(torch_entries(saved_arrays(arrays), (array.tobytes() for array in arrays.values())))


def legacy_bytes(content: object, storages: Mapping[str, tuple[int, bytes]], little: bool = True) -> bytes:
    """The container of PyTorch before 1.6; ``storages`` are (elements, bytes) by key."""
    head = program(LEGACY_MAGIC) + program(1001) + program({"protocol_version": 1001, "little_endian": little})
    raw = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    return head + program(content) + program(list(storages)) + raw


def legacy_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The older container of named arrays."""
    storages = {str(key): (array.size, array.tobytes()) for key, array in enumerate(arrays.values())}
    tensors = {label: tensor(saved, storage_id(saved, None)) for label, saved in saved_arrays(arrays).items()}
    return legacy_bytes(tensors, storages)


def safetensors_raw(header: bytes, buffer: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(header)) + header + buffer


def safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of named arrays."""
    header, buffer = ({"__metadata__": dict(metadata)} if metadata else {}), b""
    for label, array in arrays.items():
        place = [len(buffer), len(buffer) + array.nbytes]
        header[label] = {"dtype": LABELS[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        buffer += array.tobytes()
    return safetensors_raw(json.dumps(header).encode(), buffer)


def example_arrays() -> dict[str, np.ndarray]:
    """Arrays of several types and shapes, with a scalar and an empty one."""
    numbers = np.random.default_rng(0).standard_normal
    return {
        "conv.weight": numbers((4, 3, 2, 2)).astype(np.float32),
        "conv.bias": numbers(4).astype(np.float16),
        "norm.weight": numbers(5).astype(ml_dtypes.bfloat16),
        "position_ids": np.arange(6)[None],
        "scale": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False, True]),
    }
