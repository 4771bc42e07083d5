"""Weights in eight bits: a quarter of the bytes of float32, half of float16, arithmetic as before.

Every kernel is stored as whole numbers -127..127 with one scale for each output channel, and made whole again inside of
the compiled program:

    scale[o] = max |w[..., o]| / 127,    w[..., o] ~ scale[o] * round(w[..., o] / scale[o])                       (1)

so that no weight moves by more than half a scale. Biases, norms and embeddings stay as they are: they are few, and
every output depends on each of them.

Over the bytes of the model itself nothing is saved unless kernels are made whole where they are used, one after
another: see :func:`tied`.

Source: "LLM.int8()" (arXiv:2208.07339), section 2.1, absmax quantisation, here of weights alone and by channel.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array, lax

KERNEL, MOST = ".kernel", 127


class Eighth(NamedTuple):
    """A quantised kernel, a pytree in the place of its array."""

    values: Array  # int8, the kernel's own shape
    scale: Array  # [outputs], in the dtype that the kernel had

    @property
    def dtype(self) -> Any:
        """Of the kernel."""
        return self.scale.dtype

    def whole(self) -> Array:
        """The kernel as an array again. Call it inside jit, next to where it is used."""
        return self.values.astype(self.dtype) * self.scale


def quantised(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with every kernel as in eq. (1). Host side; kernels end in their output axis."""
    return {name: _eighth(np.asarray(w)) if name.endswith(KERNEL) else w for name, w in params.items()}


def _eighth(kernel: np.ndarray) -> Eighth:
    wide = kernel.astype(np.float32)
    largest = np.abs(wide).max(axis=tuple(range(wide.ndim - 1)))
    scale = np.where(largest > 0, largest, 1) / MOST
    return jax.device_put(Eighth(np.round(wide / scale).clip(-MOST, MOST).astype(np.int8), scale.astype(kernel.dtype)))


def tied(params: Any, x: Array) -> Any:
    """``params``, if any are quantised, as the compiler must see them: not known before ``x`` is.

    In a loop whose x changes it would else make all kernels whole once, before the loop, and keep both forms.
    """
    eighths = (isinstance(leaf, Eighth) for leaf in jax.tree.leaves(params, is_leaf=lambda w: isinstance(w, Eighth)))
    return lax.optimization_barrier((params, x))[0] if any(eighths) else params


def size(params: dict[str, Any]) -> int:
    """Bytes of all arrays."""
    return sum(np.dtype(array.dtype).itemsize * int(np.prod(array.shape)) for array in jax.tree.leaves(params))
