"""The bytes of a pickle, handed out only as far as they are there and as far as a checkpoint can need them."""

from typing import BinaryIO

from weights_convert.reading.errors import CheckpointError

MOST_BYTES = 1 << 26
MOST_NAME_BYTES = 512


class Source:
    """The bytes of a pickle: ``limit`` bytes of ``file`` from where it stands, at most MOST_BYTES of them used."""

    def __init__(self, file: BinaryIO, limit: int):
        self.file, self.left, self.budget = file, limit, MOST_BYTES

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Nothing is allocated for bytes that are not there."""
        if count > self.left:
            raise CheckpointError(f"truncated: its pickle wants {count} bytes more, {self.left} are there")
        if count > self.budget:
            raise CheckpointError(f"the pickle is longer than {MOST_BYTES} bytes: no table of tensors is that long")
        self.left -= count
        self.budget -= count
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"truncated: its pickle wants {count} bytes more, {len(data)} are there")
        return data

    def number(self, count: int) -> int:
        """The next ``count`` bytes as an unsigned little-endian integer."""
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> str:
        """The next ``count`` bytes as UTF-8."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError("a text in the pickle is not UTF-8") from None

    def line(self) -> str:
        """Text up to the next newline."""
        data = self.file.readline(min(self.left, self.budget, MOST_NAME_BYTES))
        self.left -= len(data)
        self.budget -= len(data)
        if not data.endswith(b"\n"):
            raise CheckpointError(f"a name in the pickle has no end within {MOST_NAME_BYTES} bytes")
        return data[:-1].decode("utf-8", "replace")
