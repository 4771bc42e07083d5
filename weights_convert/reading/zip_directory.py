"""Finds the entries of a zip file that are stored as they are: name -> where its bytes lie in the file.

A zip file ends with a table of contents, the central directory, and a closing record that says where the table is.
Large files have a second, 64-bit closing record. PyTorch stores its storages uncompressed, so a tensor can be read
where it lies; this reader therefore gives places and never unpacks anything. Sizes are checked. Checksums are not:
PyTorch can be told not to write them.

Source: APPNOTE.TXT 6.3, sections 4.3.7 (local header), 4.3.12 (central), 4.3.14-16 (closing records), 4.5.3 (64-bit).
"""

import os
import struct
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from weights_convert.reading.errors import CheckpointError, quoted

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
CLOSING = struct.Struct("<4s4H2LH")
LOCATOR_64 = struct.Struct("<4sLQL")
CLOSING_64 = struct.Struct("<4sQ2H2L4Q")
MOST_DIRECTORY_BYTES = 1 << 26
ENCRYPTED = 1
IN_64_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One entry: ``size`` bytes stored with ``method`` (0 is uncompressed) after the local header at ``header``."""

    name: str
    method: int
    flags: int
    packed: int
    size: int
    header: int


def entries(file: BinaryIO) -> dict[str, Entry]:
    """Every entry of the zip file by name; CheckpointError if its table of contents is damaged or ambiguous."""
    count, size, start = directory(file)
    if size > MOST_DIRECTORY_BYTES:
        raise CheckpointError(f"the zip directory has {size} bytes, which no checkpoint needs")
    file.seek(start)
    table, found, at = file.read(size), [], 0
    while at < len(table):
        entry, at = central_entry(table, at)
        check_name(entry.name)
        found.append(entry)
    if len(found) != count:
        raise CheckpointError(f"the zip directory promises {count} entries and has {len(found)}")
    twice = [name for name, times in Counter(entry.name for entry in found).items() if times > 1]
    if twice:
        raise CheckpointError(f"the zip file has the entry {quoted(twice[0])} twice")
    return {entry.name: entry for entry in found}


def directory(file: BinaryIO) -> tuple[int, int, int]:
    """(number of entries, bytes, position) of the central directory, from the closing record."""
    file_bytes = os.fstat(file.fileno()).st_size
    tail_start = max(0, file_bytes - CLOSING.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < CLOSING.size:
        raise CheckpointError(
            f"truncated: the zip file's directory is missing from its end, {file_bytes} bytes are there"
        )
    _, disk, start_disk, _, count, size, start, comment = CLOSING.unpack_from(tail, at)
    if len(tail) - at != CLOSING.size + comment:
        raise CheckpointError(f"{len(tail) - at - CLOSING.size - comment} bytes follow the end of the zip file")
    end = tail_start + at
    if at >= LOCATOR_64.size and tail[at - LOCATOR_64.size :].startswith(b"PK\6\7"):
        count, size, start, end = directory_64(file, LOCATOR_64.unpack_from(tail, at - LOCATOR_64.size)[2], end)
    if disk or start_disk:
        raise CheckpointError("the zip file is one of several parts")
    if start + size != end:
        raise CheckpointError(f"the zip directory of {size} bytes at {start} does not end where it should, at {end}")
    return count, size, start


def directory_64(file: BinaryIO, position: int, end: int) -> tuple[int, int, int, int]:
    """(number of entries, bytes, position, expected end) from the 64-bit closing record."""
    if position + CLOSING_64.size > end:
        raise CheckpointError(f"the 64-bit record of the zip file should be at byte {position}, beyond its end")
    file.seek(position)
    mark, _, _, _, _, _, _, count, size, start = CLOSING_64.unpack(file.read(CLOSING_64.size))
    if mark != b"PK\6\6":
        raise CheckpointError(f"the 64-bit record of the zip file is not at byte {position}, where it should be")
    return count, size, start, position


def central_entry(table: bytes, at: int) -> tuple[Entry, int]:
    """The entry of the central directory at ``at``, and where the next one starts."""
    if len(table) - at < CENTRAL.size:
        raise CheckpointError("the zip directory ends inside an entry")
    fields = CENTRAL.unpack_from(table, at)
    mark, _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes, comment_bytes = fields[:13]
    extra_at = at + CENTRAL.size + name_bytes
    end = extra_at + extra_bytes + comment_bytes
    if mark != b"PK\1\2" or end > len(table):
        raise CheckpointError(f"the zip directory is damaged at its byte {at}")
    size, packed, header = in_64_bits(table[extra_at : extra_at + extra_bytes], [size, packed, fields[16]])
    name = decoded(table[at + CENTRAL.size : extra_at])
    return Entry(name, method, flags, packed, size, header), end


def decoded(name: bytes) -> str:
    """An entry's name, which PyTorch writes as UTF-8."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"a name in the zip file is not UTF-8: {name[:80]!r}") from None


def in_64_bits(extra: bytes, values: list[int]) -> list[int]:
    """``values`` with those that did not fit into 32 bits taken from the extra field of kind 1."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        sort, length = struct.unpack_from("<2H", extra, at)
        wide = extra[at + 4 : at + 4 + length] if sort == 1 else wide
        at += 4 + length
    missing = values.count(IN_64_BITS)
    if 8 * missing > len(wide):
        raise CheckpointError("an entry of the zip file lacks its 64-bit sizes")
    large = iter(struct.unpack_from(f"<{missing}Q", wide))
    return [next(large) if value == IN_64_BITS else value for value in values]


def check_name(name: str) -> None:
    """Refuses names that mean another folder: no checkpoint has them."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise CheckpointError(f"the zip file has an entry named {quoted(name)}, which points outside")


def locate(file: BinaryIO, entry: Entry) -> int:
    """Where the bytes of ``entry`` start in the file; they must be stored as they are and lie inside it."""
    name = quoted(entry.name)
    if entry.flags & ENCRYPTED:
        raise CheckpointError(f"the zip entry {name} is encrypted; unpack it and save it again")
    if entry.method or entry.packed != entry.size:
        raise CheckpointError(
            f"the zip entry {name} is compressed (method {entry.method}); PyTorch stores them as they are"
        )
    file.seek(entry.header)
    header = file.read(LOCAL.size)
    if len(header) < LOCAL.size or header[:4] != b"PK\3\4":
        raise CheckpointError(f"the zip entry {name} is not at byte {entry.header}, where the directory has it")
    name_bytes, extra_bytes = LOCAL.unpack(header)[-2:]
    if file.read(name_bytes) != entry.name.encode():
        raise CheckpointError(f"the zip entry {name} has another name in the directory than at its own place")
    start = entry.header + LOCAL.size + name_bytes + extra_bytes
    if start + entry.size > os.fstat(file.fileno()).st_size:
        raise CheckpointError(
            f"truncated: the zip entry {name} ends at byte {start + entry.size}, beyond the file's end"
        )
    return start
