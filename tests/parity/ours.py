"""This project's side of a parity test: our parameters from an oracle's weights, through the public conversion.

Everything passes through ``weights_convert``, so that each parity test is one of names, transposes and sizes too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ldm.models.layers import Params, bind, shapes
from weights_convert import engine


@dataclass(frozen=True)
class Tensor:
    """What the converter wants of a tensor in a file, for one in memory. The array may be abstract (torch's meta)."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.array.shape)

    def read(self) -> np.ndarray:
        """The numbers."""
        return np.asarray(self.array)


def tensors(weights: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """``weights`` as a file that the converter can read, with ``prefix`` taken off."""
    return {name.removeprefix(prefix): Tensor(array) for name, array in weights.items()}


def convert(model: type, config: Any, weights: Mapping[str, Tensor], layouts: Sequence[engine.Layout]) -> Params:
    """Our float32 parameters of ``model(config)``."""
    return engine.convert(engine.Part("the oracle", model, config, weights, layouts), "float32")


def bijection(model: type, config: Any, weights: Mapping[str, Tensor], layouts: Sequence[engine.Layout]) -> dict:
    """Our names -> public names, having proved them and the shapes one-to-one, with nothing ignored on either side."""
    part = engine.Part("the oracle", model, config, weights, layouts)
    assert str(engine.compare(part)) == ""
    layout = part.layout()
    names = {name: layout.public(name) for name in shapes(model, config)}
    assert {engine.bare(public) for public in names.values()} == set(weights)
    assert len(set(names.values())) == len(names)
    return names


def run(model: type, config: Any, method: str = "__call__") -> Callable:
    """``model(config).method`` as a jitted function of (params, *inputs)."""
    return jax.jit(lambda params, *inputs, **named: getattr(bind(model, config, params), method)(*inputs, **named))


def same(first: Params, second: Params) -> bool:
    """Whether two sets of parameters are equal bit for bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
