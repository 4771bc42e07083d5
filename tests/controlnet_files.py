"""Small public ControlNet files with random numbers, for tests."""

import numpy as np
import pytest
from lora_files import numbers
from random_parts import random_params
from safetensors.numpy import load_file, save_file

from ldm.adapters.controlnet import ControlNet, ControlNetConfig, Net
from ldm.bundle import Bundle, Configs
from ldm.models.unet import UNet, UNetConfig
from weights_convert import export_control, load_control

KINDS = {  # small ones, with the context and the heads by which a family is told
    "1.x": UNetConfig(channels=(32, 64), blocks=1, depth=(1, 0), heads=(8, 8), context_dim=768),
    "2.x": UNetConfig(channels=(64, 128), blocks=1, depth=(1, 0), heads=(1, 2), context_dim=1024),
}
RANK = 3
HEADS = UNetConfig(channels=(32, 64), blocks=2, depth=(1, 0), heads=(2, 4), context_dim=24, groups=8)
CONV, QUERY = "input_blocks.1.0.in_layers.2", "middle_block.1.transformer_blocks.0.attn1.to_q"
OURS = {CONV: "encoder.down.0.res.0.conv1.kernel", QUERY: "encoder.middle.attn.blocks.0.self_attn.q.kernel"}


def net_of(unet: UNetConfig, widths=(4, 8, 12, 16), channels=3) -> Net:
    """A small ControlNet."""
    config = ControlNetConfig(unet, channels, widths)
    return Net(config, random_params(ControlNet, config, 0))


NETS = {kind: net_of(unet) for kind, unet in KINDS.items()}
BASES = {kind: Bundle(Configs(unet), {"unet": random_params(UNet, unet, 1000)}) for kind, unet in KINDS.items()}


def same(a: Net, b: Net) -> bool:
    """Whether two are equal bit for bit, in their dtypes too."""
    equal = lambda x, y: x.dtype == y.dtype and np.array_equal(x, y)
    return a.config == b.config and a.params.keys() == b.params.keys() and all(map(equal, *map(values, (a, b))))


def values(net: Net) -> list:
    """The arrays in one order."""
    return [net.params[name] for name in sorted(net.params)]


def original(kind: str, folder) -> dict[str, np.ndarray]:
    """The tensors of an original file, without prefix."""
    export_control(NETS[kind], folder / "made.safetensors", "original")
    return {k.removeprefix("control_model."): a for k, a in load_file(folder / "made.safetensors").items()}


def write(path, tensors, prefix="control_model."):
    """A .safetensors file."""
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def refused(phrase, source, bundle=None):
    """Asserts that the source is refused by one sentence that names it and has the phrase."""
    with pytest.raises(ValueError) as caught:
        load_control(source, bundle)
    message = str(caught.value)
    assert phrase in message and str(source) in message and "\n" not in message, message


def control_lora(tensors: dict, whole=(), left_out=()) -> tuple[dict, dict]:
    """(the file of a control-LoRA, {layer: up down}): products in place of a network's matrices but for ``whole``."""
    file, deltas = {"lora_controlnet": np.zeros(0, np.float32)}, {}
    for seed, (name, array) in enumerate(tensors.items()):
        layer = name.removesuffix(".weight")
        if array.ndim < 2 or layer in whole or layer.startswith(("input_hint_block", "zero_convs", "middle_block_out")):
            file |= {} if name in left_out else {name: array}
        else:
            up, down = numbers(seed, array.shape[0], RANK), numbers(seed + 500, RANK, *array.shape[1:])
            deltas[layer] = np.einsum("or,r...->o...", up, down)
            file |= {f"{layer}.up": up.reshape(*up.shape, *[1] * (array.ndim - 2)), f"{layer}.down": down}
    return file, deltas


def with_change(tensors: dict, name: str, array: np.ndarray | None) -> dict:
    """The tensors with one replaced, added or (None) left out."""
    return {key: value for key, value in (tensors | {name: array}).items() if value is not None}
