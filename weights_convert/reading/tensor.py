"""What reading gives: tensors that know where their numbers are, and are read one at a time.

Nothing is held open between reads. ``read`` maps the tensor's own bytes of the file and nothing else; the mapping goes
when the array goes, so converting a file of many gigabytes holds one tensor in memory at a time.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from weights_convert.reading.errors import CheckpointError

EXPANDED_BYTES = 1 << 24  # a tensor may say a number many times (stride 0), up to this much or the size of its file
MOST_AXES = 32


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: ``shape``, ``dtype`` (of NumPy, or of ml_dtypes for bfloat16 and float8), and where it is.

    ``offset`` counts bytes from the start of the file at ``path``; ``strides`` count elements, None for C order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def read(self) -> np.ndarray:
        """The numbers: a read-only view of the file where the tensor is whole and aligned there, else a copy.

        Raises CheckpointError if the file has gone or shrunk since it was opened first. (A file that shrinks while the
        returned array is in use is beyond what a program can catch.)
        """
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        strides = c_strides(self.shape) if self.strides is None else self.strides
        count = span(self.shape, strides)
        try:
            raw = np.memmap(self.path, np.uint8, "r", offset=self.offset, shape=(count * self.dtype.itemsize,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: changed since it was opened, its tensors are gone ({error})") from None
        if in_c_order(self.shape, strides) and (flat := np.asarray(raw).view(self.dtype)).flags.aligned:
            return flat.reshape(self.shape)
        items = np.asarray(raw).view(f"V{self.dtype.itemsize}")  # strides need a type that NumPy itself knows
        steps = tuple(stride * self.dtype.itemsize for stride in strides)
        view = np.lib.stride_tricks.as_strided(items, self.shape, steps, writeable=False)
        return np.array(view, order="C").view(self.dtype)


@dataclass(frozen=True)
class Checkpoint:
    """What one file, or one folder of shards, holds.

    ``tensors`` by flat dotted name, in the order of the file; ``metadata`` is the text of a safetensors header;
    ``extras`` are the plain values beside the tensors (``global_step`` of a training checkpoint); ``source`` says
    where all this came from.
    """

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str] = field(default_factory=dict)
    extras: dict[str, object] = field(default_factory=dict)
    source: str = ""


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-ordered array of ``shape``."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def in_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these strides are those of a C-ordered array, axes of size 1 aside."""
    return all(size == 1 or have == want for size, have, want in zip(shape, strides, c_strides(shape), strict=True))


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements lie from the first to the last of the tensor in its storage; 0 for an empty tensor."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def checked_shape(shape: object, what: str) -> tuple[int, ...]:
    """``shape`` as a tuple of sizes, or CheckpointError; ``what`` names it. True is not 1, and 2.0 is not 2."""
    sizes = isinstance(shape, list | tuple) and all(type(size) is int and 0 <= size < 1 << 63 for size in shape)
    if not sizes or len(shape) > MOST_AXES:
        raise CheckpointError(f"{what} must be at most {MOST_AXES} whole numbers, none negative")
    return tuple(shape)


def check_expansion(name: str, shape: tuple[int, ...], itemsize: int, file_bytes: int) -> None:
    """Refuses a tensor that would unfold to much more memory than its file has bytes."""
    if prod(shape) * itemsize > max(EXPANDED_BYTES, file_bytes):
        raise CheckpointError(
            f"tensor {name} of {prod(shape)} elements repeats numbers to {prod(shape) * itemsize} bytes, "
            f"from a file of {file_bytes}"
        )
