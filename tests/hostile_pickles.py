"""Pickles that exhaust or confuse whoever reads them.

``BOMBS`` are small and ask for much, ``BROKEN`` are no sound program, and ``TENSORS`` no sound tensor. Each is
{name: (content for checkpoint_files.pickled, phrase of the error)}.
"""

import struct
from collections.abc import Callable

from tests import checkpoint_files as make
from tests.checkpoint_files import FOUR, MARK, REDUCE, Saved, called, name, pickled, tensor, text

# bombs


def laughs(empty: bytes, fill: Callable[[bytes], bytes], levels: int) -> bytes:
    """``levels`` containers, each ten times the one before: few operations, 10**levels values."""
    return b"".join(
        empty + fill(b"h" + bytes([level - 1]) if level else b"N") + b"q" + bytes([level]) for level in range(levels)
    )


def ten_in_a_list(operation: bytes) -> bytes:
    """Appends one value ten times."""
    return MARK + operation * 10 + b"e"


def ten_in_a_dict(operation: bytes) -> bytes:
    """Sets one value at ten keys."""
    return MARK + b"".join(text(f"k{number}") + operation for number in range(10)) + b"u"


def top_of(operations: bytes, levels: int) -> bytes:
    """Only the last of many values that were pushed, through a tuple."""
    return MARK + operations + b"t"


MANY = 400_000
LAUGHS = 30
BOMBS = {
    "text of 2 GB": (b"X" + struct.pack("<I", (1 << 31) - 1), "wants 2147483647 bytes more"),
    "text of 8 EB": (b"\x8d" + struct.pack("<Q", (1 << 63) - 1), "wants 9223372036854775807 bytes more"),
    "bytes of 4 GB": (b"B" + struct.pack("<I", (1 << 32) - 1), "wants 4294967295 bytes more"),
    "bytes of 16 EB": (b"\x8e" + b"\xff" * 8, "wants 18446744073709551615 bytes more"),
    "bytearray of 1 TB": (b"\x96" + struct.pack("<Q", 1 << 40), "wants 1099511627776 bytes more"),
    "frame of 1 TB": (b"\x95" + struct.pack("<Q", 1 << 40), "promises 1099511627776 bytes more"),
    "integer of 2 GB": (b"\x8b" + struct.pack("<i", (1 << 31) - 1), "operation LONG4"),
    "many marks": (MARK * MANY, "nests values more than 1000 deep"),
    "many nested tuples": ({"x": b")" + b"\x85" * (MANY // 4)}, "nested more than 64 deep"),
    "many calls": ({"x": (name("typing", "Any") + b")" + REDUCE) * (MANY // 8)}, "from 50001 keys and values"),
    "too many operations": (b"N" * (2 * MANY), "more than 500000 operations"),
    "too many lists": (b"]" * (2 * MANY), "more than 500000 operations"),
    "key of nested tuples": (b"}" + b")" + b"\x85" * 100 + b"N" + b"s", "a value of type tuple as a key"),
    "key of shared tuples": (b"()q\0" + b"h\0h\0\x86q\0" * 60 + b"t}h\0Ns", "type tuple as a key"),
    "keys that share a hash": (b"}" + pickled((1 << 61) - 1) + b"N" + b"s", "integer of more than 54 bits as a key"),
    "list inside itself": ({"x": b"]q\0h\0a"}, "inside themselves"),
    "dict inside itself": (b"}q\0" + text("x") + b"h\0s", "inside themselves"),
    "state dict of itself": (b"}q\0" + text("state_dict") + b"h\0s", "longer than 512 characters"),
    "billion laughs in lists": (top_of(laughs(b"]", ten_in_a_list, LAUGHS), LAUGHS), "instead of a dictionary"),
    "billion laughs in a dict of lists": (
        {"x": top_of(laughs(b"]", ten_in_a_list, LAUGHS), LAUGHS)},
        "more than 200000 values",
    ),
    "billion laughs in dicts": ({"x": top_of(laughs(b"}", ten_in_a_dict, LAUGHS), LAUGHS)}, "more than 200000 values"),
    "long names in long names": ({"k" * 300: {"k" * 300: FOUR}}, "name is longer than 512 characters"),
    "module name without end": (b"c" + b"m" * 100_000, "no end within 512 bytes"),
    "name of 60 KB": (text("os") + text("x" * 60_000) + b"\x93", "longer than 512 bytes"),
    "tensor of 160 thousand million": ({"x": Saved("0", "float32", 4, (MANY, MANY), (0, 0))}, "repeats numbers to"),
}

# programs that are not sound

BROKEN = {
    "call of a number": (pickled(3) + b")" + REDUCE, "calls a value of type int"),
    "call of a text": (text("os.system") + b")" + REDUCE, "calls a value of type str"),
    "call of a call": (called(called(name("typing", "Any"))), "calls a value of type Record"),
    "call of a dict": (called(called(name("collections", "OrderedDict"))), "calls a value of type dict"),
    "call without a tuple": (name("typing", "Any") + b"]" + REDUCE, "instead of a tuple"),
    "new object of a number": (pickled(3) + b")\x81", "calls a value of type int"),
    "unknown name": (name("my.module", "MyClass"), "'my.module.MyClass'"),
    "name by a number": (pickled(3) + text("x") + b"\x93", "a value of type int and a value of type str"),
    "name by a name": (name("typing", "Any") + text("x") + b"\x93", "instead of two texts"),
    "number never stored": (b"h\7", "value number 7"),
    "empty stack": (b"0", "operation POP"),
    "tuple of nothing": (b"\x86", "empty stack"),
    "value below a mark": (b"N(\x85", "empty stack"),
    "tuple without a mark": (b"t", "a mark that is not there"),
    "list never opened": (b"e", "a mark that is not there"),
    "state of nothing": (b"N)b", "attributes of None"),
    "state of a list": (b"]}b", "attributes of a value of type list"),
    "state of a name": (name("typing", "Any") + b"}b", "attributes of a value of type Record"),
    "items of a list": (b"]NNs", "items of a value of type list"),
    "items of a call": (called(name("typing", "Any")) + b"NNs", "items of a value of type Record"),
    "items of a tensor": (tensor(FOUR) + b"NNs", "items of a value of type Strided"),
    "key without a value": (b"}(Nu", "from 1 keys and values"),
    "key of a list": (b"}]Ns", "a value of type list as a key"),
    "key of a tensor": (b"}" + tensor(FOUR) + b"Ns", "a value of type Strided as a key"),
    "append to a dict": (b"}Na", "appends to a value of type dict"),
    "append to a call": (called(name("typing", "Any")) + b"(Ne", "appends to a value of type Record"),
    "set of a number": (called(name("builtins", "set"), 3), "a set is made of a value of type int"),
    "object of a class": (MARK + name("typing", "Any") + b"o", "operation OBJ"),
    "extension of two bytes": (b"\x83\0\1", "operation EXT2"),
    "extension of four bytes": (b"\x84\0\0\0\1", "operation EXT4"),
    "two values left": (b"}}", "stops with 2 values"),
    "open mark left": (b"}(", "stops with 1 values"),
    "nothing left": (b"", "stops with 0 values"),
    "text that is not UTF-8": (b"X\2\0\0\0\xff\xfe", "is not UTF-8"),
    "unknown operation": (b"\xfe", "operation 0xfe"),
    "buffer from outside": (b"\x97", "operation NEXT_BUFFER"),
    "new object with keywords": (name("typing", "Any") + b")}\x92", "operation NEWOBJ_EX"),
    "protocol 9": (b"\x80\x09", "protocol 9"),
    "id by text": (b"P0\n", "operation PERSID"),
    "id that is a number": (pickled(3) + b"Q", "persistent id"),
    "id of two parts": (pickled(("storage", "0")) + b"Q", "persistent id"),
    "id of another kind": (pickled(("modules", name("typing", "Any"), "0", "cpu", 1)) + b"Q", "persistent id"),
    "id with a number as key": (
        pickled(("storage", name("torch", "FloatStorage"), 0, "cpu", 4)) + b"Q",
        "persistent id",
    ),
    "id that is a nested tuple": (b")" + b"\x85" * 1000 + b"Q", "persistent id"),
    "not a storage class": (pickled(("storage", name("typing", "Any"), "0", "cpu", 4)) + b"Q", "class 'typing.Any'"),
    "pairs that are none": (called(name("collections", "OrderedDict"), [3]), "something else than pairs"),
    "a lone number": (3, "holds a value of type int"),
    "a lone tensor": (tensor(FOUR), "holds a value of type Strided"),
    "two tensors of one name": ({"a.b": FOUR, "a": {"b": FOUR}}, "two tensors have the name 'a.b'"),
}

# tensors that are not sound


def rebuilt(function: str, *args: object) -> dict:
    """A state dict of one tensor by another of PyTorch's functions."""
    return {"x": called(name("torch._utils", function), *args)}


def four(**changes: object) -> dict:
    """A state dict of one tensor over the storage of four floats."""
    return {"x": Saved(**{"key": "0", "dtype": "float32", "count": 4, "shape": (4,), "strides": (1,)} | changes)}


def untyped(dtype: bytes, size: tuple = (1,), stride: tuple = (1,)) -> dict:
    """A state dict of one tensor of a type that only ``_rebuild_tensor_v3`` makes."""
    storage = pickled(("storage", name("torch.storage", "UntypedStorage"), "0", "cpu", 16)) + b"Q"
    return rebuilt("_rebuild_tensor_v3", storage, 0, size, stride, False, {}, dtype)


ID = make.storage_id(FOUR)
TENSORS = {
    "negative size": (four(shape=(-4,)), "none negative"),
    "negative stride": (four(strides=(-1,)), "none negative"),
    "negative offset": (four(offset=-1), "none negative"),
    "size of 2**70": (four(shape=(1 << 70,)), "none negative"),
    "size of a flag": (four(shape=(True,)), "whole numbers"),
    "size of a fraction": (four(shape=(4.0,)), "whole numbers"),
    "size that is a text": (rebuilt("_rebuild_tensor_v2", ID, 0, "4", (1,), False, {}), "whole numbers"),
    "forty axes": (four(shape=(1,) * 40, strides=(1,) * 40), "at most 32 whole numbers"),
    "too large": (four(shape=(5,)), "reaches element 5 of 4"),
    "offset beyond": (four(offset=1), "reaches element 5 of 4"),
    "stride beyond": (four(strides=(2,)), "reaches element 7 of 4"),
    "sizes without strides": (four(strides=()), "1 sizes and 0 strides"),
    "storage larger than its bytes": (four(count=5), "has 16 bytes"),
    "storage smaller than its bytes": (four(count=3, shape=(3,)), "has 16 bytes"),
    "storage of another type": (four(dtype="float64"), "has 16 bytes"),
    "storage that is missing": (four(key="7"), "'7' is missing"),
    "storage outside the folder": (four(key="../../data.pkl"), "'../../data.pkl' is missing"),
    "storage of two sizes": ({"x": FOUR, "y": four(count=2, shape=(2,))["x"]}, "named with two sizes"),
    "no storage": (rebuilt("_rebuild_tensor_v2", "0", 0, (4,), (1,), False, {}), "instead of a storage"),
    "too few arguments": (rebuilt("_rebuild_tensor_v2", ID, 0, (4,)), "has 3 arguments instead of 6 to 7"),
    "conjugated": (
        rebuilt("_rebuild_tensor_v2", ID, 0, (4,), (1,), False, {}, {"conj": True}),
        "conjugated or negated",
    ),
    "sparse": (rebuilt("_rebuild_sparse_tensor", 1, 2), "a sparse tensor"),
    "quantised": (rebuilt("_rebuild_qtensor", 1), "a quantised tensor"),
    "quantised storage": (pickled(name("torch", "QInt8Storage")), "a quantised tensor"),
    "without numbers": (rebuilt("_rebuild_meta_tensor_no_storage", 1), "a shape without numbers"),
    "type not read": (untyped(name("torch", "qint8")), "'qint8', which is not read"),
    "type that is a text": (untyped(text("torch.uint16")), "a value of type str"),
    "untyped and too large": (untyped(name("torch", "uint16"), (9,)), "reaches element 9 of 8"),
    "parameter of nothing": (rebuilt("_rebuild_parameter", None, True, {}), "a parameter is made of None"),
    "attributes by another function": (
        {"x": called(name("torch._tensor", "_rebuild_from_type_v2"), name("typing", "Any"), None, (), {})},
        "not made by one of PyTorch's own functions",
    ),
    "view beyond its storage": ({"x": tensor(FOUR, make.storage_id(FOUR, ("v", 2, 3)))}, "ends at element 5 of 4"),
    "view of two parts": ({"x": tensor(FOUR, make.storage_id(FOUR, ("v", 2)))}, "is not (key, start, elements)"),
}
