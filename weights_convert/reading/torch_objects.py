"""What the names in PyTorch's pickles stand for, as plain data: state dicts, storages, strided tensors.

A tensor is pickled as a call of ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, and a storage
as a persistent id ``("storage", torch.FloatStorage, key, device, elements)``. Offset and stride count elements; strides
are real: transposed, stepped and expanded (stride 0) tensors are saved as they are, and several may share a storage.

Three sorts of names are admitted, and every other is refused by its name: the CALLS below, which have a meaning here;
INERT ones, parts of public files that carry no tensors and stay Records; and modules, whose tensors are reached
through their saved attributes. Nothing is ever imported or called.

Sources: the files themselves; ``torch.save`` and the ``__reduce_ex__`` methods of PyTorch for the order of arguments.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.pickle_machine import Meaning, Record, set_items
from weights_convert.reading.tensor import checked_shape, span

TENSOR_DTYPES = {
    "float32": np.float32, "float": np.float32, "float64": np.float64, "double": np.float64, "float16": np.float16,
    "half": np.float16, "bfloat16": ml_dtypes.bfloat16, "int64": np.int64, "long": np.int64, "int32": np.int32,
    "int": np.int32, "int16": np.int16, "short": np.int16, "int8": np.int8, "uint8": np.uint8, "uint16": np.uint16,
    "uint32": np.uint32, "uint64": np.uint64, "bool": np.bool_, "complex64": np.complex64,
    "complex128": np.complex128, "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz, "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
STORAGE_DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128, "UntypedStorage": np.uint8,
}  # fmt: skip
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
UNREAD = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, a shape without numbers",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
    **{f"torch.{name}Storage": "a quantised tensor" for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")},
}
OTHER_DTYPES = ("complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "float4_e2m1fn_x2")
BUILTINS = ("builtins", "__builtin__")
TYPES = ("dict", "list", "tuple", "int", "float", "bool", "str", "bytes", "bytearray", "complex")
INERT = {
    "_codecs.encode", "numpy.dtype", "numpy.ndarray", "typing.Any", "argparse.Namespace", "pathlib.PosixPath",
    "collections.Counter", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch.nn.Parameter",
    "torch.serialization._get_layout", *(f"torch.{name}" for name in TENSOR_DTYPES),
    *(f"torch.{name}" for name in OTHER_DTYPES), *(f"{module}.{name}" for name in TYPES for module in
    BUILTINS), *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in
    ("scalar", "_reconstruct")),
}  # fmt: skip
INERT_PREFIXES = ("omegaconf.", "pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "numpy.dtypes.")
MODULES = ("torch.nn.modules.", "__torch__.")  # "__torch__." begins every class of a TorchScript file


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file: ``count`` elements of storage ``key``, which has ``whole``, from ``start`` on."""

    key: str
    dtype: np.dtype
    whole: int
    start: int
    count: int


@dataclass(eq=False, slots=True)
class Strided:
    """A tensor over a storage. ``start`` counts bytes from the start of the whole storage, ``strides`` elements."""

    storage: Storage
    dtype: np.dtype
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def admit(name: str) -> None:
    """CheckpointError unless ``name`` may occur in a checkpoint."""
    if name in UNREAD:
        raise CheckpointError(f"it holds {UNREAD[name]} ({name}), which is not read; save it as a plain dense tensor")
    known = name in CALLS or name in INERT or storage_dtype(name) is not None
    if not known and not name.startswith(INERT_PREFIXES + MODULES):
        raise CheckpointError(
            f"the pickle names {quoted(name)}, which is no part of a checkpoint; nothing was imported or run; "
            "if you trust the file, save it as safetensors where it came from"
        )


def storage_dtype(name: str) -> type | None:
    """The element type of a storage class, None for any other name."""
    module, _, last = name.rpartition(".")
    return STORAGE_DTYPES.get(last.removeprefix("_")) if module in STORAGE_MODULES else None


def call(function: Record, args: tuple) -> object:
    """What a call stands for: one of CALLS, or a Record of a call that nobody makes."""
    if function.name not in CALLS:
        return Record(function.name, args)
    reading, fewest, most = CALLS[function.name]
    if not fewest <= len(args) <= most:
        raise CheckpointError(f"{quoted(function.name)} has {len(args)} arguments instead of {fewest} to {most}")
    return reading(*args)


def load_storage(pid: object) -> Storage:
    """The storage that a persistent id names: ("storage", class, key, device, elements[, view])."""
    shape = isinstance(pid, tuple) and len(pid) in (5, 6) and type(pid[0]) is str and pid[0] == "storage"
    if not shape or not isinstance(pid[1], Record) or type(pid[2]) is not str or type(pid[4]) is not int:
        raise CheckpointError("a persistent id is not ('storage', class, key, device, number of elements)")
    element = storage_dtype(pid[1].name)
    if element is None:
        raise CheckpointError(f"storage {quoted(pid[2])} is of the class {quoted(pid[1].name)}, which is not read")
    (whole,) = checked_shape([pid[4]], f"the size of storage {quoted(pid[2])}")
    view = pid[5] if len(pid) == 6 else None
    if view is None:
        return Storage(pid[2], np.dtype(element), whole, 0, whole)
    if not isinstance(view, tuple) or len(view) != 3:
        raise CheckpointError(f"the view of storage {quoted(pid[2])} is not (key, start, elements)")
    start, count = checked_shape(view[1:], f"the view of storage {quoted(pid[2])}")
    if start + count > whole:
        raise CheckpointError(f"a view of storage {quoted(pid[2])} ends at element {start + count} of {whole}")
    return Storage(pid[2], np.dtype(element), whole, start, count)


def strided(storage: object, offset: object, size: object, stride: object, dtype: np.dtype | None = None) -> Strided:
    """A tensor inside its storage, or CheckpointError."""
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor is made of {kind(storage)} instead of a storage")
    what = f"a tensor in storage {quoted(storage.key)}"
    shape, strides = checked_shape(size, f"the shape of {what}"), checked_shape(stride, f"the strides of {what}")
    (offset,) = checked_shape([offset], f"the offset of {what}")
    if len(shape) != len(strides):
        raise CheckpointError(f"{what} has {len(shape)} sizes and {len(strides)} strides")
    dtype = storage.dtype if dtype is None else dtype
    have = storage.count * storage.dtype.itemsize // dtype.itemsize
    if span(shape, strides) and offset + span(shape, strides) > have:
        raise CheckpointError(f"{what} reaches element {offset + span(shape, strides)} of {have}: shape {shape}")
    start = storage.start * storage.dtype.itemsize + offset * dtype.itemsize
    return Strided(storage, dtype, start, shape, strides)


def tensor_v2(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> Strided:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``; ``metadata`` marks lazily conjugated or negated numbers."""
    if metadata:
        raise CheckpointError("a tensor is saved conjugated or negated (conj, neg); resolve it before saving")
    return strided(storage, offset, size, stride)


def tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Strided:
    """``_rebuild_tensor_v3``: an untyped storage, and the type as ``torch.uint16`` and the like."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Record) else kind(dtype)
    if name not in TENSOR_DTYPES:
        raise CheckpointError(f"a tensor has the type {quoted(name)}, which is not read")
    if metadata:
        raise CheckpointError("a tensor is saved conjugated or negated (conj, neg); resolve it before saving")
    return strided(storage, offset, size, stride, np.dtype(TENSOR_DTYPES[name]))


def parameter(data, requires_grad, hooks, state=None) -> Strided:
    """``_rebuild_parameter``: the tensor inside."""
    if not isinstance(data, Strided):
        raise CheckpointError(f"a parameter is made of {kind(data)} instead of a tensor")
    return data


def tensor_with_attributes(function, kind_of_tensor, args, state) -> object:
    """``_rebuild_from_type_v2``: the tensor that the inner call gives, its Python attributes dropped."""
    if not isinstance(function, Record) or function.name not in TENSOR_CALLS or not isinstance(args, tuple):
        raise CheckpointError("a tensor with attributes is not made by one of PyTorch's own functions")
    return call(function, args)


def ordered_dict(pairs=()) -> dict:
    """``collections.OrderedDict``, empty or, from Python 2, of [key, value] pairs."""
    table: dict = {}
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list | tuple) for pair in pairs):
        raise CheckpointError("an OrderedDict is made of something else than pairs")
    for pair in pairs:
        set_items(table, list(pair))
    return table


def default_dict(factory=None) -> dict:
    """``collections.defaultdict``, always empty when it is made."""
    return {}


def as_list(values=()) -> list:
    """A set, kept as a list: nothing in it is hashed."""
    if not isinstance(values, list | tuple):
        raise CheckpointError(f"a set is made of {kind(values)} instead of a list")
    return list(values)


def same(value, label=None) -> object:
    """``torch.Size``, and the list markers and type tags of TorchScript: the value itself."""
    return value


CALLS = {  # name: (its reading here, fewest arguments, most)
    "collections.OrderedDict": (ordered_dict, 0, 1),
    "collections.defaultdict": (default_dict, 0, 1),
    **{f"{module}.{name}": (as_list, 0, 1) for module in BUILTINS for name in ("set", "frozenset")},
    "torch.Size": (same, 1, 1),
    "torch._utils._rebuild_tensor": (tensor_v2, 4, 4),
    "torch._utils._rebuild_tensor_v2": (tensor_v2, 6, 7),
    "torch._utils._rebuild_tensor_v3": (tensor_v3, 7, 8),
    "torch._utils._rebuild_parameter": (parameter, 3, 3),
    "torch._utils._rebuild_parameter_with_state": (parameter, 4, 4),
    "torch._tensor._rebuild_from_type_v2": (tensor_with_attributes, 4, 4),
    "torch.jit._pickle.restore_type_tag": (same, 2, 2),
    **{f"torch.jit._pickle.build_{of}list": (same, 1, 1) for of in ("int", "tensor", "double", "bool")},
}
TENSOR_CALLS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
TORCH = Meaning(admit, call, load_storage)
