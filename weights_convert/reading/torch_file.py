"""Reads what ``torch.save`` wrote, in both of its containers, and TorchScript archives.

The zip container (PyTorch 1.6 and later):

    NAME/data.pkl    the pickled object          NAME/data/KEY    the raw numbers of storage KEY, stored as they are
    NAME/byteorder   "little" (since 2.1)        NAME/version     "3"

TorchScript archives (OpenAI's CLIP) have ``constants.pkl`` and code besides; only the tensors are read.

The older container is five pickles, one after another (a magic number, the protocol 1001, facts about the machine, the
object, the list of storage keys) and then, for each key, an int64 number of elements and the raw numbers.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.pickle_machine import Machine, Meaning, Record
from weights_convert.reading.pickle_source import MOST_BYTES, Source
from weights_convert.reading.state_dict import named_tensors
from weights_convert.reading.tensor import Checkpoint, LazyTensor, check_expansion, in_c_order
from weights_convert.reading.torch_objects import TORCH, Storage, Strided, load_storage
from weights_convert.reading.zip_directory import Entry, entries, locate

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class Storages:
    """Every storage that a pickle names, by key; the same key must have the same type and size each time."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def load(self, pid: object) -> Storage | Record:
        """The storage of a persistent id, remembered; of ("module", class, file, source) the class's bare name."""
        if isinstance(pid, tuple) and len(pid) == 4 and type(pid[0]) is str and isinstance(pid[1], Record):
            return pid[1]
        storage = load_storage(pid)
        first = self.by_key.setdefault(storage.key, storage)
        if first.whole * first.dtype.itemsize != storage.whole * storage.dtype.itemsize:
            raise CheckpointError(f"storage {quoted(storage.key)} is named with two sizes")
        return storage

    @property
    def meaning(self) -> Meaning:
        """PyTorch's names, with these storages."""
        return Meaning(TORCH.admit, TORCH.call, self.load)


def read_zip(path: Path) -> Checkpoint:
    """The tensors of a zip container or a TorchScript archive."""
    with open(path, "rb") as file:
        table = entries(file)
        folder = archive_name(table)
        check_byteorder(file, table.get(f"{folder}/byteorder"))
        text = stored(file, table[f"{folder}/data.pkl"], MOST_BYTES)
        storages = Storages()
        root = Machine(Source(BytesIO(text), len(text)), storages.meaning).run()
        places = {
            key: zip_place(file, table.get(f"{folder}/data/{key}"), storage) for key, storage in storages.by_key.items()
        }
        return checkpoint(path, root, places, os.fstat(file.fileno()).st_size)


def archive_name(table: dict[str, Entry]) -> str:
    """NAME of the one NAME/data.pkl in a zip file."""
    names = [name.split("/")[0] for name in table if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise CheckpointError(f"a zip file saved by PyTorch has one NAME/data.pkl, this one has {len(names)}")
    return names[0]


def check_byteorder(file: BinaryIO, entry: Entry | None) -> None:
    """Numbers must be little-endian, which files from before 2.1 do not say."""
    order = b"little" if entry is None else stored(file, entry, 16)
    if order.strip() != b"little":
        raise CheckpointError(f"its byte order is {order!r}; only little-endian files are read")


def stored(file: BinaryIO, entry: Entry, most: int) -> bytes:
    """The bytes of a zip entry of at most ``most`` bytes."""
    start = locate(file, entry)
    if entry.size > most:
        raise CheckpointError(f"the zip entry {quoted(entry.name)} has {entry.size} bytes, at most {most} make sense")
    file.seek(start)
    return file.read(entry.size)


def zip_place(file: BinaryIO, entry: Entry | None, storage: Storage) -> int:
    """Where a storage starts in the file; its entry must have the size that the pickle names."""
    if entry is None:
        raise CheckpointError(f"the storage {quoted(storage.key)} is missing from the zip file")
    need = storage.whole * storage.dtype.itemsize
    if entry.size != need:
        raise CheckpointError(f"storage {quoted(storage.key)} has {entry.size} bytes, its pickle names {need}")
    return locate(file, entry)


def read_legacy(path: Path) -> Checkpoint:
    """The tensors of the older container."""
    with open(path, "rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        storages = Storages()

        def unpickled() -> object:
            return Machine(Source(file, file_bytes - file.tell()), storages.meaning).run()

        magic = unpickled()
        if type(magic) is not int or magic != LEGACY_MAGIC:
            raise CheckpointError("it is a plain Python pickle, not a file saved by PyTorch; nothing in it was run")
        protocol = unpickled()
        if type(protocol) is not int or protocol != LEGACY_PROTOCOL:
            raise CheckpointError(f"the old PyTorch container's protocol must be {LEGACY_PROTOCOL}")
        machine = unpickled()
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError("it was not saved on a little-endian machine; only little-endian files are read")
        root = unpickled()
        places = legacy_places(file, unpickled(), storages.by_key, file_bytes)
        return checkpoint(path, root, places, file_bytes)


def legacy_places(file: BinaryIO, keys: object, storages: dict[str, Storage], file_bytes: int) -> dict[str, int]:
    """Where each storage starts: they follow the last pickle in the order of ``keys``, each after its int64 size."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise CheckpointError(f"the list of storages is {kind(keys)} instead of a list of texts")
    if len(set(keys)) != len(keys) or set(keys) != storages.keys():
        raise CheckpointError(f"{len(keys)} storages are listed and {len(storages)} named, or not the same ones")
    places = {}
    for key in keys:
        end_of(file, 8, file_bytes, key)
        whole = int.from_bytes(file.read(8), "little", signed=True)
        if whole != storages[key].whole:
            raise CheckpointError(f"storage {quoted(key)} has {whole} elements, its pickle names {storages[key].whole}")
        places[key] = file.tell()
        file.seek(end_of(file, whole * storages[key].dtype.itemsize, file_bytes, key))
    if file.tell() != file_bytes:
        raise CheckpointError(f"{file_bytes - file.tell()} bytes follow the last storage; none should")
    return places


def end_of(file: BinaryIO, count: int, file_bytes: int, key: str) -> int:
    """The position ``count`` bytes further on, if the file reaches that far."""
    end = file.tell() + count
    if end > file_bytes:
        raise CheckpointError(f"truncated: storage {quoted(key)} promises {end} bytes, {file_bytes} are there")
    return end


def checkpoint(path: Path, root: object, places: dict[str, int], file_bytes: int) -> Checkpoint:
    """The tensors in ``root`` at their places in the file."""
    found, extras = named_tensors(root)
    tensors = {name: lazy(path, name, tensor, places, file_bytes) for name, tensor in found.items()}
    return Checkpoint(tensors, {}, extras, str(path))


def lazy(path: Path, name: str, tensor: Strided, places: dict[str, int], file_bytes: int) -> LazyTensor:
    """One tensor at its place in the file."""
    check_expansion(quoted(name), tensor.shape, tensor.dtype.itemsize, file_bytes)
    strides = None if in_c_order(tensor.shape, tensor.strides) else tensor.strides
    return LazyTensor(tensor.shape, tensor.dtype, path, places[tensor.storage.key] + tensor.start, strides)
