"""LoRA and its kin: small matrices that change the kernels of a trained network.

Shapes: d inputs and o outputs of a kernel, h w its window (a linear layer has none), r rank. A kernel is [d, o] or
[h, w, d, o], so what papers write as (B A) x stands here transposed:

    W' = W + s (alpha / r) down up            down [d, r] or [h, w, d, r], up [r, o]                     LoRA, eq. (3)
                                              up begins at zero, so that at first W' is W

Four forms of the change are known, and the magnitude of DoRA, which may go with any of them:

    LowRank     down up, or down mid up with mid [h, w, r, r] between 1x1 convolutions (LoCon)
    Hadamard    (down1 up1) * (down2 up2), elementwise: rank up to r^2 (LoHa)
    Kronecker   w1 (x) w2, each whole or of low rank (LoKr)
    magnitude   m (W + change) / |W + change|, the norm over the inputs of each output (DoRA, eq. (5))

A *lora* is {part: {name of a kernel: :class:`Change`}}, parts being those of a bundle, "unet" and "text".

Sources: "LoRA" (arXiv:2106.09685), section 4.1; "FedPara" (arXiv:2108.06098), proposition 1, for the Hadamard product;
"LyCORIS" (arXiv:2309.14859), section 3; "DoRA" (arXiv:2402.09353), section 4.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import Array

from ldm.bundle import Bundle
from ldm.files import write_whole
from ldm.models.layers import Params, array_of


class LowRank(NamedTuple):
    """down [d, r] or [h, w, d, r]; up [r, o]; mid [h, w, r, r] or None, with which down is [d, r]."""

    down: Array
    up: Array
    mid: Array | None = None

    def whole(self) -> Array:
        """The product, [d, o] or [h, w, d, o]."""
        inner = self.down if self.mid is None else jnp.einsum("da,hwab->hwdb", self.down, self.mid)
        return inner @ self.up


class Whole(NamedTuple):
    """A factor of :class:`Kronecker` that is not of low rank: [d, o] or [h, w, d, o]."""

    kernel: Array

    def whole(self) -> Array:
        """Itself."""
        return self.kernel


class Hadamard(NamedTuple):
    """The elementwise product of two."""

    first: LowRank
    second: LowRank

    def whole(self) -> Array:
        """The product, [d, o] or [h, w, d, o]."""
        return self.first.whole() * self.second.whole()


class Kronecker(NamedTuple):
    """The Kronecker product of a matrix [d1, o1] and a kernel [(h, w,) d2, o2]: d = d1 d2, o = o1 o2."""

    first: LowRank | Whole
    second: LowRank | Whole

    def whole(self) -> Array:
        """The product, [d, o] or [h, w, d, o]."""
        a, b = self.first.whole(), self.second.whole()
        product = jnp.einsum("ac,...bd->...abcd", a, b)
        return product.reshape(*b.shape[:-2], a.shape[0] * b.shape[-2], a.shape[1] * b.shape[-1])


class Change(NamedTuple):
    """What is done to one kernel. factor [] is alpha / r; magnitude [o], or [d, 1] in older files, or None."""

    form: LowRank | Hadamard | Kronecker
    factor: Array
    magnitude: Array | None = None

    def step(self, kernel: Array) -> Array:
        """What is to be added to ``kernel``, float32, at scale 1."""
        delta = self.factor * self.form.whole().reshape(kernel.shape)
        if self.magnitude is None:
            return delta
        changed = kernel + delta
        spared = kernel.ndim - (1 if self.magnitude.ndim == 1 else 2)  # the axis that has a magnitude for each entry
        axes = tuple(axis for axis in range(kernel.ndim) if axis != spared)
        return self.magnitude * changed / jnp.sqrt(jnp.sum(changed**2, axis=axes, keepdims=True)) - kernel


Lora = Mapping[str, Mapping[str, Change]]


class Adapted(NamedTuple):
    """A kernel with its changes, in the place of the kernel's array: added up wherever the network is run.

    scales [] of each change are run-time values: others compile nothing.
    """

    kernel: Array
    changes: tuple[Change, ...]
    scales: tuple[Array, ...]

    @property
    def dtype(self) -> Any:
        """Of the kernel."""
        return self.kernel.dtype

    def whole(self) -> Array:
        """W', in the kernel's dtype. Every change starts from W itself, so their order does not matter."""
        kernel = array_of(self.kernel)
        wide = kernel.astype(jnp.float32)
        steps = (scale * change.step(wide) for change, scale in zip(self.changes, self.scales, strict=True))
        return sum(steps, wide).astype(kernel.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters and bundles


def with_changes(params: Params, changes: Mapping[str, Change], scale: Any) -> Params:
    """``params`` in which every kernel that is named in ``changes`` is :class:`Adapted`, on top of what it was.

    Raises ValueError naming what ``params`` lack.
    """
    if unknown := sorted(set(changes) - set(params)):
        raise ValueError(f"this model has no {unknown[0]}" + f" and {len(unknown) - 1} more" * (len(unknown) > 1))

    def one(name: str, change: Change) -> Adapted:
        old = params[name] if isinstance(params[name], Adapted) else Adapted(params[name], (), ())
        return Adapted(old.kernel, (*old.changes, change), (*old.scales, jnp.asarray(scale, jnp.float32)))

    return {**params, **{name: one(name, change) for name, change in changes.items()}}


def without_changes(params: Params) -> Params:
    """The base: the very arrays that :func:`with_changes` was given."""
    return {name: w.kernel if isinstance(w, Adapted) else w for name, w in params.items()}


def changed(params: Params) -> Params:
    """The parameters with every :class:`Adapted` kernel in one array; kernels in eight bits stay as they are."""
    return {name: w.whole() if isinstance(w, Adapted) else w for name, w in params.items()}


def merge(params: Params, changes: Mapping[str, Change], scale: Any = 1.0) -> Params:
    """The parameters of W' (the module's equations): a pure function, which training differentiates.

    params, changes: of one part. Kernels that are not named are shared with ``params``; those stay as they are.
    """
    return changed(with_changes(params, changes, scale))


_changed = jax.jit(changed)


def fold(params: Params) -> Params:
    """:func:`changed`, compiled once for every set of scales; what was no change is not copied."""
    return {**params, **_changed({name: w for name, w in params.items() if isinstance(w, Adapted)})}


def with_lora(bundle: Bundle, lora: Lora, scale: float | Mapping[str, float] = 1.0, *, folded: bool = False) -> Bundle:
    """A bundle that draws with a LoRA; several may follow one another, in any order.

    scale   of the whole, or of each part: {"unet": 0.8, "text": 0.5}. A run-time value
    folded  add the changes to the weights now, and for good. Otherwise they are added wherever the network is run:
            as fast within a long run, with a copy of the changed kernels beside the old, and
            :func:`without_lora` gives the model back as it was, to the bit

    Raises ValueError if the bundle has not what the LoRA changes, and for a scale that is no number.
    """
    bundle.require(*lora)
    scales = (
        dict.fromkeys(lora, scale) if not isinstance(scale, Mapping) else {part: scale.get(part, 1) for part in lora}
    )
    for value in scales.values():
        if not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise ValueError(f"the scale of a LoRA must be a finite number, got {value!r}")
    parts = {part: with_changes(bundle.params[part], changes, scales[part]) for part, changes in lora.items()}
    if folded:
        parts = {part: fold(params) for part, params in parts.items()}
    return replace(bundle, params={**bundle.params, **parts})


def without_lora(bundle: Bundle) -> Bundle:
    """The bundle as it was before :func:`with_lora`, unless that folded."""
    return replace(bundle, params={part: without_changes(params) for part, params in bundle.params.items()})


# ---------------------------------------------------------------------------------------------------------------------
# A new one


def fresh(kernels: Mapping[str, Sequence[int]], rank: int, key: Array) -> dict[str, LowRank]:
    """A LoRA that changes nothing yet: down is uniform as a layer's own weights would be, up is zero.

    kernels: {name: shape}. Of a convolution, down has the window and up is 1x1. Section 4.1 of the paper.
    """

    def one(key: Array, shape: Sequence[int]) -> LowRank:
        r = min(rank, *shape[-2:])
        bound = float(np.prod(shape[:-1])) ** -0.5
        down = jax.random.uniform(key, (*shape[:-1], r), minval=-bound, maxval=bound)
        return LowRank(down, jnp.zeros((r, shape[-1])))

    return {name: one(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(sorted(kernels.items()))}


def changes_of(forms: Mapping[str, LowRank], alpha: float) -> dict[str, Change]:
    """What is learned, with its factor alpha / r."""
    return {name: Change(form, jnp.float32(alpha / form.up.shape[0])) for name, form in forms.items()}


def parameters(lora: Lora) -> int:
    """Numbers that were learned: r (d + o) for each kernel of a plain LoRA; factors are none."""
    learned = (jax.tree.leaves((change.form, change.magnitude)) for part in lora.values() for change in part.values())
    return sum(int(np.size(array)) for arrays in learned for array in arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def matrices(change: Change) -> dict[str, np.ndarray]:
    """down, up, mid, alpha and magnitude as public files have them: outputs first, windows last, alpha times factor.

    Raises ValueError for a change that is not :class:`LowRank`.
    """
    form = change.form
    if not isinstance(form, LowRank):
        raise ValueError(f"a change of the form {type(form).__name__} has no down and up to write; LowRank has")
    theirs = lambda m: np.asarray(m, np.float32).transpose((3, 2, 0, 1) if np.ndim(m) == 4 else (1, 0))
    up = theirs(form.up) if form.down.ndim == 2 and form.mid is None else theirs(form.up)[:, :, None, None]
    found = {"down": theirs(form.down), "up": up, "alpha": np.float32(change.factor * form.up.shape[0])}
    if form.mid is not None:
        found |= {"mid": theirs(form.mid), "down": theirs(form.down)[:, :, None, None]}
    if change.magnitude is not None:
        m = np.asarray(change.magnitude, np.float32)
        found["magnitude"] = m if m.ndim == 1 else m.reshape(1, -1)
    return {role: np.asarray(array, order="C") for role, array in found.items()}


ROLES = {role: f"lora_{role}.weight" for role in ("down", "up", "mid")} | {"alpha": "alpha", "magnitude": "dora_scale"}


def save_lora(lora: Lora, path: str | Path) -> None:
    """Writes a LoRA under this project's own names, which ``weights_convert.load_lora`` reads; for other tools'
    names see ``weights_convert.adapters.export``. Raises ValueError as :func:`matrices`."""
    named = {
        f"ldm.{part}.{name.removesuffix('.kernel')}.{ROLES[role]}": array
        for part, changes in lora.items()
        for name, change in changes.items()
        for role, array in matrices(change).items()
    }
    write_whole(Path(path), lambda file: file.write(safetensors.numpy.save(named)))
