"""From the public matrices of one layer to a :class:`ldm.adapters.lora.Change`, with every shape checked.

Public matrices are output-first: down [r, i], up [o, r], with the window of a convolution last, [r, i, k, k].

    LoRA, LoCon   up down                           mid [r, r, k, k] between them, if there is one
    LoHa          (w1_a w1_b) * (w2_a w2_b)         w_a [o, r], w_b [r, i] or [r, i k k]; with t [r, r, k, k] between
                                                    them, w_a is [r, o]
    LoKr          w1 (x) w2                         each whole, or w_a w_b as above
    DoRA          magnitude [o], [o, 1, …] or, in older files, [1, i, …]

Source of the last two's shapes: LyCORIS (arXiv:2309.14859), section 3, and the files that its tools write.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ldm.adapters.lora import Change, Hadamard, Kronecker, LowRank, Whole

Matrices = Mapping[str, np.ndarray]  # role -> array, of one layer


def ours(matrix: np.ndarray) -> np.ndarray:
    """[o, i] -> [i, o]; [o, i, k, l] -> [k, l, i, o]."""
    return matrix.transpose(2, 3, 1, 0) if matrix.ndim == 4 else matrix.T


def squeezed(matrix: np.ndarray) -> np.ndarray:
    """[a, b, 1, 1] -> [a, b]; other shapes as they are."""
    return matrix[:, :, 0, 0] if matrix.ndim == 4 and matrix.shape[2:] == (1, 1) else matrix


def check_matrices(matrices: Matrices) -> None:
    """Raises ValueError for a matrix that is none, or not of numbers."""
    for role, matrix in matrices.items():
        if role not in ("alpha", "magnitude") and matrix.ndim not in (2, 4):
            raise ValueError(f"{role} has shape {matrix.shape}, where a matrix or a convolution is expected")
        if not np.isfinite(matrix).all():
            raise ValueError(f"{role} holds NaN or infinite numbers")


def window_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(k, l) of a kernel of ours; () for a linear layer."""
    return shape[:-2]


def low_rank(down: np.ndarray, up: np.ndarray, mid: np.ndarray | None, window: tuple[int, ...]) -> LowRank:
    """The product up down; ``down`` of a convolution may be flattened to [r, i k k]."""
    down, up = squeezed(down), squeezed(up)
    if up.ndim != 2:
        raise ValueError(f"up has shape {up.shape}, where [outputs, rank] is expected")
    ranks = (down.shape[0], up.shape[1]) if mid is None else (down.shape[0], *mid.shape[1::-1], up.shape[1])
    if ranks[::2] != ranks[1::2] if mid is not None else ranks[0] != ranks[1]:
        raise ValueError(f"the ranks of its matrices differ: down has {ranks[0]}, up has {ranks[-1]}")
    if mid is None and down.ndim == 2 and window and down.shape[1] % int(np.prod(window)) == 0 and window != (1, 1):
        down = down.reshape(down.shape[0], -1, *window)
    if mid is None and down.ndim == 2 and window:
        down = down[:, :, None, None]
    return LowRank(ours(down), ours(up), None if mid is None else ours(mid))


def factors(matrices: Matrices, name: str, window: tuple[int, ...]) -> LowRank:
    """A pair ``name``_a, ``name``_b, and its ``t`` where there is one."""
    a, b = matrices[f"{name}_a"], matrices[f"{name}_b"]
    mid = matrices.get(name.replace("_w", "_t"))
    return low_rank(b, a, None, window) if mid is None else low_rank(b, a.T, mid, window)


def kronecker(matrices: Matrices, window: tuple[int, ...]) -> Kronecker:
    """Each factor whole or of low rank; the window belongs to the second."""

    def factor(name: str, window: tuple[int, ...]) -> Whole | LowRank:
        if name not in matrices:
            return factors(matrices, name, window)
        matrix = matrices[name] if window else squeezed(matrices[name])
        return Whole(ours(matrix[:, :, None, None] if window and matrix.ndim == 2 else matrix))

    return Kronecker(factor("lokr_w1", ()), factor("lokr_w2", window))


def form_of(matrices: Matrices, window: tuple[int, ...]) -> LowRank | Hadamard | Kronecker:
    """Which form the matrices have. Raises ValueError where one of them is missing."""
    try:
        if "down" in matrices or "up" in matrices:
            return low_rank(matrices["down"], matrices["up"], matrices.get("mid"), window)
        if any(role.startswith("hada") for role in matrices):
            return Hadamard(factors(matrices, "hada_w1", window), factors(matrices, "hada_w2", window))
        if any(role.startswith("lokr") for role in matrices):
            return kronecker(matrices, window)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing beside {', '.join(matrices)}") from None
    raise ValueError(f"it has {', '.join(matrices)} and no matrices")


def rank_of(form: Any) -> int | None:
    """The rank that alpha is divided by; None where both factors of a Kronecker product are whole."""
    low = [part for part in (form if isinstance(form, Hadamard | Kronecker) else (form,)) if isinstance(part, LowRank)]
    return low[-1].up.shape[0] if low else None


def magnitude_of(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """DoRA's magnitude as ours: [o], or [d, 1] where there is one for each input. Raises ValueError."""
    inputs, outputs = shape[-2:]
    if array.size == outputs and array.shape[0] == outputs:
        return array.reshape(outputs)
    if array.ndim > 1 and array.shape[0] == 1 and array.size == array.shape[1] == inputs:
        return array.reshape(inputs, 1)
    raise ValueError(f"its magnitude has shape {array.shape}, where {outputs} outputs or {inputs} inputs are expected")


def change_of(matrices: Matrices, shape: tuple[int, ...], alpha: float | None, scale_of_whole: bool) -> Change:
    """The change of a kernel of ours of ``shape``.

    alpha           None or 0 stands for the rank: a factor of 1
    scale_of_whole  whether a Kronecker product of two whole factors is scaled by alpha / r as well; ``alpha`` is then
                    what the file says it is over its own rank. Raises ValueError for shapes that do not fit.
    """
    check_matrices(matrices)
    matrices = {role: matrix.astype(np.float32) for role, matrix in matrices.items()}
    form = form_of(matrices, window_of(shape))
    made = jax.eval_shape(lambda form: form.whole(), form).shape
    if made != shape and (made[-2:] != shape[-2:] or np.prod(made) != np.prod(shape)):
        names = "x".join(map(str, shape)), "x".join(map(str, made))
        raise ValueError(f"it changes a kernel of {names[1]} (inputs and outputs last), and the model's is {names[0]}")
    rank = rank_of(form)
    factor = 1.0 if not alpha or (rank is None and not scale_of_whole) else alpha / (rank or 1)
    magnitude = magnitude_of(matrices["magnitude"], shape) if "magnitude" in matrices else None
    return Change(form, np.float32(factor), magnitude)
