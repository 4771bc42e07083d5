"""Public LoRA files with random numbers in every layout, for tests: what each kind of matrices multiplies out to."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import weights_convert
from ldm.adapters import lora as loras

Tensors = dict[str, np.ndarray]
RANK, ALPHA = 3, 2.0
ATTN = "down_blocks.0.attentions.0.transformer_blocks.0"
QUERY, FF = f"{ATTN}.attn1.to_q", f"{ATTN}.ff.net.0.proj"
CONV = "down_blocks.0.resnets.0.conv1"
OUT_NAMES = {
    QUERY: "encoder.down.0.attn.0.blocks.0.self_attn.q.kernel",
    FF: "encoder.down.0.attn.0.blocks.0.ff.proj_in.kernel",
    CONV: "encoder.down.0.res.0.conv1.kernel",
}
W = 32  # width of the small U-Net


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Gaussian numbers, none of them zero."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def plain(o: int, i: int, seed: int, rank: int = RANK, window: tuple[int, ...] = ()) -> tuple[Tensors, np.ndarray]:
    """({down, up}, up down as [o, i, …])."""
    down, up = numbers(seed, rank, i, *window), numbers(seed + 1, o, rank)
    delta = np.einsum("or,r...->o...", up, down)
    return {"down": down, "up": up.reshape(o, rank, *[1] * len(window))}, delta


def locon(o: int, i: int, seed: int) -> tuple[Tensors, np.ndarray]:
    """LoCon with a middle convolution of two different ranks' sides, here the same rank."""
    down, mid, up = numbers(seed, RANK, i, 1, 1), numbers(seed + 1, RANK, RANK, 3, 3), numbers(seed + 2, o, RANK, 1, 1)
    delta = np.einsum("on,nmkl,mi->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return {"down": down, "mid": mid, "up": up}, delta


def loha(o: int, i: int, seed: int, window: tuple[int, ...] = (), tucker: bool = False) -> tuple[Tensors, np.ndarray]:
    """LoHa; of a convolution flattened, or with a core."""
    found, product = {}, 1.0
    for n in (1, 2):
        if tucker:
            a, b, t = (
                numbers(seed + n, RANK, o),
                numbers(seed + 10 + n, RANK, i),
                numbers(seed + 20 + n, RANK, RANK, *window),
            )
            found |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b, f"hada_t{n}": t}
            product = product * np.einsum("pqkl,po,qi->oikl", t, a, b)
        else:
            a, b = numbers(seed + n, o, RANK), numbers(seed + 10 + n, RANK, i * int(np.prod(window)))
            found |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b}
            product = product * (a @ b).reshape(o, i, *window)
    return found, product


def lokr(o: int, i: int, seed: int, how: str = "low") -> tuple[Tensors, np.ndarray]:
    """LoKr of a linear layer with factors of 4 x 2: the second of low rank, both of low rank, or both whole."""
    w1, (a, b) = numbers(seed, 4, 2), (numbers(seed + 1, o // 4, RANK), numbers(seed + 2, RANK, i // 2))
    found: Tensors = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}
    w2 = a @ b
    if how == "both":
        c, d = numbers(seed + 3, 4, RANK), numbers(seed + 4, RANK, 2)
        found, w1 = {"lokr_w1_a": c, "lokr_w1_b": d, "lokr_w2_a": a, "lokr_w2_b": b}, c @ d
    if how == "whole":
        found = {"lokr_w1": w1, "lokr_w2": w2}
    return found, np.kron(w1, w2)


def lokr_window(o: int, i: int, seed: int, tucker: bool) -> tuple[Tensors, np.ndarray]:
    """LoKr of a 3x3 convolution, its second factor flattened or with a core."""
    w1 = numbers(seed, 4, 2)
    if tucker:
        t, a, b = numbers(seed + 1, RANK, RANK, 3, 3), numbers(seed + 2, RANK, o // 4), numbers(seed + 3, RANK, i // 2)
        w2, found = np.einsum("pqkl,po,qi->oikl", t, a, b), {"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
    else:
        a, b = numbers(seed + 2, o // 4, RANK), numbers(seed + 3, RANK, i // 2 * 9)
        w2, found = (a @ b).reshape(o // 4, i // 2, 3, 3), {"lokr_w2_a": a, "lokr_w2_b": b}
    return {"lokr_w1": w1, **found}, np.einsum("ac,bdkl->abcdkl", w1, w2).reshape(o, i, 3, 3)


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale"}


def kohya(layers: Mapping[str, Tensors], alpha: float | None = ALPHA, prefix: str = "lora_unet_") -> Tensors:
    """A file of kohya's names from layers called as in the public folder layout."""
    named = {}
    for layer, own in layers.items():
        place = prefix + layer.replace(".", "_")
        named |= {f"{place}.{KOHYA.get(role, role)}": array for role, array in own.items()}
        named |= {} if alpha is None else {f"{place}.alpha": np.float32(alpha)}
    return named


def ours(delta: np.ndarray) -> np.ndarray:
    """[o, i, …] -> our layout."""
    return delta.transpose(2, 3, 1, 0) if delta.ndim == 4 else delta.T


def relative(a: Any, b: Any) -> float:
    """Relative error of the whole array."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def small_lora() -> dict:
    """A LoRA of both parts of ``conftest.LEAST``, with an ordinary and a convolutional layer."""
    forms = {
        "unet": {OUT_NAMES[QUERY]: (W, W), OUT_NAMES[CONV]: (3, 3, W, W)},
        "text": {"layers.1.attn.v.kernel": (64, 64)},
    }
    made = {part: loras.fresh(own, RANK, jax.random.key(1)) for part, own in forms.items()}
    random = lambda form: form._replace(up=jnp.asarray(numbers(7, *form.up.shape)))
    filled = {part: {name: random(form) for name, form in own.items()} for part, own in made.items()}
    return {part: loras.changes_of(own, ALPHA) for part, own in filled.items()}


def write(tmp_path, tensors, name="lora.safetensors", **metadata):
    """A file."""
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, tmp_path / name, metadata or None)
    return tmp_path / name


def added(bundle, path, name, part="unet", scale=1.0) -> np.ndarray:
    """What a file's LoRA adds to one kernel."""
    found = weights_convert.load_lora(path, bundle)
    before = bundle.params[part]
    after = loras.merge(before, found[part], scale)
    return np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64)
