"""Files that are not what they should be: damaged or lying containers, and what people save by mistake.

Each table is {name: (bytes of the file, phrase of the error)}.
"""

import json
import struct

import numpy as np

from tests import checkpoint_files as make
from tests.checkpoint_files import FOUR, Entry, safetensors_raw, zip_bytes

STORAGE = np.arange(4, dtype=np.float32).tobytes()
GOOD = make.torch_entries({"x": FOUR}, [STORAGE])
PAGE = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167540\n"

MISTAKEN = {
    "nothing": (b"", "is empty (0 bytes)"),
    "LFS pointer": (POINTER, "git-LFS pointer of 135 bytes to a file of 3438167540 bytes"),
    "web page": (PAGE, "is a web page"),
    "web page after a mark": (b"\xef\xbb\xbf\r\n" + PAGE, "is a web page"),
    "XML error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page (HTML or XML)"),
    "JSON error": (b'{"error": "Repository not found"}', "is JSON text"),
    "JSON list": (b"[1, 2, 3]", "is JSON text"),
    "plain text": (b"Entry not found", "as no checkpoint does"),
    "three bytes": (b"abc", "as no checkpoint does"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "is a gzip archive; unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a 7z archive"),
    "xz": (b"\xfd7zXZ\0" + bytes(20), "is an xz archive"),
    "bzip2": (b"BZh9" + bytes(20), "is a bzip2 archive"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(20), "is a zstandard archive"),
    "rar": (b"Rar!\x1a\7\0" + bytes(20), "is a rar archive"),
    "tar": (b"storages".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "is a tar archive, as PyTorch wrote before"),
    "empty zip": (zip_bytes([]), "is an empty zip archive"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(20), "is a GGUF file"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
    "NumPy array": (b"\x93NUMPY\1\0" + bytes(20), "is a NumPy array"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "is a picture"),
    "plain pickle": (make.program({"x": 1}), "a plain Python pickle"),
    "pickle of the first protocol": (b"(dp0\nS'x'\np1\nI1\ns.", "as no checkpoint does"),
    "zeros": (bytes(100), "starts with '{'"),
}


# safetensors


def one(**changes: object) -> bytes:
    """A safetensors file of one tensor "x" of two floats, with a changed header entry."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    entry = {key: value for key, value in entry.items() if value is not None}
    return safetensors_raw(json.dumps({"x": entry}).encode(), bytes(8))


def many(*places: tuple[int, int], size: int = 16) -> bytes:
    """A safetensors file of byte tensors at these places of a buffer of ``size`` bytes."""
    header = {
        f"t{k}": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for k, (begin, end) in enumerate(places)
    }
    return safetensors_raw(json.dumps(header).encode(), bytes(size))


ENTRY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
SAFETENSORS = {
    "header of 101 MB": (struct.pack("<Q", 101_000_000) + b"{" + bytes(100), "the format's limit is 100 MB"),
    "header of 16 EB": (b"\xff" * 8 + b"{}", "the format's limit is 100 MB"),
    "header longer than the file": (struct.pack("<Q", 5000) + b"{}", "promises 5008 bytes, 10 are there"),
    "header without an end": (safetensors_raw(b'{"x": '), "is not JSON"),
    "header that is a list": (safetensors_raw(b"[1]"), "starts with '{'"),
    "header after a space": (safetensors_raw(b" {}"), "starts with '{'"),
    "header after a mark": (safetensors_raw(b"\xef\xbb\xbf{}"), "starts with '{'"),
    "header that is not UTF-8": (safetensors_raw(b'{"\xff\xfe": 1}'), "is not JSON in UTF-8"),
    "header and more": (safetensors_raw(b"{}{}"), "is not JSON"),
    "header nested deep": (safetensors_raw(b'{"x":' + b"[" * 100_000), "is not JSON"),
    "number of 10000 digits": (safetensors_raw(b'{"x":' + b"9" * 10_000 + b"}"), "is not JSON"),
    "name twice": (safetensors_raw(b'{"x":' + ENTRY + b',"x":' + ENTRY + b"}"), "has 'x' twice"),
    "field twice": (safetensors_raw(b'{"x":{"dtype":"U8","dtype":"I8"}}'), "has 'dtype' twice"),
    "metadata of numbers": (safetensors_raw(b'{"__metadata__":{"step":3}}'), "must map text to text"),
    "metadata of a list": (safetensors_raw(b'{"__metadata__":["a"]}'), "must map text to text"),
    "entry that is a number": (safetensors_raw(b'{"x":3}'), "needs dtype, shape and data_offsets"),
    "no type": (one(dtype=None), "needs dtype, shape and data_offsets"),
    "no shape": (one(shape=None), "needs dtype, shape and data_offsets"),
    "no place": (one(data_offsets=None), "needs dtype, shape and data_offsets"),
    "unknown type": (one(dtype="F33"), "has the dtype 'F33'"),
    "type of half a byte": (one(dtype="F4"), "has the dtype 'F4'"),
    "type that is a number": (one(dtype=3), "has the dtype a value of type int"),
    "shape of fractions": (one(shape=[2.0]), "whole numbers"),
    "shape of flags": (one(shape=[True, 2]), "whole numbers"),
    "shape that is a number": (one(shape=2), "whole numbers"),
    "negative shape": (one(shape=[-2, -1]), "none negative"),
    "shape beyond counting": (one(shape=[1 << 62, 1 << 62]), "needs 85070591730234615865843651857942052864 bytes"),
    "shape of forty axes": (one(shape=[1] * 39 + [2]), "at most 32 whole numbers"),
    "shape of more than the place": (one(shape=[3]), "needs 12 bytes, its data_offsets give 8"),
    "place of three numbers": (one(data_offsets=[0, 4, 8]), "a begin and an end"),
    "place backwards": (one(data_offsets=[8, 0]), "a begin and an end"),
    "negative place": (one(data_offsets=[-8, 0]), "none negative"),
    "overlap": (many((0, 10), (8, 16)), "an overlap between 't0' and tensor 't1': byte 8 instead of 10"),
    "same place twice": (many((0, 16), (0, 16)), "an overlap"),
    "hole": (many((0, 6), (8, 16)), "a hole between 't0' and tensor 't1': byte 8 instead of 6"),
    "hole at the start": (many((4, 16)), "a hole between 'the header' and tensor 't0'"),
    "buffer cut short": (many((0, 16), size=9), "promises 16 bytes of tensors, 9 are there"),
    "bytes after the last tensor": (many((0, 16), size=20), "4 bytes follow the last tensor"),
    "bytes without tensors": (safetensors_raw(b"{}", b"GIF89a"), "6 bytes follow the last tensor"),
}


# zip files


def changed(position: int, **changes: object) -> bytes:
    """The good zip file with one entry changed."""
    fields = {field: getattr(GOOD[position], field) for field in ("name", "data", "method", "flags", "here")} | changes
    return zip_bytes([*GOOD[:position], Entry(**fields), *GOOD[position + 1 :]])


def patched(data: bytes, mark: bytes, offset: int, patch: bytes) -> bytes:
    """``data`` with other bytes at ``offset`` from the last ``mark``."""
    at = data.rindex(mark) + offset
    return data[:at] + patch + data[at + len(patch) :]


ZIP, WIDE = zip_bytes(GOOD), zip_bytes(GOOD, wide=True)
ZIPS = {
    "bytes after the end": (ZIP + b"GIF89a", "6 bytes follow the end of the zip file"),
    "no directory": (ZIP[: ZIP.rindex(b"PK\5\6")], "the zip file's directory is missing"),
    "no PyTorch file": (zip_bytes([Entry("model/weights", b"1")]), "has one NAME/data.pkl, this one has 0"),
    "data.pkl at the top": (zip_bytes([Entry("data.pkl", b"1")]), "has one NAME/data.pkl, this one has 0"),
    "two objects": (zip_bytes([*GOOD, Entry("other/data.pkl", b"1")]), "has one NAME/data.pkl, this one has 2"),
    "entry twice": (zip_bytes([*GOOD, GOOD[0]]), "has the entry 'archive/data.pkl' twice"),
    "entry in another folder": (zip_bytes([*GOOD, Entry("../../x", b"1")]), "points outside"),
    "entry at the root": (zip_bytes([*GOOD, Entry("/etc/cron.d/x", b"1")]), "points outside"),
    "entry with a backslash": (zip_bytes([*GOOD, Entry("..\\x", b"1")]), "points outside"),
    "another name at its place": (changed(2, here="archive/data/1"), "another name in the directory"),
    "encrypted object": (changed(0, flags=1), "'archive/data.pkl' is encrypted"),
    "encrypted storage": (changed(2, flags=1), "'archive/data/0' is encrypted"),
    "deflated object": (changed(0, method=8), "'archive/data.pkl' is compressed (method 8)"),
    "deflated storage": (changed(2, method=8), "'archive/data/0' is compressed (method 8)"),
    "storage larger than the file": (changed(2, size=1 << 20), "has 1048576 bytes, its pickle names 16"),
    "object larger than the file": (changed(0, size=1 << 20), "truncated: the zip entry 'archive/data.pkl'"),
    "object of 3 GB": (changed(0, size=3 << 30), "truncated: the zip entry 'archive/data.pkl'"),
    "storage too short": (changed(2, data=STORAGE[:12]), "has 12 bytes, its pickle names 16"),
    "big-endian": (changed(1, data=b"big"), "only little-endian files"),
    "byte order of 1 MB": (changed(1, data=bytes(1 << 20)), "has 1048576 bytes, at most 16"),
    "too many entries promised": (zip_bytes(GOOD, count=9), "promises 9 entries and has 4"),
    "directory elsewhere": (zip_bytes(GOOD, shift=7), "does not end where it should"),
    "directory before the file": (patched(ZIP, b"PK\5\6", 16, struct.pack("<L", 0)), "does not end where it should"),
    "one of several parts": (patched(ZIP, b"PK\5\6", 4, b"\1\0"), "one of several parts"),
    "damaged directory": (patched(ZIP, b"PK\1\2", 0, b"XX"), "directory is damaged"),
    "name beyond the directory": (patched(ZIP, b"PK\1\2", 28, b"\xff\xff"), "directory is damaged"),
    "name that is not UTF-8": (patched(ZIP, b"PK\1\2", 46, b"\xff"), "is not UTF-8"),
    "entry elsewhere": (patched(ZIP, b"archive/data/0", -4, struct.pack("<L", 5)), "where the directory has it"),
    "64-bit record beyond the file": (patched(WIDE, b"PK\6\7", 8, b"\xff" * 8), "beyond its end"),
    "64-bit record elsewhere": (patched(WIDE, b"PK\6\7", 8, bytes(8)), "is not at byte 0"),
    "no 64-bit sizes": (patched(WIDE, b"archive/version\1", 15, b"\2"), "lacks its 64-bit sizes"),
}


# the container of PyTorch before 1.6

HEAD = make.program(make.LEGACY_MAGIC)
RAW = {"0": (4, STORAGE)}
OBJECT = HEAD + make.program(1001) + make.program({"little_endian": True}) + make.program({"x": FOUR})
LEGACY = {
    "another magic number": (make.program(0x1950A86A20F9469CFC6D), "a plain Python pickle"),
    "another protocol": (HEAD + make.program(1002), "protocol must be 1001"),
    "big-endian": (make.legacy_bytes({"x": FOUR}, RAW, little=False), "only little-endian files"),
    "unknown machine": (HEAD + make.program(1001) + make.program(None), "only little-endian files"),
    "object missing": (HEAD + make.program(1001) + make.program({"little_endian": True}), "wants 1 bytes more, 0 are"),
    "keys that are a dict": (OBJECT + make.program({}), "list of storages is a value of type dict"),
    "keys that are numbers": (OBJECT + make.program([0]), "instead of a list of texts"),
    "storage not listed": (OBJECT + make.program([]), "0 storages are listed and 1 named"),
    "storage not named": (make.legacy_bytes({}, RAW), "1 storages are listed and 0 named"),
    "storage listed twice": (OBJECT + make.program(["0", "0"]), "2 storages are listed and 1 named"),
    "storage without a size": (OBJECT + make.program(["0"]) + b"abc", "truncated: storage '0'"),
    "storage of another size": (make.legacy_bytes({"x": FOUR}, {"0": (3, STORAGE)}), "has 3 elements"),
    "storage of negative size": (make.legacy_bytes({"x": FOUR}, {"0": (-4, STORAGE)}), "has -4 elements"),
    "storage cut short": (make.legacy_bytes({"x": FOUR}, {"0": (4, STORAGE[:15])}), "truncated: storage '0' promises"),
    "bytes after the last storage": (make.legacy_bytes({"x": FOUR}, RAW) + b"GIF89a", "6 bytes follow"),
}
