"""Opens one checkpoint file: finds out from its first bytes what it is, whatever its name says, and reads it.

Every failure comes out as one CheckpointError that begins with the file's name. Files that people have by mistake (a
git-LFS pointer, a web page saved under the name of a model, an archive) are told apart.
"""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from weights_convert.reading.errors import CheckpointError
from weights_convert.reading.safetensors_file import MOST_HEADER_BYTES, read_safetensors
from weights_convert.reading.tensor import Checkpoint
from weights_convert.reading.torch_file import read_legacy, read_zip

HEAD = 512
READ = "safetensors, and PyTorch's .ckpt, .pt, .pth and .bin"
OTHER_FILES = (  # first bytes, what they begin, what to do
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"PK\5\6", "an empty zip archive", "download it again"),
    (b"GGUF", "a GGUF file", "look for the safetensors file of the same model"),
    (b"\x89HDF", "an HDF5 file (Keras)", "look for the safetensors file of the same model"),
    (b"\x93NUMPY", "a NumPy array", "a checkpoint names its tensors"),
    (b"RIFF", "a media file", "download it again"),
    (b"\x89PNG", "a picture", "download it again"),
)


def read_file(path: str | os.PathLike) -> Checkpoint:
    """The tensors of one checkpoint file, not read yet; the container is recognised by its content.

    Raises CheckpointError, and nothing else, for whatever is wrong with the file: one sentence that names it.
    """
    path = Path(path)
    try:
        return reader(path)(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the edge: a damaged file must not look like a fault of the program that reads it
        raise CheckpointError(f"{path}: damaged in an unforeseen way ({type(error).__name__}: {error})") from error


def reader(path: Path) -> Callable[[Path], Checkpoint]:
    """The function that reads this file, or CheckpointError that says what the file is instead."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise CheckpointError("is a folder, not a file; read_component reads folders of weights")
    if not stat.S_ISREG(mode):
        raise CheckpointError("is not a regular file")
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MOST_HEADER_BYTES:
        return read_safetensors  # first of all: its length may begin with any byte, "{" and "<" too
    check_other_text(head, os.stat(path).st_size)
    check_other_binary(head)
    if head.startswith(b"PK\3\4"):
        return read_zip
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return read_legacy
    if head[5:8] == b"\0\0\0" or head[8:9] == b"{":  # a damaged one, to be told what is wrong with it
        return read_safetensors
    raise CheckpointError(f"begins with {head[:8]!r}, as no checkpoint does; read are {READ}")


def check_other_text(head: bytes, file_bytes: int) -> None:
    """Refuses what a download or a clone leaves instead of the file: nothing, a pointer, a page."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise CheckpointError("is empty (0 bytes); download it again")
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d{1,20})", head)
        real = f" of {int(size[1])} bytes" if size else ""
        raise CheckpointError(
            f"is a git-LFS pointer of {file_bytes} bytes to a file{real}; run `git lfs pull` to get it"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise CheckpointError("is a web page (HTML or XML), saved instead of the file; download it again")
    if text.startswith((b"{", b"[")):
        raise CheckpointError("is JSON text, a configuration or an error message, not weights; download it again")


def check_other_binary(head: bytes) -> None:
    """Refuses known formats that are not checkpoints."""
    for first, what, remedy in OTHER_FILES:
        if head.startswith(first):
            raise CheckpointError(f"is {what}; {remedy}")
    if head[257:262] == b"ustar":
        raise CheckpointError("is a tar archive, as PyTorch wrote before 0.1.10; save it again with a newer PyTorch")
