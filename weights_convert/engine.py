"""From public names and layouts to ours: rename, transpose, and prove that nothing is missing or left over.

A *layout* maps each of OUR parameter names to the public one (so names that cannot be inverted, such as the flattened
EMA names, are still found) by regular-expression rules applied in turn. A public name may end in

    ``#K``   the K-th third of the tensor along its first axis (fused query, key, value);
    ``%K``   the K-th half of it (fused key and value);
    ``@``    stored input-first, as ours are: used without a transpose.

Everything else follows from the shapes: PyTorch's linear weights are [out, in] and become [in, out]; convolution
weights are OIHW and become HWIO; a 1x1 convolution where we have a linear layer loses its two axes of length 1.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm.models.layers import Params, shapes
from weights_convert.reading import LazyTensor

Rule = tuple[str, str | Callable[[re.Match], str]]
Tensors = Mapping[str, LazyTensor]

LEAVES: tuple[Rule, ...] = ((r"\.(kernel|scale|embedding)$", ".weight"),)
AS_STORED = ("@", "token_embedding.weight", "position_embedding.weight", "positional_embedding")  # tables of vectors
SHOWN = 6  # names per side in an error
PARTS_OF_FUSED = {"#": 3, "%": 2}


@dataclass(frozen=True)
class Layout:
    """One public spelling of a model. ``ignore`` matches whole public names that carry nothing for us."""

    title: str
    rules: Sequence[Rule]
    ignore: str = r"(?!)"

    def public(self, name: str) -> str:
        """The public name, with its ``#K``, ``%K`` or ``@``, of our parameter ``name``."""
        for pattern, replacement in (*self.rules, *LEAVES):
            name = re.sub(pattern, replacement, name)
        return name


def bare(public: str) -> str:
    """The tensor's own name, without ``#K``, ``%K`` or ``@``."""
    return re.sub(r"([#%]\d|@)$", "", public)


def stored_shape(public: str, ours: tuple[int, ...], tensors: Tensors) -> tuple[int, ...]:
    """The shape in which a public file holds our parameter of shape ``ours`` (with the file's own idea of 1x1)."""
    if public.endswith(AS_STORED):
        return ours
    if parts := PARTS_OF_FUSED.get(public[-2:-1]):
        return (parts * ours[-1], *ours[:-1])
    if len(ours) == 4:
        return (ours[3], ours[2], ours[0], ours[1])
    if len(ours) == 2:
        got = tensors[public].shape if public in tensors else ()
        return (ours[1], ours[0]) + (1, 1) * (len(got) == 4)
    return ours


def to_ours(public: str, array: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
    """A view of a public tensor in our layout (no copy)."""
    if parts := PARTS_OF_FUSED.get(public[-2:-1]):
        array = np.split(array, parts)[int(public[-1])]
    if public.endswith(AS_STORED):
        return array
    if len(ours) == 4:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if len(ours) == 2 else array


def to_public(public: str, array: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_ours` for one unfused tensor."""
    if public.endswith(AS_STORED):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def choose(layouts: Iterable[Layout], names: Iterable[str], tensors: Tensors) -> Layout:
    """The layout under which the most of ``names`` are found in ``tensors``."""
    names = list(names)
    return max(layouts, key=lambda layout: sum(bare(layout.public(name)) in tensors for name in names))


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint: what to build, and the public tensors to build it from.

    ``what`` names the part and its file, for errors; ``hint`` says what the tensors look like.
    """

    what: str
    model: type
    config: Any
    tensors: Tensors
    layouts: Sequence[Layout]
    hint: str = ""

    def layout(self) -> Layout:
        """The spelling that the tensors are in."""
        return choose(self.layouts, shapes(self.model, self.config), self.tensors)


@dataclass(frozen=True)
class Comparison:
    """Public names on either side of the bijection that has failed; ``misshapen`` entries are sentences."""

    missing: list[str]
    unknown: list[str]
    misshapen: list[str]

    def __str__(self) -> str:
        sides = [("missing", self.missing), ("unknown", self.unknown), ("of another shape", self.misshapen)]
        return "; ".join(f"{len(names)} {side}: {_some(names)}" for side, names in sides if names)


def compare(part: Part) -> Comparison:
    """Holds a part's tensors against its model's parameters, by name and shape. Nothing is read."""
    layout, tensors, wanted = part.layout(), part.tensors, shapes(part.model, part.config)
    public = {name: layout.public(name) for name in wanted}
    used = {bare(p) for p in public.values()}
    shaped = {bare(p): stored_shape(p, wanted[name].shape, tensors) for name, p in public.items() if bare(p) in tensors}
    wrong = {key: shape for key, shape in shaped.items() if tensors[key].shape != shape}
    return Comparison(
        missing=sorted(used - set(tensors)),
        unknown=sorted(key for key in tensors if key not in used and not re.fullmatch(layout.ignore, key)),
        misshapen=[f"{key} is {tensors[key].shape} but should be {shape}" for key, shape in sorted(wrong.items())],
    )


def fit(part: Part) -> str:
    """How a part's tensors fit, for people: what :func:`compare` finds, or that all is well."""
    return str(compare(part)) or "every tensor used, every parameter filled"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def convert(part: Part, dtype: Any) -> Params:
    """Our parameters from a part's public tensors, cast to ``dtype``; one tensor is in memory at a time besides them.

    Raises one ValueError, naming both sides, unless every tensor is used and every parameter is filled. Warns, with
    the names, where weights are not finite.
    """
    layout, wanted, told = part.layout(), shapes(part.model, part.config), str(compare(part))
    if told:
        raise ValueError(f"{part.what} does not fit the {layout.title} layout: {told}.{part.hint and ' ' + part.hint}")
    params, broken = {}, []
    for name, spec in wanted.items():
        public = layout.public(name)
        view = to_ours(public, part.tensors[bare(public)].read(), spec.shape)
        array = np.array(view, dtype=jnp.dtype(dtype), order="C")
        if not np.isfinite(array).all():
            broken.append(bare(public))
        params[name] = jax.device_put(array)
    if broken:
        warnings.warn(f"{part.what}: NaN or infinite weights in {_some(broken)}", stacklevel=2)
    return params


def below(tensors: Tensors, prefix: str) -> dict[str, LazyTensor]:
    """The tensors under ``prefix``, with the prefix taken off."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
