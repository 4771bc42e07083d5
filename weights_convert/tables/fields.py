"""Numbers that other people's files give: fields of a ``config.json``, axes of a tensor, counts in a tensor's name.

Nothing in them is trusted: each helper returns a checked value or raises a ValueError of one sentence that names the
file (``where``) and the field, or the tensor. A field that is absent or null has its default.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from weights_convert.engine import Tensors

Data = Mapping[str, Any]

LARGEST = 1_000_000  # no width, length or vocabulary of a public model comes near
LEVELS = 8  # resolutions of a network; public ones have 3 to 5
DEEPEST = 100  # blocks or layers in a row; public ones have up to 32
_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


def shown(value: Any) -> str:
    """A value from a file on one line of bounded length."""
    return _SHORT.repr(value)


def fail(where: str, key: str, value: Any, expected: str) -> ValueError:
    """The error of every field."""
    return ValueError(f"{where}: {key} is {shown(value)}, but {expected}")


def given(data: Data, key: str, default: Any) -> Any:
    """The field's value; ``default`` where it is absent or null."""
    value = data.get(key)
    return default if value is None else value


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether this is an integer (True and 1.0 are none) from ``low`` to ``high``."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def whole(data: Data, key: str, default: int, where: str, low: int = 1, high: int = LARGEST) -> int:
    """A whole number from ``low`` to ``high``."""
    value = given(data, key, default)
    if not is_whole(value, low, high):
        raise fail(where, key, value, f"a whole number from {low} to {high} is expected")
    return value


def wholes(
    data: Data, key: str, default: Any, where: str, levels: int | None = None, low: int = 1, high: int = LARGEST
) -> tuple[int, ...]:
    """A list of whole numbers; with ``levels``, a list of that many or one number that stands for all of them."""
    value = given(data, key, default)
    numbers = [value] * levels if levels and is_whole(value, low, high) else value
    right = isinstance(numbers, list | tuple) and len(numbers) in ([levels] if levels else range(1, LEVELS + 1))
    if not right or not all(is_whole(n, low, high) for n in numbers):
        many = f"one or a list of {levels} whole numbers" if levels else f"a list of 1 to {LEVELS} whole numbers"
        raise fail(where, key, value, f"{many} from {low} to {high} is expected")
    return tuple(numbers)


def number(data: Data, key: str, default: float, where: str, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``."""
    value = given(data, key, default)
    right = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not right or not math.isfinite(value):
        raise fail(where, key, value, f"a number from {low:g} to {high:g} is expected")
    return value


def flag(data: Data, key: str, default: bool, where: str) -> bool:
    """True or false."""
    value = given(data, key, default)
    if not isinstance(value, bool):
        raise fail(where, key, value, "true or false is expected")
    return value


def choice(data: Data, key: str, default: str, known: Iterable[str], where: str) -> str:
    """One of the ``known`` words."""
    value, known = given(data, key, default), list(known)
    if value not in known:
        raise fail(where, key, value, f"one of {', '.join(known)} is expected")
    return value


def words(data: Data, key: str, where: str) -> str:
    """A list of words, run together; empty where there is none."""
    value = given(data, key, [])
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise fail(where, key, value, "a list of names is expected")
    return "".join(value)


def fixed(data: Data, ours: Data, where: str, model: str) -> None:
    """Raises ValueError where the file asks for anything else than what ``model`` does."""
    for key, value in ours.items():
        if data.get(key, value) != value:
            raise fail(where, key, data[key], f"this {model} knows only {value!r}")


def divides(where: str, key: str, parts: int, widths: Iterable[int]) -> None:
    """Raises ValueError unless ``parts``, the field ``key``, divides each of ``widths``."""
    uneven = [width for width in widths if width % parts]
    if uneven:
        raise ValueError(f"{where}: {key} is {parts}, which does not divide the width {uneven[0]}")


def axis(tensors: Tensors, key: str, n: int, ndims: tuple[int, ...]) -> int:
    """The length of a tensor's axis ``n``. KeyError if the tensor is missing; ValueError if its rank is none of
    ``ndims`` or an axis is empty.
    """
    shape = tuple(tensors[key].shape)
    if len(shape) not in ndims or 0 in shape:
        ranks = " or ".join(map(str, ndims))
        raise ValueError(f"tensor '{key}' has the shape {shown(shape)}, but {ranks} axes, none empty, are expected")
    return shape[n]


def index(digits: str, key: str, tensors: Tensors) -> int:
    """The number ``digits`` in the name ``key``; ValueError if it is not below the number of tensors."""
    if len(digits) > 9 or int(digits) >= len(tensors):
        raise ValueError(f"tensor {shown(key)} has a number in its name that {len(tensors)} tensors do not allow")
    return int(digits)
