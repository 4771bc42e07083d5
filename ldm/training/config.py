"""The numbers of a training run: a frozen dataclass read from TOML or JSON, with every mistake named.

:func:`read` makes any frozen dataclass from plain data, dataclasses inside dataclasses included, so that a task reads
its own tables (``[model]``, ``[data]``, ``[loss]``) by the same rules:

    batch = 64
    [optimiser]
    learning_rate = 3e-4
    [model.unet]
    channels = [64, 128, 192]

    config = load(Path("recipe.toml"))
    unet = read(UNetConfig, config.model["unet"], "model.unet")

Only keys that are fields are taken, a whole number is no text, and a field says its range by :func:`within`.
"""

import dataclasses
import json
import math
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ldm.schedule import check_name
from ldm.training.optimiser import OptimiserConfig
from ldm.training.step import DTYPES, REMAT

T = TypeVar("T")
COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def within(default: Any, *limits: tuple[str, float]) -> Any:
    """A dataclass field whose numbers have limits, such as ``within(0.9, (">=", 0), ("<", 1))``."""
    return field(default=default, metadata={"limits": limits})


def one_of(default: str, *names: str) -> Any:
    """A dataclass field that is one of ``names``."""
    return field(default=default, metadata={"names": names})


@dataclass(frozen=True)
class TrainConfig:
    """What every training run has, and the tables ``data``, ``model`` and ``loss``, which its task reads.

    seed, batch         of all randomness; examples a step, of all devices and processes together
    accumulate          microbatches that a batch is cut into
    dtype, ema          of the weights within a step; decay of the average of the parameters, 0: none
    remat               what is computed again on the way back to save memory: ``ldm.training.step.make_step``
    fsdp                devices that the state is cut over; what is left of the devices is data parallel
    log_every           steps of one line of metrics
    checkpoint_every    steps between checkpoints, of which the newest ``keep`` are kept
    sample_every        steps between sheets of samples; 0: none
    base                a folder with the model to begin from, or to take frozen parts from
    layers              regular expressions of the names of parameters to train; none: all
    """

    seed: int = within(0, (">=", 0), ("<", 2**31))
    batch: int = within(64, (">", 0))
    accumulate: int = within(1, (">", 0))
    dtype: str = one_of("float32", *DTYPES)
    remat: str = one_of("none", *REMAT)
    ema: float = within(0.999, (">=", 0), ("<", 1))
    optimiser: OptimiserConfig = OptimiserConfig()  # noqa: RUF009
    fsdp: int = within(1, (">", 0))
    log_every: int = within(50, (">", 0))
    checkpoint_every: int = within(1000, (">", 0))
    sample_every: int = within(1000, (">=", 0))
    keep: int = within(3, (">", 0))
    data: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        check(self)
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        for pattern in self.layers:
            check_pattern(pattern)


def check_pattern(pattern: str) -> None:
    """Raises ValueError if ``pattern`` is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"layers holds {pattern!r}, which is no regular expression ({error})") from None


# ---------------------------------------------------------------------------------------------------------------------
# Files


def load(path: Path) -> TrainConfig:
    """The configuration in a ``.toml`` or ``.json`` file. Raises ValueError, naming the file and the key."""
    parsers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in parsers:
        raise ValueError(f"{path}: a configuration is a .toml or a .json file")
    try:
        return read(TrainConfig, parsers[path.suffix](path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # also broken TOML, JSON and UTF-8
        raise ValueError(f"{path}: {error}") from None


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it: dictionaries, lists, numbers and text. :func:`read` is the way back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """One phrase for each key in which two plain configurations differ: "optimiser.clip was 1.0 and is 2.0"."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        words = ["nothing" if value is MISSING else json.dumps(value) for value in (old, new)]
        return [] if old == new else [f"{where} was {words[0]} and is {words[1]}"]
    pairs = {key: (old.get(key, MISSING), new.get(key, MISSING)) for key in sorted(set(old) | set(new))}
    return [words for key, pair in pairs.items() for words in differences(*pair, _join(where, key))]


# ---------------------------------------------------------------------------------------------------------------------
# From plain data to dataclasses


def read(cls: type[T], mapping: Any, where: str = "") -> T:
    """``cls`` from a mapping of its fields. ``where``: the dotted key that the mapping stands under, for messages.

    Raises ValueError of one sentence for a key that is no field, a field that is missing, a value of another type, one
    out of its range, and whatever ``cls`` itself refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where or 'a configuration'} must be a table of keys and values, got {mapping!r}")
    kinds, known = get_type_hints(cls), [f.name for f in fields(cls) if f.init]
    for key in mapping:
        check_name(f"key in {where}" if where else "key", key, known)
    needed = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in mapping]
    if missing:
        raise ValueError(f"{_join(where, missing[0])} is missing")
    values = {key: converted(value, kinds[key], _join(where, key)) for key, value in mapping.items()}
    check(cls, values, where)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def converted(value: Any, kind: Any, where: str) -> Any:
    """``value`` of JSON or TOML as the type ``kind``: a number, text, tuple, mapping, dataclass or one of several."""
    if is_dataclass(kind):
        return read(kind, value, where)
    return CONVERTERS.get(get_origin(kind), _scalar)(value, kind, where)


def _scalar(value: Any, kind: Any, where: str) -> Any:
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind or (kind is float and math.isnan(value)):
        raise ValueError(f"{where} must be {TYPE_NAMES.get(kind, kind)}, got {value!r}")
    return value


def _tuple(value: Any, kind: Any, where: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {value!r}")
    inner = get_args(kind)
    inner = inner[:1] * len(value) if inner[1:] == (...,) else inner
    if len(inner) != len(value):
        raise ValueError(f"{where} must be a list of {len(inner)}, got {value!r}")
    return tuple(converted(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, inner, strict=True)))


def _mapping(value: Any, kind: Any, where: str) -> Mapping:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a table of keys and values, got {value!r}")
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:  # TOML has dates too
        raise ValueError(f"{where} must hold numbers, texts, lists and tables only ({error})") from None


def _union(value: Any, kind: Any, where: str) -> Any:
    """The first of the types that fits; None where it is one of them."""
    kinds = [inner for inner in get_args(kind) if inner is not NoneType]
    if value is None and len(kinds) < len(get_args(kind)):
        return None
    for inner in kinds[:-1]:
        try:
            return converted(value, inner, where)
        except ValueError:
            continue
    return converted(value, kinds[-1], where)


CONVERTERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    tuple: _tuple,
    dict: _mapping,
    Mapping: _mapping,
    Union: _union,
    UnionType: _union,
}


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


def check(config: Any, values: Mapping[str, Any] | None = None, where: str = "") -> None:
    """Raises ValueError if a value of a dataclass (or of ``values``, for a class) is out of its field's range."""
    values = {f.name: getattr(config, f.name) for f in fields(config)} if values is None else values
    for f in fields(config):
        if f.name in values and f.metadata:
            _check_value(values[f.name], f.metadata, _join(where, f.name))


def _check_value(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    if "names" in metadata:
        check_name(where, value, metadata["names"])
    limits = metadata.get("limits", ())
    if not all(COMPARISONS[sign](value, bound) for sign, bound in limits):
        raise ValueError(f"{where} must be {' and '.join(f'{sign} {bound}' for sign, bound in limits)}, got {value!r}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
