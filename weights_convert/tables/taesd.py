"""TAESD's public spellings: positions in a sequence of layers, counted as the original or as the folder layout does."""

import re
from collections.abc import Mapping
from typing import Any

from ldm.models.taesd import TinyVAEConfig
from weights_convert.engine import Layout, Rule, Tensors
from weights_convert.tables.fields import DEEPEST, axis, whole, wholes


def _positions(config: TinyVAEConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Our module -> its index among the layers of the original encoder and decoder (activations count too)."""
    encoder, at = {"conv_in": 0}, 1
    for level, blocks in enumerate(config.blocks):
        if level:
            encoder[f"levels.{level}.resample"], at = at, at + 1
        encoder |= {f"levels.{level}.blocks.{j}": at + j for j in range(blocks)}
        at += blocks
    encoder["conv_out"] = at
    decoder, at = {"conv_in": 1}, 3  # 0 clamps, 2 is a ReLU
    for level, blocks in enumerate(reversed(config.blocks)):
        decoder |= {f"levels.{level}.blocks.{j}": at + j for j in range(blocks)}
        at += blocks
        if level < len(config.blocks) - 1:
            decoder[f"levels.{level}.resample"], at = at + 1, at + 2  # an upsampling comes first
    decoder["conv_out"] = at
    return encoder, decoder


def _layout(title: str, config: TinyVAEConfig, infix: str, first: int) -> Layout:
    encoder, decoder = _positions(config)
    rules: list[Rule] = [(r"\.conv([123])\.", lambda m: f".conv.{2 * int(m[1]) - 2}.")]
    rules += [(rf"^encoder\.{re.escape(ours)}\.", f"encoder.{infix}{i}.") for ours, i in encoder.items()]
    rules += [(rf"^decoder\.{re.escape(ours)}\.", f"decoder.{infix}{i - first}.") for ours, i in decoder.items()]
    return Layout(title, rules)


def layouts(config: TinyVAEConfig) -> list[Layout]:
    """The original's two files, under ``encoder.`` and ``decoder.``; and the folder's, whose decoder starts at 0."""
    return [_layout("TAESD", config, "", 0), _layout("folder TAESD", config, "layers.", 1)]


def config_from_json(data: Mapping[str, Any], where: str) -> TinyVAEConfig:
    """The numbers of an ``AutoencoderTiny`` configuration. Raises ValueError for its other variants."""
    halves = ("encoder", "decoder")
    widths = {c for half in halves for c in wholes(data, f"{half}_block_out_channels", (64,), where)}
    blocks = wholes(data, "num_encoder_blocks", (1, 3, 3, 3), where, high=DEEPEST)
    mirrored = wholes(data, "num_decoder_blocks", (3, 3, 3, 1), where, high=DEEPEST)[::-1]
    if len(widths) != 1 or blocks != mirrored or data.get("act_fn", "relu") != "relu":
        raise ValueError(f"{where}: only the plain TAESD is read (one width, mirrored blocks, relu)")
    ends = (whole(data, "in_channels", 3, where), whole(data, "latent_channels", 4, where))
    return TinyVAEConfig(*ends, widths.pop(), blocks)


def config_from_shapes(tensors: Tensors) -> TinyVAEConfig:
    """TAESD's published numbers with this file's latent channels and width. Raises ValueError if it is not whole."""
    try:
        return TinyVAEConfig(
            latent_channels=axis(tensors, "decoder.1.weight", 1, (4,)), width=axis(tensors, "encoder.0.weight", 0, (4,))
        )
    except KeyError as error:
        raise ValueError(f"one half of TAESD alone (no tensor {error}): give the folder that holds both") from None
