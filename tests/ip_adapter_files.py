"""Public IP-Adapter files of every kind with random numbers, for tests. Names and shapes are spelled out here again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm.models.unet import UNetConfig
from weights_convert import load_ip_adapter
from weights_convert.adapters.torch_writer import write_torch

Tensors = dict[str, np.ndarray]
FACE = 24  # numbers of a small face recogniser's vector
RANK = 3
KINDS = {"base": 48, "plus": 64, "full": 64, "face": FACE}  # and what each sees of conftest's tower
SIZES = {"tokens": 4, "width": 128, "depth": 4}


def widths(unet: UNetConfig) -> list[int]:
    """Of every cross-attention: down, up, middle."""
    levels = list(zip(unet.channels, unet.depth, strict=True))
    down = [c for c, depth in levels for _ in range(unet.blocks * depth)]
    up = [c for c, depth in reversed(levels) for _ in range((unet.blocks + 1) * depth)]
    return down + up + [unet.channels[-1]] * unet.middle_depth


def linear(name: str, o: int, i: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """A layer's tensors."""
    return {f"{name}.weight": (o, i)} | ({f"{name}.bias": (o,)} if bias else {})


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """A norm's."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def projection(kind: str, seen: int, E: int, tokens: int, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """``image_proj`` of a kind."""
    if kind == "base":
        return linear("proj", tokens * E, seen) | norm("norm", E)
    if kind == "full":
        return linear("proj.0", seen, seen) | linear("proj.2", E, seen) | norm("proj.3", E)
    if kind == "face":
        return linear("proj.0", 2 * seen, seen) | linear("proj.2", tokens * E, 2 * seen) | norm("norm", E)
    found = {"latents": (1, tokens, width)} | linear("proj_in", width, seen)
    found |= linear("proj_out", E, width) | norm("norm_out", E)
    for i in range(depth):
        found |= norm(f"layers.{i}.0.norm1", width) | norm(f"layers.{i}.0.norm2", width)
        found |= linear(f"layers.{i}.0.to_q", width, width, False) | linear(f"layers.{i}.0.to_out", width, width, False)
        found |= linear(f"layers.{i}.0.to_kv", 2 * width, width, False) | norm(f"layers.{i}.1.0", width)
        found |= linear(f"layers.{i}.1.1", 4 * width, width, False) | linear(f"layers.{i}.1.3", width, 4 * width, False)
    return found


def kernels(unet: UNetConfig, lora: bool = False) -> dict[str, tuple[int, ...]]:
    """``ip_adapter``: of every other number; a LoRA is of all."""
    found, E = {}, unet.context_dim
    for i, width in enumerate(widths(unet)):
        found |= linear(f"{2 * i + 1}.to_k_ip", width, E, False) | linear(f"{2 * i + 1}.to_v_ip", width, E, False)
        for number, context in ((2 * i, width), (2 * i + 1, E)) if lora else ():
            for role, inputs in {"q": width, "k": context, "v": context, "out": width}.items():
                found |= linear(f"{number}.to_{role}_lora.down", RANK, inputs, False)
                found |= linear(f"{number}.to_{role}_lora.up", width, RANK, False)
    return found


def public(kind: str, unet: UNetConfig, seen: int, seed: int = 0, lora: bool = False, **sizes: int) -> Tensors:
    """The tensors of a flat file, none of them zero, scaled so that layers keep sizes near one."""
    rng = np.random.default_rng(seed)
    shapes = {f"image_proj.{n}": s for n, s in projection(kind, seen, unet.context_dim, **SIZES | sizes).items()}
    shapes |= {f"ip_adapter.{name}": shape for name, shape in kernels(unet, lora).items()}

    def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
        made = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            return 0.1 * made + np.float32(name.endswith("weight"))
        return made * np.float32(shape[-1] ** -0.5)

    return {name: numbers(name, shape) for name, shape in shapes.items()}


def nested(tensors: Tensors) -> dict[str, Tensors]:
    """As .bin files have them."""
    parts = ("image_proj", "ip_adapter")
    return {part: {n.split(".", 1)[1]: a for n, a in tensors.items() if n.startswith(f"{part}.")} for part in parts}


def write(path: Path, tensors: Tensors) -> Path:
    """A file, by its ending flat or nested."""
    if path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
        return path
    with open(path, "wb") as file:
        write_torch(nested(tensors), file)
    return path


def refused(source: Path, *phrases: str, **options: Any) -> None:
    """Asserts that the source is refused by one sentence with all phrases."""
    with pytest.raises(ValueError) as caught:
        load_ip_adapter(source, **options)
    message = str(caught.value)
    assert "\n" not in message and all(phrase in message for phrase in phrases), message


def one_of_each(unet: UNetConfig, factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind, alone in its folder; FaceID with a LoRA."""
    made = {}
    for seed, (kind, seen) in enumerate(KINDS.items()):
        path = factory.mktemp(kind) / f"{kind}.safetensors"
        made[kind] = write(path, public(kind, unet, seen, seed, lora=kind == "face"))
    return made
