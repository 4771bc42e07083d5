"""T2I-Adapter's public spellings: the original code's full and light files, and the folder layout.

Names here are without the ``adapter.`` that the folder layout puts before them: see :func:`without_wrapper`. The
original full layout numbers the residual blocks of all levels through, and has four levels.
"""

import re
from collections.abc import Mapping
from typing import Any

from ldm.adapters.t2i_adapter import SDXL, T2IAdapterConfig, last_blocks
from weights_convert.engine import Layout, Rule, Tensors
from weights_convert.tables.fields import DEEPEST, LEVELS, axis, choice, fail, index, whole, wholes

FULL_LEVELS = 4
FOLDER_WIDTHS = "body.{}.resnets.0.block1.weight"
KINDS = {"full_adapter": 8, "full_adapter_xl": SDXL.unshuffle, "light_adapter": 8}  # and the factor of each
RESIDUAL: tuple[Rule, ...] = ((r"\.conv([12])\.", r".block\1."), (r"\.proj_(in|out)\.", r".\1_conv."))


def single_file(config: T2IAdapterConfig) -> Layout:
    """The original code's names: 38 of a published full adapter, 80 of the light one."""
    n = config.blocks
    full: tuple[Rule, ...] = (
        (r"^levels\.(\d+)\.blocks\.(\d+)\.", lambda m: f"body.{n * int(m[1]) + int(m[2])}."),
        (r"^levels\.(\d+)\.", lambda m: f"body.{n * int(m[1])}."),
    )
    light: tuple[Rule, ...] = ((r"^levels\.(\d+)\.", r"body.\1."), (r"\.blocks\.(\d+)\.", r".body.\1."))
    return Layout("original T2I-Adapter", (*RESIDUAL, *(light if config.light else full)))


def folder(config: T2IAdapterConfig) -> Layout:
    """Names of ``diffusion_pytorch_model.*`` after :func:`without_wrapper`."""
    return Layout(
        "folder T2I-Adapter", (*RESIDUAL, (r"^levels\.(\d+)\.", r"body.\1."), (r"\.blocks\.(\d+)\.", r".resnets.\1."))
    )


def without_wrapper(tensors: Tensors) -> dict:
    """Drops the ``adapter.`` that the folder layout and some training files put before every name."""
    return {key.removeprefix("adapter."): value for key, value in tensors.items()}


def _counted(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number that ``pattern`` finds in a name."""
    found = [index(m[1], key, tensors) for key in tensors if (m := re.match(pattern, key))]
    return 1 + max(found, default=-1)


def _unshuffled(seen: int, key: str) -> tuple[int, int]:
    """(factor, channels of the hint) from the channels after unshuffling; ValueError where they fit no factor.

    Hints have 1 or 3 channels: 64 or 192 stand for a factor of 8, 256 or 768 for SDXL's 16.
    """
    factor = next((f for f in (SDXL.unshuffle, 8) if seen % f**2 == 0), None)
    if factor is None:
        raise ValueError(f"tensor '{key}' sees {seen} channels, but a multiple of 64 (8x8 pixels each) is expected")
    return factor, seen // factor**2


def _config(kind: str, channels: tuple[int, ...], blocks: int, in_channels: int) -> T2IAdapterConfig:
    levels, xl = len(channels), kind == "full_adapter_xl"
    return T2IAdapterConfig(
        channels=channels,
        sites=SDXL.sites if xl else last_blocks(levels),
        halves=SDXL.halves if xl else (False,) + (True,) * (levels - 1),
        blocks=blocks,
        in_channels=in_channels,
        unshuffle=KINDS[kind],
        light=kind == "light_adapter",
    )


def config_from_shapes(tensors: Tensors) -> T2IAdapterConfig:
    """The numbers of an adapter in either spelling, after :func:`without_wrapper`, read off its names and shapes.

    Raises ValueError where a tensor that every adapter has is missing, or where the numbers cannot be.
    """
    light = "body.0.in_conv.weight" in tensors
    through = not light and not any(".resnets." in key for key in tensors)  # all levels' blocks in one row
    bodies = _counted(tensors, r"body\.(\d+)\.")
    levels = FULL_LEVELS if through else bodies
    blocks = bodies // FULL_LEVELS if through else _counted(tensors, r"body\.0\.(?:body|resnets)\.(\d+)\.")
    if not 0 < levels <= LEVELS or not 0 < blocks <= DEEPEST:
        raise ValueError(f"this is not a whole T2I-Adapter: it has {bodies} bodies and {blocks} blocks in each level")
    widths = "body.{}.out_conv.weight" if light else "body.{}.block1.weight" if through else FOLDER_WIDTHS
    first = "body.0.in_conv.weight" if light else "conv_in.weight"
    try:
        factor, in_channels = _unshuffled(axis(tensors, first, 1, (4,)), first)
        at = range(0, levels * blocks, blocks) if through else range(levels)
        channels = tuple(axis(tensors, widths.format(i), 0, (4,)) for i in at)
    except KeyError as error:
        raise ValueError(f"this is not a whole T2I-Adapter: tensor {error} is missing") from None
    xl = factor == SDXL.unshuffle
    if xl and (light or levels != len(SDXL.sites)):
        raise ValueError(f"tensor '{first}' is of an adapter for SDXL, which is full and has {len(SDXL.sites)} levels")
    if light and min(channels) < 4:
        raise ValueError(f"its maps have {min(channels)} channels, of which a light T2I-Adapter works in a quarter")
    kind = "light_adapter" if light else "full_adapter_xl" if xl else "full_adapter"
    return _config(kind, channels, blocks, in_channels)


def config_from_json(data: Mapping[str, Any], where: str) -> T2IAdapterConfig:
    """The numbers of a ``T2IAdapter`` configuration. Raises ValueError.

    A light adapter's list of channels leaves out the last level, which is as wide as the one before.
    """
    kind = choice(data, "adapter_type", "full_adapter", KINDS, where)
    channels = wholes(data, "channels", (320, 640, 1280, 1280), where, low=4)
    factor = whole(data, "downscale_factor", 8, where)
    if factor != KINDS[kind]:
        raise fail(where, "downscale_factor", factor, f"{KINDS[kind]} is expected of a {kind}")
    if kind == "full_adapter_xl" and len(channels) != len(SDXL.sites):
        raise fail(where, "channels", list(channels), f"{len(SDXL.sites)} of them are expected of a {kind}")
    if kind == "light_adapter":
        channels = (*channels, channels[-1])
    blocks = whole(data, "num_res_blocks", 2, where, high=DEEPEST)
    return _config(kind, channels, blocks, whole(data, "in_channels", 3, where))
